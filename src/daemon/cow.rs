//! From a COW path to a store that the engine can have: first everything is
//! looked at, then, when nothing can be refused any more, things are made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cow_error::CowError;
use super::identity::StorageIdentity;
use crate::control::api::{SnapshotSpec, StoreType};
use crate::engine::{Discards, SnapshotStore};
use crate::io::{BlockFile, DeviceId, Devices, Disk, Identity, OpenOptions, sync};
use crate::store::{self, Header, Layout, LoadParams, Loaded, Metadata, StoreError, ValidStore};
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Chunk size of a new store in bytes, unless told otherwise.
const CHUNK_BYTES: u64 = 4096;
/// What must be zero at the start of a COW without a header, in bytes: LVM
/// clears as much of a new volume, and most file systems have something there.
const HEAD: usize = 4096;

/// What a COW is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The store that the state file knows.
    Known,
    /// Asked for at the start: an existing store is loaded.
    AtStart,
    /// A new snapshot of a served origin: an existing store is not one.
    New,
    /// A transient store again on its old scratch space.
    Scratch,
}

/// What the stores have to fit to.
#[derive(Clone, Copy, Debug)]
pub struct OriginFacts {
    pub identity: Identity,
    pub sectors: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    pub read_only: bool,
}

/// A device of ours; closed again unless kept.
#[derive(Debug)]
pub struct OpenCow {
    devices: Arc<Devices>,
    id: DeviceId,
    file: Option<Arc<BlockFile>>,
    created: bool,
    kept: bool,
}

impl OpenCow {
    fn new(devices: &Arc<Devices>, file: BlockFile, created: bool) -> Self {
        let id = devices.add(file);
        Self {
            devices: devices.clone(),
            id,
            file: devices.get(id),
            created,
            kept: false,
        }
    }

    /// The engine has it now.
    pub fn keep(mut self) -> DeviceId {
        self.kept = true;
        self.id
    }
}

impl Drop for OpenCow {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(file) = self.file.take()
            && self.created
        {
            // Made for a snapshot that did not come to be.
            let _ = fs::remove_file(file.path());
        }
        drop(self.devices.remove(self.id));
    }
}

#[derive(Debug)]
enum Found {
    /// Nothing yet: a file of this many bytes is to be made.
    Absent {
        size: u64,
    },
    /// An open device without a store, for a new one.
    Blank(OpenCow),
    Invalid(OpenCow, ChunkSize),
    Valid(OpenCow, Box<ValidStore>),
}

/// A COW that was looked at; nothing is written yet.
#[derive(Debug)]
pub struct InspectedCow {
    path: PathBuf,
    store_type: StoreType,
    chunk_size: ChunkSize,
    discards: Discards,
    found: Found,
}

/// A store for the engine, and what to say about it.
#[derive(Debug)]
pub struct PreparedCow {
    pub store: SnapshotStore,
    pub chunk_size: ChunkSize,
    /// Bytes of the file or device.
    pub size: u64,
    pub identity: Identity,
    /// `major:minor` as in a device-mapper table.
    pub device_string: String,
    /// Dropping it before it is kept undoes what was made.
    pub open: OpenCow,
}

impl PreparedCow {
    /// What identifies the file or device, as it is now.
    pub fn file_identity(&self) -> Option<StorageIdentity> {
        StorageIdentity::of_open(self.open.file.as_ref()?).ok()
    }
}

/// The storage behind a path, `None` if there is none.
pub fn storage_of(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok()?;
    Some(if meta.file_type().is_block_device() {
        Identity::Device {
            number: meta.rdev(),
        }
    } else {
        Identity::File {
            device: meta.dev(),
            inode: meta.ino(),
        }
    })
}

/// What discards of the snapshot's guest are to do.
fn discards(spec: &SnapshotSpec, origin: &OriginFacts) -> Result<Discards, CowError> {
    let discards = Discards {
        zeroes_cow: spec.discard_zeroes_cow == Some(true),
        passdown_origin: spec.discard_passdown_origin == Some(true),
    };
    match discards.passdown_origin {
        true if !discards.zeroes_cow => Err(CowError::PassdownAlone),
        true if origin.read_only => Err(CowError::PassdownReadOnly),
        _ => Ok(discards),
    }
}

