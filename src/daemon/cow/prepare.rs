//! Making what an examined COW lacks, so that the engine can use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CowError;
use super::inspect::{Found, InspectedCow, store_options};
use super::mark as cow_mark;
use super::open::{Before, OpenCow};
use super::record::{OpenRecord, RecordPlace};
use super::size::unit;
use crate::control::api::StoreType;
use crate::daemon::identity::StorageIdentity;
use crate::engine::SnapshotStore;
use crate::io::{BlockFile, Devices, Disk, Identity, OpenOptions};
use crate::store::{self, Layout, Listed, Metadata, RecordError, StoreError};
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Bytes that are zeroed at once ahead of the data of a file that was allocated only.
const ZERO_AHEAD: u64 = 1 << 20;
/// The largest chunks for which that is done. With 4 KiB it pays by far; with 64 KiB the
/// zeroes cost more than what the file system notes for each chunk (docs/performance.md).
const ZERO_AHEAD_CHUNK: u64 = 16 << 10;

/// A store for the engine.
#[derive(Debug)]
pub struct PreparedCow {
    pub store: SnapshotStore,
    /// Of the store, if it has one, or had.
    pub record: Option<OpenRecord>,
    pub chunk_size: ChunkSize,
    /// Bytes of the file or device.
    pub size: u64,
    pub identity: Identity,
    /// `major:minor` as in a device-mapper table.
    pub device_string: String,
    /// If this is dropped before it is kept, a file that was made is removed.
    pub open: OpenCow,
}

impl PreparedCow {
    /// The identity of the file or device, as it is now.
    pub fn file_identity(&self) -> Option<StorageIdentity> {
        StorageIdentity::of_open(self.open.file()).ok()
    }
}

/// The metadata of a store in an open COW.
struct Store {
    open: OpenCow,
    metadata: Metadata,
    valid: bool,
    /// The header says that it is invalid.
    marked: bool,
}

impl InspectedCow {
    /// Makes the file and the store if they do not exist, and completes what the last
    /// user of an existing store left unfinished. `sectors` is the snapshot's length,
    /// `origin_sectors` that of the origin.
    pub fn prepare(
        self,
        sectors: u64,
        origin_sectors: u64,
        devices: &Arc<Devices>,
        disk: &mut dyn Disk,
    ) -> Result<PreparedCow, CowError> {
        let (store_type, chunk_size) = (self.store_type, self.chunk_size);
        let failed = store_failed(&self.path);
        let store = match self.found {
            Found::Absent { size } => {
                let open = made(&self.path, size, devices)?;
                create(open, store_type, chunk_size, disk).map_err(failed)?
            }
            Found::Empty { file, size } => {
                let open = filled(file, size, devices)?;
                create(open, store_type, chunk_size, disk).map_err(failed)?
            }
            Found::Blank(open) => create(open, store_type, chunk_size, disk).map_err(failed)?,
            Found::Invalid(open, chunk_size) => {
                let (cow_sectors, unit) = (open.file().sectors(), unit(open.file().block_size()));
                Store {
                    marked: mark_invalid(&open, disk)?,
                    metadata: Metadata::fresh(Layout::new(chunk_size), cow_sectors, unit),
                    valid: false,
                    open,
                }
            }
            Found::Valid(mut open, store, listed) => {
                let mut metadata = store.settle(disk, open.id()).map_err(failed)?;
                take_over(&listed, &mut metadata, origin_sectors, disk, &open)?;
                open.file().hold(metadata.held_bytes());
                open.set_held(chunk_size);
                Store {
                    open,
                    metadata,
                    valid: true,
                    marked: false,
                }
            }
        };
        let record = record(&store, self.defer_entries, devices)?;
        let file = store.open.file();
        let small = chunk_size.bytes() <= ZERO_AHEAD_CHUNK;
        let zero_ahead = if small && file.has_unwritten_space() {
            ZERO_AHEAD
        } else {
            0
        };
        Ok(PreparedCow {
            chunk_size,
            size: file.size(),
            identity: file.identity(),
            device_string: file.device_string(),
            store: SnapshotStore {
                device: store.open.id(),
                metadata: store.metadata,
                sectors,
                keep_on_overflow: store_type == StoreType::PO,
                valid: store.valid,
                marked: store.marked,
                record: record.as_ref().and_then(OpenRecord::id),
                discards: self.discards,
                zero_ahead,
            },
            record,
            open: store.open,
        })
    }
}

