//! The guest's memory, as the front end passes it.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserLog, VhostUserMemoryRegion};
use vhost_user_backend::bitmap::BitmapReplace;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use super::backing::{Backing, invalid};
use super::descriptors;
use super::dirty_log::{DirtyBitmap, DirtyLog, LogPart};
use super::vanishing::{Reserved, Watch};
use crate::event_flag::EventFlag;
use crate::size::in_words;

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
#[cfg(any(test, feature = "fuzzing"))]
impl From<GuestMap> for WatchedMap {
    fn from(map: GuestMap) -> Self {
        let watches = Vec::new();
        Self { watches, map }
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
    /// The log that the front end has passed; it covers all regions.
    log: Option<Arc<DirtyLog>>,
    /// Writes to the regions are logged.
    writes_are_logged: bool,
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
            log: None,
            writes_are_logged: false,
        })
    }

    /// The log of dirty pages.
    pub const fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Replaces the log of dirty pages; `None` unmaps it. When this returns, writes to the
    /// regions are not marked in the old one any more.
    ///
    /// # Errors
    /// The log is too small for the regions.
    pub fn set_log(&mut self, log: Option<(&VhostUserLog, File)>) -> io::Result<()> {
        let log = log
            .map(|(log, file)| DirtyLog::map(log, file, self.any_memory, &self.gone))
            .transpose()?;
        if let Some(log) = &log {
            check_covered(&self.map, log)?;
        }
        self.log = log.map(Arc::new);
        self.install_log(&self.map);
        Ok(())
    }

    /// Whether writes to the regions are logged, if there is a log. Returns whether this
    /// changes.
    pub fn log_writes(&mut self, writes: bool) -> bool {
        let changes = self.writes_are_logged != writes;
        if changes {
            self.writes_are_logged = writes;
            self.install_log(&self.map);
        }
        changes
    }

    fn install_log(&self, map: &GuestMap) {
        let log = self.log.as_ref().filter(|_| self.writes_are_logged);
        for region in map.iter() {
            // That of the mapping itself, not a slice of it.
            let bitmap: &DirtyBitmap = (**region).bitmap();
            match log {
                Some(log) => bitmap.replace(LogPart::of(region, log)),
                None => bitmap.clear(),
            }
        }
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
        self.replace(map, places)
    }

    /// Adds a region.
    pub fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        if self.places.len() >= MAX_REGIONS {
            return Err(invalid(format!("more than {MAX_REGIONS} memory regions")));
        }
        let mut places = self.places.clone();
        let map = self.insert(&self.map, &mut places, region, file)?;
        self.replace(map, places)
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
        self.replace(map, places)
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

    fn replace(&mut self, map: GuestMap, places: Vec<(Place, Arc<Watch>)>) -> io::Result<()> {
        if let Some(log) = &self.log {
            check_covered(&map, log)?;
        }
        self.install_log(&map);
        let watches = places.iter().map(|(_, watch)| Arc::clone(watch)).collect();
        // First, so that no watch outlives the mapping of a region that is removed.
        self.places = places;
        self.map = Arc::new(WatchedMap { watches, map });
        Ok(())
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
        let what = format!("memory region at {:#x}", place.guest);
        let backing = Backing {
            what: &what,
            len: place.len,
            offset: region.mmap_offset,
        };
        backing.check_size(&file)?;
        let page = backing.check_kind(&file, self.any_memory)?;
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
                "memory region at {guest:#x}: the front end's address {user:#x} and {} \
                 are more than an address space has",
                in_words(len)
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
                "memory region at {guest:#x} of {}: a front end may have {} mapped, and this one has {}",
                in_words(len),
                in_words(BYTES_MAX),
                in_words(mapped)
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

/// No page of the files behind the memory exists: nobody has written to them since they were
/// made. False if the system does not tell.
pub fn is_untouched(map: &GuestMap) -> bool {
    let untouched = |region: &GuestRegionMmap<DirtyBitmap>| {
        let file = region.file_offset().map(FileOffset::file);
        file.is_some_and(|file| rustix::fs::fstat(file).is_ok_and(|stat| stat.st_blocks == 0))
    };
    map.num_regions() > 0 && map.iter().all(untouched)
}

/// Refuses a log that has no bit for some of the memory.
fn check_covered(map: &GuestMap, log: &DirtyLog) -> io::Result<()> {
    let last = map.last_addr().raw_value();
    if map.num_regions() == 0 || log.covers(last) {
        return Ok(());
    }
    Err(invalid(format!(
        "the dirty log of {} is too small: guest memory ends at {last:#x}, for which {} are needed",
        in_words(log.len()),
        in_words(last / (8 * PAGE) + 1)
    )))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