/// Looks whether `spec` can be what it is asked to be. `used`: the storage of
/// the volume's other snapshots, by name.
pub fn inspect(
    spec: &SnapshotSpec,
    purpose: Purpose,
    origin: &OriginFacts,
    used: &[(String, Identity)],
    devices: &Arc<Devices>,
    disk: &mut dyn Disk,
) -> Result<InspectedCow, CowError> {
    let path = PathBuf::from(&spec.cow);
    let discards = discards(spec, origin)?;
    let asked = spec.chunk_size.map(chunk_size).transpose()?;
    let default = chunk_size(CHUNK_BYTES.max(u64::from(origin.block_size)))?;
    let identity = storage_of(&path);
    if identity == Some(origin.identity) {
        return Err(CowError::IsOrigin(path));
    }
    if let Some((by, _)) = used.iter().find(|(_, i)| Some(*i) == identity) {
        return Err(CowError::Used {
            path,
            by: by.clone(),
        });
    }
    let chunk_size = asked.unwrap_or(default);
    let inspected = |chunk_size, found| {
        Ok(InspectedCow {
            path: path.clone(),
            store_type: spec.store_type,
            chunk_size,
            discards,
            found,
        })
    };
    if identity.is_none() {
        let size = match (spec.size, purpose) {
            (Some(size), Purpose::AtStart | Purpose::New | Purpose::Scratch) => size,
            (_, Purpose::Known) => return Err(CowError::Gone(path)),
            (None, _) => return Err(CowError::Missing(path)),
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        if !directory.is_dir() {
            return Err(CowError::NoDirectory {
                path: path.clone(),
                directory: directory.to_path_buf(),
            });
        }
        check_size(spec, chunk_size, size / SECTOR_SIZE, origin, &path)?;
        return inspected(chunk_size, Found::Absent { size });
    }

    let options = OpenOptions {
        // What was allocated for the store stays the store's.
        keep_space: true,
        ..OpenOptions::default()
    };
    let file = BlockFile::open(&path, options).map_err(CowError::Open)?;
    let (cow_sectors, cow_block) = (file.sectors(), file.block_size());
    if cow_block > origin.block_size {
        return Err(CowError::LargerBlocks {
            path,
            cow: cow_block,
            origin: origin.block_size,
        });
    }
    let open = OpenCow::new(devices, file, false);
    let params = LoadParams {
        cow_sectors,
        origin_sectors: Some(origin.sectors),
        unit: unit(cow_block),
        block_bytes: u64::from(origin.block_size),
    };
    let failed = |source| CowError::Store {
        path: path.clone(),
        source,
    };
    let blank = |disk: &mut dyn Disk| -> Result<bool, CowError> {
        let len = usize::try_from(cow_sectors * SECTOR_SIZE).map_or(HEAD, |size| size.min(HEAD));
        let head = sync::read_exact(disk, open.id, 0, len).map_err(|errno| {
            failed(StoreError::Io {
                action: "read",
                offset: 0,
                len,
                errno,
            })
        })?;
        Ok(head.as_slice().iter().all(|&b| b == 0))
    };
    let differs = |found: ChunkSize| match asked {
        Some(asked) if asked != found => Err(CowError::ChunkSizeDiffers {
            path: path.clone(),
            asked: asked.bytes(),
            found: found.bytes(),
        }),
        _ => Ok(()),
    };
    if purpose != Purpose::Scratch && spec.store_type == StoreType::N {
        if !blank(disk)? {
            return Err(CowError::NotEmpty(path));
        }
    } else if spec.store_type != StoreType::N {
        match (
            store::load(disk, open.id, &params).map_err(failed)?,
            purpose,
        ) {
            (Loaded::New, Purpose::Known) => return Err(CowError::StoreGone(path)),
            (Loaded::New, _) => {
                if !blank(disk)? {
                    return Err(CowError::NotEmpty(path));
                }
            }
            (Loaded::Invalid { chunk_size }, Purpose::Known) => {
                differs(chunk_size)?;
                return inspected(chunk_size, Found::Invalid(open, chunk_size));
            }
            (Loaded::Invalid { .. }, _) => return Err(CowError::HoldsInvalid(path)),
            // An empty one says nothing about any moment: as good as new.
            (Loaded::Valid(store), Purpose::New) if !store.metadata().entries().is_empty() => {
                return Err(CowError::HoldsStore(path));
            }
            // What is kept is whole, but the next copy-out would find no room.
            (Loaded::Valid(_), Purpose::Known)
                if spec.size.is_some_and(|had| had > cow_sectors * SECTOR_SIZE) =>
            {
                return Err(CowError::Shrunk {
                    path,
                    has: cow_sectors * SECTOR_SIZE,
                    had: spec.size.unwrap_or(0),
                });
            }
            (Loaded::Valid(store), _) => {
                let found = store.metadata().layout().chunk_size;
                differs(found)?;
                return inspected(found, Found::Valid(open, store));
            }
        }
    }
    check_size(spec, chunk_size, cow_sectors, origin, &path)?;
    inspected(chunk_size, Found::Blank(open))
}

impl InspectedCow {
    /// Its snapshot can be right.
    pub fn is_valid(&self) -> bool {
        !matches!(self.found, Found::Invalid(..))
    }

    /// Makes the store unusable, durably.
    pub fn invalidate(&self, disk: &mut dyn Disk) -> Result<(), StoreError> {
        match &self.found {
            Found::Valid(open, store) => {
                let block = open.file.as_ref().map_or(512, |f| f.block_size());
                let chunk_size = store.metadata().layout().chunk_size;
                write_head(
                    disk,
                    open.id,
                    &Header {
                        valid: false,
                        chunk_size,
                    }
                    .encode(unit(block)),
                )
            }
            _ => Ok(()),
        }
    }

    /// Makes what is missing: the file, the store, order in what is stale, for a
    /// snapshot of so many `sectors`. What was made goes away again if the result
    /// is dropped.
    pub fn prepare(
        self,
        sectors: u64,
        devices: &Arc<Devices>,
        disk: &mut dyn Disk,
    ) -> Result<PreparedCow, CowError> {
        let path = self.path;
        let failed = |source| CowError::Store {
            path: path.clone(),
            source,
        };
        let (found, chunk_size) = match self.found {
            Found::Absent { size } => {
                let size = size / SECTOR_SIZE * SECTOR_SIZE;
                let options = OpenOptions {
                    keep_space: true,
                    create: Some(size),
                    ..OpenOptions::default()
                };
                let file = BlockFile::open(&path, options).map_err(CowError::Open)?;
                (
                    Found::Blank(OpenCow::new(devices, file, true)),
                    self.chunk_size,
                )
            }
            Found::Invalid(open, chunk_size) => (Found::Invalid(open, chunk_size), chunk_size),
            found => (found, self.chunk_size),
        };
        let (open, metadata, valid) = match found {
            Found::Absent { .. } => return Err(CowError::Missing(path)),
            Found::Blank(open) => {
                let (cow_sectors, block) = open
                    .file
                    .as_ref()
                    .map_or((0, 512), |f| (f.sectors(), f.block_size()));
                let metadata = if self.store_type == StoreType::N {
                    Metadata::transient(Layout::new(chunk_size), cow_sectors)
                } else {
                    store::create(disk, open.id, chunk_size, cow_sectors, unit(block))
                        .map_err(failed)?
                };
                (open, metadata, true)
            }
            Found::Invalid(open, chunk_size) => {
                store::settle_invalid(disk, open.id).map_err(failed)?;
                let (cow_sectors, block) = open
                    .file
                    .as_ref()
                    .map_or((0, 512), |f| (f.sectors(), f.block_size()));
                (
                    open,
                    Metadata::fresh(Layout::new(chunk_size), cow_sectors, unit(block)),
                    false,
                )
            }
            Found::Valid(open, store) => {
                let metadata = store.settle(disk, open.id).map_err(failed)?;
                (open, metadata, true)
            }
        };
        let Some(file) = open.file.clone() else {
            return Err(CowError::Missing(path));
        };
        let store = SnapshotStore {
            device: open.id,
            metadata,
            sectors,
            keep_on_overflow: self.store_type == StoreType::PO,
            valid,
            // Acknowledged writes must survive the death of this process.
            defer_commits: false,
            discards: self.discards,
        };
        Ok(PreparedCow {
            store,
            chunk_size,
            size: file.size(),
            identity: file.identity(),
            device_string: file.device_string(),
            open,
        })
    }
}

/// Clears what would make [`inspect`] take a transient store's leftovers for
/// something that somebody wants.
pub fn clear_head(disk: &mut dyn Disk, device: DeviceId, size: u64) -> Result<(), StoreError> {
    write_head(
        disk,
        device,
        &vec![0; usize::try_from(size).map_or(HEAD, |size| size.min(HEAD))],
    )
}

fn write_head(disk: &mut dyn Disk, device: DeviceId, bytes: &[u8]) -> Result<(), StoreError> {
    let mut buffer = crate::io::OwnedBuffer::zeroed(bytes.len());
    buffer.as_mut_slice().copy_from_slice(bytes);
    let failed = |errno| StoreError::Io {
        action: "write",
        offset: 0,
        len: bytes.len(),
        errno,
    };
    sync::write_all(disk, device, 0, buffer, true)
        .map(drop)
        .map_err(failed)
}

fn chunk_size(bytes: u64) -> Result<ChunkSize, CowError> {
    let sectors = bytes
        .is_multiple_of(SECTOR_SIZE)
        .then_some(bytes / SECTOR_SIZE);
    sectors
        .and_then(ChunkSize::new)
        .ok_or(CowError::ChunkSize(bytes))
}

/// Bytes that the device writes atomically.
fn unit(block_size: u32) -> usize {
    usize::try_from(block_size).map_or(HEAD, |block| block.clamp(512, HEAD))
}

/// What `store::create` would refuse, before a file is made for it.
fn check_size(
    spec: &SnapshotSpec,
    chunk_size: ChunkSize,
    cow_sectors: u64,
    origin: &OriginFacts,
    path: &Path,
) -> Result<(), CowError> {
    let failed = |source| CowError::Store {
        path: path.to_path_buf(),
        source,
    };
    let block_bytes = u64::from(origin.block_size);
    if chunk_size.bytes() < block_bytes {
        return Err(failed(StoreError::ChunkBelowBlock {
            chunk_bytes: chunk_size.bytes(),
            block_bytes,
        }));
    }
    // Header, metadata and one chunk of data; a transient store has only data.
    let chunks = if spec.store_type == StoreType::N {
        1
    } else {
        3
    };
    let needs = chunk_size.sectors().saturating_mul(chunks);
    if cow_sectors < needs {
        return Err(failed(StoreError::TooSmall {
            chunk_sectors: chunk_size.sectors(),
            needs,
            has: cow_sectors,
        }));
    }
    Ok(())
}
