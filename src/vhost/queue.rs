//! The settings of one queue that the front end has made, and its worker while it runs.

use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::MAX_QUEUE_SIZE;
use super::dirty_log::{DirtyLog, UsedLog};
use super::memory::{GuestMap, MemoryTable};
use super::notify::{Call, Notifier};
use super::worker::{LogSetting, QueueWorker};
use crate::size::in_words;

/// The ring's parts, as addresses of the front end's process: these stay valid when the
/// front end replaces the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

pub struct QueueState {
    /// Entries; a power of two up to [`MAX_QUEUE_SIZE`]. 0: the front end gave another one,
    /// and the ring cannot start.
    pub size: u16,
    /// The available index to start at, or at which it stopped.
    pub base: u16,
    pub addresses: Option<RingAddresses>,
    /// During a migration: the address at which writes to the used ring are logged.
    pub used_log: Option<u64>,
    pub kick: Option<Arc<File>>,
    pub call: Arc<Call>,
    pub err: Option<Arc<Notifier>>,
    pub enabled: bool,
    pub worker: Option<QueueWorker>,
}

impl QueueState {
    pub fn new() -> Self {
        Self {
            size: MAX_QUEUE_SIZE,
            base: 0,
            addresses: None,
            used_log: None,
            kick: None,
            call: Arc::default(),
            err: None,
            enabled: false,
            worker: None,
        }
    }

    /// Forgets the ring, which has no worker; the descriptors for signals stay.
    pub fn reset(&mut self) {
        let signals = (Arc::clone(&self.call), self.err.take());
        *self = Self::new();
        (self.call, self.err) = signals;
    }

    /// The front end has started the ring.
    pub const fn is_set_up(&self) -> bool {
        self.kick.is_some() && self.addresses.is_some()
    }

    /// A worker should serve the ring.
    pub const fn should_run(&self) -> bool {
        self.is_set_up() && self.enabled
    }

    /// Where a worker logs its writes, if `log` is there; checked against the log.
    pub fn log_setting(&self, writes: bool, log: Option<&Arc<DirtyLog>>) -> io::Result<LogSetting> {
        let (Some(log), Some(address)) = (log, self.used_log) else {
            let used = None;
            return Ok(LogSetting { writes, used });
        };
        // Flags, index, elements and the event index.
        let last = address.checked_add(6 + 8 * u64::from(self.size) - 1);
        match last {
            Some(last) if log.covers(last) => {
                let log = Arc::clone(log);
                let used = Some(UsedLog { log, address });
                Ok(LogSetting { writes, used })
            }
            _ => Err(invalid(format!(
                "the used ring of {} entries is to be logged at {address:#x}, for which the dirty \
                 log of {} is too small",
                self.size,
                in_words(log.len())
            ))),
        }
    }

    /// The queue for a worker, checked against the memory.
    pub fn build(&self, table: &MemoryTable, map: &GuestMap, event_idx: bool) -> io::Result<Queue> {
        let addresses = self
            .addresses
            .ok_or_else(|| invalid("a ring without addresses".into()))?;
        let guest = |user: u64, what: &str| {
            table
                .guest_address(user)
                .map(GuestAddress)
                .ok_or_else(|| invalid(format!("the {what} at {user:#x} is not in guest memory")))
        };
        let mut queue = Queue::new(MAX_QUEUE_SIZE).map_err(io::Error::other)?;
        let bad = |e: virtio_queue::Error| invalid(format!("ring: {e}"));
        queue.try_set_size(self.size).map_err(bad)?;
        queue
            .try_set_desc_table_address(guest(addresses.descriptors, "descriptor table")?)
            .map_err(bad)?;
        queue
            .try_set_avail_ring_address(guest(addresses.available, "available ring")?)
            .map_err(bad)?;
        queue
            .try_set_used_ring_address(guest(addresses.used, "used ring")?)
            .map_err(bad)?;
        queue.set_next_avail(self.base);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(map) {
            return Err(invalid(format!(
                "a ring of {} entries does not fit into guest memory",
                self.size
            )));
        }
        Ok(queue)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
