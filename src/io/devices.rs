//! The open devices of a process, and a cache of them for each thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{BlockFile, DeviceId, Errno};

/// Registry of open devices, shared by all threads. A removed device is closed
/// (and unlocked) as soon as no operation holds it.
#[derive(Debug, Default)]
pub struct Devices {
    files: Mutex<Registry>,
    /// Counts removals, after which the caches of threads are out of date.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Registry {
    next: u32,
    files: BTreeMap<DeviceId, Arc<BlockFile>>,
}

impl Devices {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a file under an id that was never used before.
    pub fn add(&self, file: BlockFile) -> DeviceId {
        let mut registry = self.lock();
        let id = DeviceId(registry.next);
        // 2^32 devices in one process would take decades of adding.
        registry.next = registry
            .next
            .checked_add(1)
            .expect("device numbers are used up");
        registry.files.insert(id, Arc::new(file));
        id
    }

    /// Removes a device: operations submitted from now on fail with ENODEV, those in
    /// flight end as usual. Returns the file, which the caller must drop to close it.
    pub fn remove(&self, id: DeviceId) -> Option<Arc<BlockFile>> {
        let file = self.lock().files.remove(&id);
        self.generation.fetch_add(1, Ordering::Release);
        file
    }

    /// The file behind an id. It stays open as long as the returned reference is kept.
    pub fn get(&self, id: DeviceId) -> Option<Arc<BlockFile>> {
        self.lock().files.get(&id).cloned()
    }
}

/// A device's place in a [`DeviceTable`], valid while it is in use there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(usize);

#[derive(Debug)]
struct Known {
    /// `None` after removal.
    id: Option<DeviceId>,
    weak: Weak<BlockFile>,
    /// Strong while operations use it, so that only the first and the last of
    /// several touch the shared reference count.
    held: Option<Arc<BlockFile>>,
    uses: usize,
}

/// One thread's cache of the registry: takes the lock only after a removal and for a
/// device that the thread uses for the first time.
#[derive(Debug)]
pub(super) struct DeviceTable {
    devices: Arc<Devices>,
    generation: u64,
    known: Vec<Known>,
}

impl DeviceTable {
    pub(super) fn new(devices: Arc<Devices>) -> Self {
        Self {
            devices,
            generation: 0,
            known: Vec::new(),
        }
    }

    /// Finds a device and keeps it open until the matching [`Self::release`].
    pub(super) fn acquire(&mut self, id: DeviceId) -> Result<(Place, &BlockFile), Errno> {
        let generation = self.devices.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            for known in &mut self.known {
                known.id = known.id.filter(|id| self.devices.get(*id).is_some());
            }
        }
        let place = match self.known.iter().position(|k| k.id == Some(id)) {
            Some(place) => place,
            None => self.learn(id)?,
        };
        let known = self.known.get_mut(place).ok_or(Errno::ENODEV)?;
        if known.held.is_none() {
            known.held = known.weak.upgrade();
        }
        let file = known.held.as_deref().ok_or(Errno::ENODEV)?;
        known.uses += 1;
        Ok((Place(place), file))
    }

    fn learn(&mut self, id: DeviceId) -> Result<usize, Errno> {
        let file = self.devices.get(id).ok_or(Errno::ENODEV)?;
        let new = Known {
            id: Some(id),
            weak: Arc::downgrade(&file),
            held: None,
            uses: 0,
        };
        // Removed devices make room, so the table stays as small as the registry.
        let free = self
            .known
            .iter()
            .position(|k| k.id.is_none() && k.uses == 0);
        let place = free.unwrap_or(self.known.len());
        match self.known.get_mut(place) {
            Some(known) => *known = new,
            None => self.known.push(new),
        }
        Ok(place)
    }

    /// The file of a place that is in use.
    pub(super) fn file(&self, place: Place) -> Option<&Arc<BlockFile>> {
        self.known.get(place.0)?.held.as_ref()
    }

    /// Ends one use.
    pub(super) fn release(&mut self, place: Place) {
        if let Some(known) = self.known.get_mut(place.0) {
            known.uses = known.uses.saturating_sub(1);
            if known.uses == 0 {
                known.held = None;
            }
        }
    }
}
