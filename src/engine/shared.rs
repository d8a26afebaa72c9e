//! What the ports and the critical section share without the engine's lock.

use std::sync::{Arc, PoisonError};

use super::api::*;
use super::registrations::{Changes, Registrations, fence_change};
use super::views::{Config, SharedSnapshot};
use crate::io::DeviceId;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in the daemon aborts; in tests the poisoned state must not hide it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all ports share.
#[derive(Debug)]
pub(super) struct Shared {
    pub origin: DeviceId,
    /// Sectors of the origin. It only grows.
    pub origin_sectors: AtomicU64,
    /// Epoch of `config`; a port whose copy is older fetches it again.
    pub epoch: AtomicU64,
    pub config: Mutex<Arc<Config>>,
    /// Number of state changes that wait for requests to end.
    pub drains: AtomicUsize,
    /// Numbers those changes.
    pub changes: Arc<Changes>,
    /// A flush of the origin failed: every flush of it that ends later fails.
    pub origin_flush_failed: AtomicBool,
}

impl Shared {
    pub fn new(origin: OriginParams) -> Self {
        Self {
            origin: origin.device,
            origin_sectors: AtomicU64::new(origin.sectors),
            epoch: AtomicU64::new(0),
            config: Mutex::new(Arc::new(Config::new(0, Default::default()))),
            drains: AtomicUsize::new(0),
            changes: Arc::default(),
            origin_flush_failed: AtomicBool::new(false),
        }
    }

    pub fn origin_sectors(&self) -> u64 {
        self.origin_sectors.load(Ordering::Acquire)
    }

    /// Whether a flush of the origin (`None`) or of a store must fail even if the
    /// device reports success: an earlier or concurrent flush failed, so written
    /// data may be lost.
    pub fn is_flush_lost(&self, store: Option<&SharedSnapshot>) -> bool {
        let failed = store.map_or(&self.origin_flush_failed, |s| &s.flush_failed);
        failed.load(Ordering::Acquire)
    }

    /// Publishes a configuration. A scan of the registrations after this finds every
    /// request that was decided by an older one.
    pub fn publish(&self, config: Arc<Config>) {
        let epoch = config.epoch;
        *lock(&self.config) = config;
        self.epoch.store(epoch, Ordering::Release);
        fence_change();
    }
}

/// The part of a port that other threads use.
pub(super) struct PortShared {
    pub role: PortRole,
    pub registrations: Registrations,
    pub inbox: Mutex<Vec<Command>>,
    pub inbox_full: AtomicBool,
    /// I/O commands handed out whose end is not reported yet.
    pub ios: AtomicUsize,
    /// Requests that wait may end with an error.
    pub abandoned: AtomicBool,
    pub wake: Arc<dyn Wake>,
}

impl PortShared {
    pub fn new(role: PortRole, slots: usize, wake: Arc<dyn Wake>, changes: Arc<Changes>) -> Self {
        Self {
            role,
            registrations: Registrations::new(slots, changes),
            inbox: Mutex::new(Vec::new()),
            inbox_full: AtomicBool::new(false),
            ios: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            wake,
        }
    }
}
