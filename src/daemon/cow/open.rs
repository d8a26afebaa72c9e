//! An open COW that is closed, and restored, unless its snapshot is taken.

use std::fs;
use std::sync::Arc;

use super::error::CowError;
use super::size::unit;
use crate::io::{BlockFile, DeviceId, Devices, Disk, blocking};
use crate::store::{self, Holes, StoreError, ValidStore};
use crate::units::{ChunkSize, SECTOR_SIZE};

/// What must be zero at the start of a COW without a header, in bytes: LVM clears as
/// much of a new volume, and most file systems have something there.
const HEAD: usize = 4096;

/// An open COW in the table of devices; it is closed when this is dropped, unless it
/// was kept.
#[derive(Debug)]
pub struct OpenCow {
    devices: Arc<Devices>,
    id: DeviceId,
    file: Arc<BlockFile>,
    before: Before,
    /// The chunk size of the empty store that it held when it was opened.
    held: Option<ChunkSize>,
    kept: bool,
}

/// What was at the path of a COW before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// A file of no bytes, which its owner has made for it.
    Empty,
    Something,
}

impl OpenCow {
    pub fn new(devices: &Arc<Devices>, file: BlockFile, before: Before) -> Result<Self, CowError> {
        let path = file.path().to_path_buf();
        let id = devices.add(file);
        Ok(Self {
            devices: devices.clone(),
            id,
            file: devices.get(id).ok_or(CowError::Gone(path))?,
            before,
            held: None,
            kept: false,
        })
    }

    pub const fn id(&self) -> DeviceId {
        self.id
    }

    pub fn file(&self) -> &BlockFile {
        &self.file
    }

    /// Its store was there before, with such chunks.
    pub const fn set_held(&mut self, chunk_size: ChunkSize) {
        self.held = Some(chunk_size);
    }

    /// A warning if parts of the store read as zeroes because they are holes.
    pub fn holes(&self, store: &ValidStore) -> Option<String> {
        let (layout, entries) = (store.metadata().layout(), store.metadata().entries());
        Holes::find(&self.file, layout, entries).warning()
    }

    /// Whether it begins with zeroes, as a new COW must.
    pub fn is_blank(&self, disk: &mut dyn Disk) -> Result<bool, StoreError> {
        let len = head_len(self.file.sectors().saturating_mul(SECTOR_SIZE));
        let failed = |errno| StoreError::Io {
            action: "read",
            offset: 0,
            len,
            errno,
        };
        let head = blocking::read_exact(disk, self.id, 0, len).map_err(failed)?;
        Ok(head.as_slice().iter().all(|&b| b == 0))
    }

    /// Restores what it held when it was opened, because its snapshot was not taken:
    /// nothing, or an empty store. A file that was created or filled is restored by the drop.
    pub fn restore(&self, disk: &mut dyn Disk) -> Result<(), StoreError> {
        if self.before != Before::Something {
            return Ok(());
        }
        match self.held {
            Some(chunk_size) => {
                let (sectors, unit) = (self.file.sectors(), unit(self.file.block_size()));
                store::create(disk, self.id, chunk_size, sectors, unit).map(drop)
            }
            None => clear_head(disk, self.id, self.file.size()),
        }
    }

    /// The engine uses it from now on.
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
        match self.before {
            Before::Nothing => {
                let _ = fs::remove_file(self.file.path());
            }
            Before::Empty => self.file.empty(),
            Before::Something => {}
        }
        drop(self.devices.remove(self.id));
    }
}

fn head_len(size: u64) -> usize {
    usize::try_from(size).map_or(HEAD, |size| size.min(HEAD))
}

/// Clears the start of a transient store, so that the next snapshot may use the COW.
pub fn clear_head(disk: &mut dyn Disk, device: DeviceId, size: u64) -> Result<(), StoreError> {
    let len = head_len(size);
    let failed = |errno| StoreError::Io {
        action: "write",
        offset: 0,
        len,
        errno,
    };
    let zeroes = crate::io::OwnedBuffer::zeroed(len);
    blocking::write_all(disk, device, 0, zeroes, true)
        .map(drop)
        .map_err(failed)
}
