//! The guest's memory, as the front end passes it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// Most regions at a time; the kernel's vhost has the same limit.
pub const MAX_REGIONS: usize = 509;

/// The guest's memory as it is mapped at one time.
pub type GuestMap = GuestMemoryMmap<DirtyBitmap>;

/// The log of a region's dirty pages during a migration. While it is off, a write costs
/// one load; `BitmapMmapRegion` alone would take a lock that all queues share at every
/// access.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    on: AtomicBool,
    log: BitmapMmapRegion,
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.on.load(Ordering::Relaxed) {
            self.log.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.on.load(Ordering::Relaxed) && self.log.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// The addresses of a region for the guest and for the front end's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    guest: u64,
    user: u64,
    len: u64,
}

/// All regions. They may be changed only while no worker runs: a worker keeps the map with
/// which it started, so that old regions stay mapped until it has ended.
pub struct MemoryTable {
    map: Arc<GuestMap>,
    // In the order of the map's regions: by guest address.
    places: Vec<Place>,
}

impl MemoryTable {
    pub fn new() -> Self {
        Self {
            map: Arc::new(GuestMap::new()),
            places: Vec::new(),
        }
    }

    /// The memory as it is now.
    pub fn map(&self) -> Arc<GuestMap> {
        Arc::clone(&self.map)
    }

    /// Replaces all regions.
    pub fn set(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<()> {
        let mut map = GuestMap::new();
        let mut places = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            map = insert(&map, region, file)?;
            places.push(Place::of(region));
        }
        self.replace(map, places);
        Ok(())
    }

    /// Adds a region.
    pub fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        if self.places.len() >= MAX_REGIONS {
            return Err(invalid(format!("more than {MAX_REGIONS} memory regions")));
        }
        let map = insert(&self.map, region, file)?;
        let mut places = self.places.clone();
        places.push(Place::of(region));
        self.replace(map, places);
        Ok(())
    }

    /// Removes the region with the same guest address, front-end address and size.
    pub fn remove(&mut self, region: &VhostUserMemoryRegion) -> io::Result<()> {
        let place = Place::of(region);
        let unknown = || {
            invalid(format!(
                "no memory region at guest address {:#x} to remove",
                place.guest
            ))
        };
        let index = self
            .places
            .iter()
            .position(|p| *p == place)
            .ok_or_else(unknown)?;
        let (map, _) = self
            .map
            .remove_region(GuestAddress(place.guest), place.len)
            .map_err(io::Error::other)?;
        let mut places = self.places.clone();
        places.remove(index);
        self.replace(map, places);
        Ok(())
    }

    /// The guest address for an address in the front end's process.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.places.iter().find_map(|place| {
            let offset = user.checked_sub(place.user)?;
            (offset < place.len).then(|| place.guest.checked_add(offset))?
        })
    }

    /// All guest addresses equal those of the front end's process: a program that drives
    /// the disk itself uses its own addresses, while a guest's memory begins at low ones.
    pub fn is_the_front_ends_own(&self) -> bool {
        !self.places.is_empty() && self.places.iter().all(|p| p.guest == p.user)
    }

    fn replace(&mut self, map: GuestMap, places: Vec<Place>) {
        self.map = Arc::new(map);
        self.places = places;
    }
}

impl Place {
    const fn of(region: &VhostUserMemoryRegion) -> Self {
        Self {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
        }
    }
}

/// Maps a region into a copy of `map`.
fn insert(map: &GuestMap, region: &VhostUserMemoryRegion, file: File) -> io::Result<GuestMap> {
    check_backing(region, &file)?;
    let mapping = region
        .mmap_region::<DirtyBitmap>(file)
        .map_err(|e| invalid(e.to_string()))?;
    let address = GuestAddress(region.guest_phys_addr);
    let region = GuestRegionMmap::new(mapping, address)
        .ok_or_else(|| invalid(format!("a memory region at {:#x} wraps around", address.0)))?;
    map.insert_region(Arc::new(region))
        .map_err(|e| invalid(format!("memory region at {:#x}: {e}", address.0)))
}

/// The same memory with an additional page of this process where the guest has none, and
/// the page's address. `None` if there is no such place.
pub fn with_scratch(map: &GuestMap) -> Option<(GuestMap, GuestAddress)> {
    const LEN: usize = 4096;
    let address = map.last_addr().checked_add(1)?.checked_align_up(4096)?;
    let region = GuestRegionMmap::from_range(address, LEN, None).ok()?;
    let map = map.insert_region(Arc::new(region)).ok()?;
    Some((map, address))
}

/// A region must lie within its file: touching a page beyond the end would
/// kill the process, with all other guests.
fn check_backing(region: &VhostUserMemoryRegion, file: &File) -> io::Result<()> {
    // The message's layout is packed: fields are copied out.
    let (address, len, offset) = (
        region.guest_phys_addr,
        region.memory_size,
        region.mmap_offset,
    );
    let stat = rustix::fs::fstat(file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(invalid(format!(
            "memory region at {address:#x} is backed by {}, not by shared memory or a file",
            kind_of(kind)
        )));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(invalid(format!(
            "memory region at {address:#x} needs {len} bytes from offset {offset} of a file of {size} bytes"
        ))),
    }
}

/// The kind of file behind a descriptor, in words.
pub(super) const fn kind_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "no file",
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
