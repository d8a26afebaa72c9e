//! The vhost-user transport: one [`ViewServer`] per view answers a front end on
//! its socket, and one worker thread per started queue moves requests between
//! the guest's ring, the engine and a disk.
//!
//! ```text
//!  socket ─► connection ─► handler ──start, stop──► worker ─┬─► ring    (guest memory)
//!                             │                             ├─► engine  (a port: requests in, commands out)
//!                             └─► memory, reset             └─► disk    (operations that own guest memory)
//! ```
//!
//! Workers of different queues share nothing that is written on the way of a
//! request: each has its own disk, port and handle on the guest's memory. A worker ends
//! only after all requests that it took are back on its ring and all its work for the
//! engine is done; guest memory is unmapped only after that.

mod back_channel;
mod backing;
mod client;
mod connection;
mod counters;
mod descriptors;
mod dirty_log;
mod failures;
mod feature_names;
mod front_end_link;
mod guest;
mod handler;
mod inflight;
mod listener;
mod lobby;
mod memory;
mod notify;
mod queue;
mod requests;
mod reset;
mod ring;
mod ring_fault;
mod slots;
mod tally;
mod unaligned;
mod vanishing;
mod view_log;
mod view_socket;
mod watcher;
mod worker;

/// For the models of races and the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(unused_imports, reason = "each of them uses a part")]
pub(crate) mod parts {
    pub use super::back_channel::BackChannel;
    pub use super::connection::{Ending, serve};
    pub use super::counters::{QueueCounters, ViewCounters};
    pub use super::dirty_log::DirtyBitmap;
    pub use super::handler::{Handler, ViewContext};
    pub use super::inflight::InflightRegion;
    pub use super::memory::GuestMap;
    #[cfg(any(
        feature = "fuzzing",
        all(test, not(any(feature = "loom", feature = "shuttle")))
    ))]
    pub use super::worker::SteppedWorker;
    pub use super::worker::{LogSetting, QueueSetup, Stopped};
}

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use backing::UNSHARED;
pub use counters::{BUCKETS, ErrorCause, Operation, OperationTotals, ViewTotals, bucket_end};
pub use descriptors::raise_limit;
pub use failures::FailedRequests;
pub use listener::ViewServer;
pub use requests::{Requests, SlowRequests};
pub use reset::Start;
pub use view_socket::{SocketError, ViewSocket};

use crate::engine::Wake;
use crate::io::Disk;
use crate::virtio_blk::BlkDevice;

/// Queues that a front end may start: as many as the messages can number.
pub const MAX_QUEUES: u16 = 256;

/// Largest ring that a front end may set up, a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// What a view's guest sees, and the view's name in messages.
#[derive(Clone, Debug)]
pub struct ViewConfig {
    /// Such as `origin` or the snapshot's name.
    pub name: String,
    pub device: BlkDevice,
    /// Queues that a front end may start: 1 ..= [`MAX_QUEUES`]. More than
    /// `device.num_queues` is fine.
    pub max_queues: u16,
    /// The write cache is off at first, because the guest of an earlier daemon turned it off.
    pub write_through: bool,
    /// Guest memory may be a file of any kind. Otherwise only memory of this machine is
    /// taken: memfd, tmpfs, hugetlbfs.
    pub any_memory: bool,
}

/// The source of the disks and engine ports of a view's workers.
pub trait Backend: Send + Sync {
    /// A disk for the calling thread.
    fn disk(&self) -> io::Result<Box<dyn Disk>>;

    /// A port of the engine for up to `slots` requests at a time.
    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests>;

    /// The longest time that a worker polls before it sleeps; zero: it never polls.
    fn polling(&self) -> Duration {
        Duration::ZERO
    }
}

/// Events of a view's guest, for the daemon. Called on the view's own thread, never two
/// at a time; those of slow requests on another one.
pub trait ViewHooks: Send + Sync {
    /// A front end has connected.
    fn attached(&self);

    /// The front end has disconnected, and all its requests have ended.
    fn detached(&self);

    /// Another front end waits until the one that is connected leaves.
    fn front_end_waits(&self) {}

    /// The rings start; `start` tells a reset from a pause. No request of the view is in
    /// flight, and no ring starts before this returns.
    fn rings_start(&self, start: Start);

    /// A ring runs from now on.
    fn ring_started(&self) {}

    /// A ring has stopped, and all its requests have ended. `migrating`: while the front end
    /// had all writes to the guest's memory logged, as it does in a migration.
    fn ring_stopped(&self, migrating: bool) {
        let _ = migrating;
    }

    /// The guest turns its write cache on or off. This returns when a daemon that is started
    /// after this one would know; it may take time.
    ///
    /// # Errors
    /// Why it cannot be recorded. The cache is not turned off then.
    fn write_cache(&self, on: bool) -> Result<(), String> {
        let _ = on;
        Ok(())
    }

    /// Some requests take long.
    fn slow(&self, slow: SlowRequests) {
        let _ = slow;
    }

    /// Requests failed since the last such report.
    fn failed(&self, failed: FailedRequests) {
        let _ = failed;
    }

    /// None takes long any more; `lasted`: how long the oldest was under way.
    fn slow_ended(&self, lasted: Duration) {
        let _ = lasted;
    }
}