/// A new file of `size` bytes.
fn made(path: &Path, size: u64, devices: &Arc<Devices>) -> Result<OpenCow, CowError> {
    let options = OpenOptions {
        create: Some(size / SECTOR_SIZE * SECTOR_SIZE),
        ..store_options()
    };
    let file = BlockFile::open(path, options).map_err(CowError::Open)?;
    OpenCow::new(devices, file, Before::Nothing)
}

/// An empty file, which gets `size` bytes.
fn filled(file: BlockFile, size: u64, devices: &Arc<Devices>) -> Result<OpenCow, CowError> {
    let size = size / SECTOR_SIZE * SECTOR_SIZE;
    file.fill(size).map_err(CowError::Open)?;
    OpenCow::new(devices, file, Before::Empty)
}

/// Makes the writes durable that the last daemon acknowledged and its guest did not flush.
fn take_over(
    listed: &Listed,
    metadata: &mut Metadata,
    origin_sectors: u64,
    disk: &mut dyn Disk,
    open: &OpenCow,
) -> Result<(), CowError> {
    let path = open.file().path();
    let done = store::replay_record(listed, metadata, origin_sectors, disk, open.id());
    let chunks = done.map_err(|error| match error {
        // It was checked before, so that this is about the COW.
        RecordError::Store(source) => store_failed(path)(source),
        source => CowError::Record {
            record: RecordPlace::of(open.file(), metadata.layout().chunk_size).map_or_else(
                |_| PathBuf::from("its record"),
                |place| place.path().to_path_buf(),
            ),
            source,
        },
    })?;
    if chunks > 0 {
        tracing::info!(cow = %path.display(), chunks,
            "the last daemon died; what its guest wrote and did not flush was taken over");
    }
    Ok(())
}

/// An empty record for the store, if it is to have one, or where one was. What that one
/// listed is durable, or was of another store. It must list nothing from here on: a merge
/// may remove those entries from the log, and a later start would append them again.
fn record(
    store: &Store,
    defer_entries: bool,
    devices: &Arc<Devices>,
) -> Result<Option<OpenRecord>, CowError> {
    let (file, chunk_size) = (store.open.file(), store.metadata.layout().chunk_size);
    let old = match RecordPlace::of(file, chunk_size) {
        Ok(place) => place.empty(devices)?,
        Err(_) => None,
    };
    if !defer_entries || !store.valid || store.metadata.is_transient() {
        return Ok(old);
    }
    drop(old);
    let made = RecordPlace::for_new(file, chunk_size)
        .map_err(|e| e.to_string())
        .and_then(|place| place.make(devices).map_err(|e| e.to_string()));
    // Every write is acknowledged when its entry is durable, then.
    let made = made.inspect_err(|why| {
        tracing::warn!(cow = %file.path().display(), "its entries are not deferred: {why}");
    });
    Ok(made.ok())
}

fn create(
    open: OpenCow,
    store_type: StoreType,
    chunk_size: ChunkSize,
    disk: &mut dyn Disk,
) -> Result<Store, StoreError> {
    let (cow_sectors, unit) = (open.file().sectors(), unit(open.file().block_size()));
    let metadata = match store_type {
        StoreType::N => Metadata::transient(Layout::new(chunk_size), cow_sectors),
        StoreType::P | StoreType::PO => {
            store::create(disk, open.id(), chunk_size, cow_sectors, unit)?
        }
    };
    Ok(Store {
        open,
        metadata,
        valid: true,
        marked: false,
    })
}

/// Marks the header invalid, as the state file says; whether it is marked now. If the
/// header cannot be written, the record in the state file must be kept.
fn mark_invalid(open: &OpenCow, disk: &mut dyn Disk) -> Result<bool, CowError> {
    let file = open.file();
    if file.is_direct() {
        // It was read as invalid, but this may not be durable.
        return store::settle_invalid(disk, open.id())
            .map(|()| true)
            .map_err(store_failed(file.path()));
    }
    let marked = cow_mark::mark(file);
    if let Err(error) = &marked {
        tracing::warn!(cow = %file.path().display(), %error,
            "the snapshot is invalid, but only the state file says so; do not use the COW without it");
    }
    Ok(marked.is_ok())
}

fn store_failed(path: &Path) -> impl Fn(StoreError) -> CowError + use<> {
    let path = path.to_path_buf();
    move |source| CowError::Store {
        path: path.clone(),
        source,
    }
}
