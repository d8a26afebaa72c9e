//! From a COW path to a store that the engine can have: first everything is
//! looked at, then, when nothing can be refused any more, things are made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CowError;
use super::mark as cow_mark;
use super::size::{check_size, chunk_size, unit};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::identity::StorageIdentity;
use crate::engine::{Discards, SnapshotStore};
use crate::io::{BlockFile, DeviceId, Devices, Disk, Identity, OpenError, OpenOptions, blocking};
use crate::store::{self, Holes, Layout, LoadParams, Loaded, Metadata, StoreError, ValidStore};
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
    /// The same, of a snapshot that the state file says to be invalid: nobody
    /// cares what else is in it.
    KnownInvalid,
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
    /// It held an empty store with such chunks when it was opened.
    held: Option<ChunkSize>,
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
            held: None,
            kept: false,
        }
    }

    /// What of the store reads as zeroes, in words.
    fn holes(&self, store: &ValidStore) -> Option<String> {
        let (layout, entries) = (store.metadata().layout(), store.metadata().entries());
        Holes::find(self.file.as_ref()?, layout, entries).warning()
    }

    /// Makes it what it was when it was opened, for a snapshot that did not come to
    /// be: blank, or an empty store. One that was made goes away by itself.
    pub fn put_back(&self, disk: &mut dyn Disk) -> Result<(), StoreError> {
        let Some(file) = self.file.as_ref().filter(|_| !self.created) else {
            return Ok(());
        };
        match self.held {
            Some(chunk_size) => {
                let (sectors, unit) = (file.sectors(), unit(file.block_size()));
                store::create(disk, self.id, chunk_size, sectors, unit).map(drop)
            }
            None => clear_head(disk, self.id, file.size()),
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
    /// What looks suspicious, and is no reason to refuse.
    pub warning: Option<String>,
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
            warning: None,
        })
    };
    if identity.is_none() {
        let size = match (spec.size, purpose) {
            (Some(size), Purpose::AtStart | Purpose::New | Purpose::Scratch) => size,
            (_, Purpose::Known | Purpose::KnownInvalid) => return Err(CowError::Gone(path)),
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

    if purpose == Purpose::KnownInvalid {
        let file = BlockFile::open(&path, cow_mark::TO_MARK).map_err(CowError::Open)?;
        let block = u64::from(file.block_size().max(origin.block_size));
        let header = cow_mark::read(&file).ok().map(|raw| raw.check(block));
        let chunk_size = match header {
            Some(Ok(Some(header))) => header.chunk_size,
            _ => chunk_size,
        };
        let open = OpenCow::new(devices, file, false);
        return inspected(chunk_size, Found::Invalid(open, chunk_size));
    }
    let options = OpenOptions {
        // What was allocated for the store stays the store's.
        keep_space: true,
        guard_size: true,
        ..OpenOptions::default()
    };
    let file = BlockFile::open(&path, options).map_err(|error| match error {
        // The advice to round it up is for disks.
        OpenError::TooSmall { size: has, .. } | OpenError::OddSize { size: has, .. }
            if purpose == Purpose::Known =>
        {
            let path = path.clone();
            CowError::OddSize { path, has }
        }
        error => CowError::Open(error),
    })?;
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
        let head = blocking::read_exact(disk, open.id, 0, len).map_err(|errno| {
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
            (Loaded::Valid(store), Purpose::Known)
                if spec.size.is_some_and(|had| had > cow_sectors * SECTOR_SIZE) =>
            {
                let (has, had) = (cow_sectors * SECTOR_SIZE, spec.size.unwrap_or(0));
                return Err(match open.holes(&store) {
                    None => CowError::Shrunk { path, has, had },
                    // Then it was even shorter for a while.
                    Some(holes) => CowError::ShrunkWithHoles {
                        path,
                        has,
                        had,
                        holes,
                    },
                });
            }
            (Loaded::Valid(store), _) => {
                let found = store.metadata().layout().chunk_size;
                differs(found)?;
                let warning = open.holes(&store);
                let found = inspected(found, Found::Valid(open, store))?;
                return Ok(InspectedCow { warning, ..found });
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

    /// There is something in it that depends on the origin's content.
    pub fn holds_entries(&self) -> bool {
        match &self.found {
            Found::Valid(_, store) => !store.metadata().entries().is_empty(),
            _ => false,
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
                    guard_size: true,
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
        let mut marked = false;
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
                marked = mark(&open, disk)?;
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
            Found::Valid(mut open, store) => {
                let metadata = store.settle(disk, open.id).map_err(failed)?;
                if let Some(file) = &open.file {
                    file.hold(metadata.held_bytes());
                }
                open.held = Some(chunk_size);
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
            marked,
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

/// Makes the header agree with the record that the snapshot is invalid; whether
/// it does then. If it cannot be written the record has to last.
fn mark(open: &OpenCow, disk: &mut dyn Disk) -> Result<bool, CowError> {
    let Some(file) = &open.file else {
        return Ok(false);
    };
    if file.is_direct() {
        // Read as invalid, and maybe not durably so.
        return store::settle_invalid(disk, open.id)
            .map(|()| true)
            .map_err(|source| CowError::Store {
                path: file.path().to_owned(),
                source,
            });
    }
    let marked = cow_mark::mark(file);
    if let Err(error) = &marked {
        tracing::warn!(cow = %file.path().display(), %error,
            "the snapshot is invalid, which only the state file says; do not use the COW without it");
    }
    Ok(marked.is_ok())
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
    blocking::write_all(disk, device, 0, buffer, true)
        .map(drop)
        .map_err(failed)
}
