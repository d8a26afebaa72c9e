//! The guest's memory, as the front end passes it.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, FsWord, fstatfs};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use super::descriptors;
use super::vanishing::{Reserved, Watch};
use crate::event_flag::EventFlag;

/// Most regions at a time; the kernel's vhost has the same limit.
pub const MAX_REGIONS: usize = 509;

/// Most address space that one front end may have mapped.
const BYTES_MAX: u64 = 16 << 40;

/// Memory that is mapped.
pub type GuestMap = GuestMemoryMmap<DirtyBitmap>;

/// The guest's memory as it is mapped at one time, watched for pages that vanish.
#[derive(Debug)]
pub struct WatchedMap {
    // Dropped first: a region is watched only while it is mapped.
    watches: Vec<Arc<Watch>>,
    map: GuestMap,
}

impl WatchedMap {
    /// An access has found that a part is gone.
    pub fn is_gone(&self) -> bool {
        self.watches.iter().any(|watch| watch.is_gone())
    }
}

impl Deref for WatchedMap {
    type Target = GuestMap;

    fn deref(&self) -> &GuestMap {
        &self.map
    }
}

/// Memory of this process, which does not vanish.
#[cfg(test)]
impl From<GuestMap> for WatchedMap {
    fn from(map: GuestMap) -> Self {
        let watches = Vec::new();
        Self { watches, map }
    }
}

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

/// What the guest addresses of regions are multiples of.
const PAGE: u64 = 4096;

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
    /// In the order in which the regions came. Dropped before the map, like its watches.
    places: Vec<(Place, Arc<Watch>)>,
    map: Arc<WatchedMap>,
    /// Becomes readable when an access finds that memory is gone.
    gone: Arc<EventFlag>,
    /// Memory of any kind is taken.
    any_memory: bool,
}

impl MemoryTable {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(any_memory: bool) -> io::Result<Self> {
        let (watches, map) = (Vec::new(), GuestMap::new());
        Ok(Self {
            map: Arc::new(WatchedMap { watches, map }),
            places: Vec::new(),
            gone: Arc::new(EventFlag::new()?),
            any_memory,
        })
    }

    /// The memory as it is now.
    pub fn map(&self) -> Arc<WatchedMap> {
        Arc::clone(&self.map)
    }

    /// Becomes readable when an access finds that memory is gone.
    pub const fn gone(&self) -> &Arc<EventFlag> {
        &self.gone
    }

    /// Replaces all regions.
    pub fn set(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<()> {
        let mut map = GuestMap::new();
        let mut places = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            map = self.insert(&map, &mut places, region, file)?;
        }
        self.replace(map, places);
        Ok(())
    }

    /// Adds a region.
    pub fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        if self.places.len() >= MAX_REGIONS {
            return Err(invalid(format!("more than {MAX_REGIONS} memory regions")));
        }
        let mut places = self.places.clone();
        let map = self.insert(&self.map, &mut places, region, file)?;
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
            .position(|(p, _)| *p == place)
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
        self.places.iter().find_map(|(place, _)| {
            let offset = user.checked_sub(place.user)?;
            (offset < place.len).then(|| place.guest.checked_add(offset))?
        })
    }

    /// All guest addresses equal those of the front end's process: a program that drives
    /// the disk itself uses its own addresses, while a guest's memory begins at low ones.
    pub fn is_the_front_ends_own(&self) -> bool {
        !self.places.is_empty() && self.places.iter().all(|(p, _)| p.guest == p.user)
    }

    fn replace(&mut self, map: GuestMap, places: Vec<(Place, Arc<Watch>)>) {
        let watches = places.iter().map(|(_, watch)| Arc::clone(watch)).collect();
        // First, so that no watch outlives the mapping of a region that is removed.
        self.places = places;
        self.map = Arc::new(WatchedMap { watches, map });
    }

    /// Maps a region into a copy of `map`, and adds it to `places`.
    fn insert(
        &self,
        map: &GuestMap,
        places: &mut Vec<(Place, Arc<Watch>)>,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> io::Result<GuestMap> {
        let place = Place::of(region);
        place.check(places)?;
        descriptors::check(&file)?;
        check_backing(region, &file)?;
        let page = check_kind(&file, place.guest, self.any_memory)?;
        let reserved = Reserved::new(place.len)?;
        let mapping = region
            .mmap_region::<DirtyBitmap>(file)
            .map_err(|e| invalid(e.to_string()))?;
        let (start, len) = (mapping.as_ptr().expose_provenance(), mapping.size());
        let address = GuestAddress(place.guest);
        let mapped = GuestRegionMmap::new(mapping, address)
            .ok_or_else(|| invalid(format!("a memory region at {:#x} wraps around", address.0)))?;
        let map = map
            .insert_region(Arc::new(mapped))
            .map_err(|e| invalid(format!("memory region at {:#x}: {e}", address.0)))?;
        // After the mapping is in the map: it is watched for as long as it is there.
        let watch = Watch::new(start, len, page, Arc::clone(&self.gone), reserved)?;
        places.push((place, Arc::new(watch)));
        Ok(map)
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

    /// Whether it can be added to these regions. That it does not overlap another one in
    /// the guest's addresses is checked when it is inserted.
    fn check(&self, others: &[(Self, Arc<Watch>)]) -> io::Result<()> {
        let Self { guest, user, len } = *self;
        if !guest.is_multiple_of(PAGE) {
            return Err(invalid(format!(
                "memory region at {guest:#x}: its guest address must be a multiple of {PAGE}"
            )));
        }
        let Some(end) = user.checked_add(len) else {
            return Err(invalid(format!(
                "memory region at {guest:#x}: the front end's address {user:#x} and {len} bytes \
                 are more than an address space has"
            )));
        };
        if let Some((other, _)) = others
            .iter()
            .find(|(other, _)| user < other.user + other.len && other.user < end)
        {
            return Err(invalid(format!(
                "memory region at {guest:#x} has the front end's addresses {user:#x} to {end:#x}, \
                 of which the region at {:#x} has a part",
                other.guest
            )));
        }
        let mapped: u64 = others.iter().map(|(other, _)| other.len).sum();
        if len > BYTES_MAX.saturating_sub(mapped) {
            return Err(invalid(format!(
                "memory region at {guest:#x} of {len} bytes: a front end may have {BYTES_MAX} \
                 bytes mapped, and this one has {mapped}"
            )));
        }
        Ok(())
    }
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

/// The size in bytes of the file's pages, if its pages are memory of this machine. Pages
/// of other file systems may never arrive (FUSE, a network), and nobody could end a
/// process that waits for one.
fn check_kind(file: &File, address: u64, any: bool) -> io::Result<usize> {
    const TMPFS: FsWord = 0x0102_1994;
    const HUGETLBFS: FsWord = 0x9584_58f6;
    let stat = fstatfs(file)?;
    match stat.f_type {
        HUGETLBFS => usize::try_from(stat.f_bsize).map_err(io::Error::other),
        TMPFS => Ok(0),
        _ if any => Ok(0),
        kind => Err(invalid(format!(
            "memory region at {address:#x} is a file on a file system of type {kind:#x}, whose \
             pages may never arrive; use a memfd, /dev/shm or hugetlbfs, or start snapback with \
             --any-guest-memory"
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
