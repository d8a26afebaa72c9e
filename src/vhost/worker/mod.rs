//! The thread that serves one started queue.

mod answer;
mod polling;
mod run;
mod sleeper;
#[cfg(any(
    feature = "fuzzing",
    all(test, not(any(feature = "loom", feature = "shuttle")))
))]
mod stepped;
mod take;
mod wait;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use virtio_queue::{Queue, QueueT};

use super::counters::QueueCounters;
use super::dirty_log::UsedLog;
use super::inflight::InflightQueue;
use super::memory::WatchedMap;
use super::notify::{Call, Notifier};
use super::ring::{Ring, Taken};
use super::slots::Slots;
use super::tally::Tally;
use super::view_log::ViewLog;
use super::watcher::Marks;
use super::{Backend, Requests};
use crate::engine::{Command, Weight};
use crate::event_flag::EventFlag;
use crate::io::{Disk, Done, Errno};
use crate::sandbox::{self, Kind};
use crate::sync::mpsc;
use crate::sync::thread::{self, JoinHandle};
use crate::virtio_blk::{BlkRequest, ConfigSpace, Refused};
use polling::Polling;
use sleeper::{Combining, Sleeper};
#[cfg(any(
    feature = "fuzzing",
    all(test, not(any(feature = "loom", feature = "shuttle")))
))]
pub use stepped::SteppedWorker;

/// What a worker needs to serve a queue.
pub struct QueueSetup {
    /// View and queue, for messages.
    pub name: String,
    pub queue: Queue,
    pub memory: Arc<WatchedMap>,
    pub kick: Arc<File>,
    pub call: Arc<Call>,
    pub err: Option<Arc<Notifier>>,
    pub space: Arc<ConfigSpace>,
    /// Writes must be durable when they complete.
    pub write_through: Arc<AtomicBool>,
    pub backend: Arc<dyn Backend>,
    /// The queue's part of the front end's in-flight region.
    pub inflight: Option<InflightQueue>,
    /// Set when the view ends.
    pub leave: Arc<EventFlag>,
    pub log: Arc<ViewLog>,
    /// Where requests are marked as under way.
    pub marks: Option<Arc<Marks>>,
    /// Where requests are counted; no other worker writes there.
    pub counters: Arc<QueueCounters>,
    pub dirty: LogSetting,
}

/// What a worker logs while its guest is migrated.
#[derive(Clone, Debug, Default)]
pub struct LogSetting {
    /// Writes to the guest's memory. That they are logged is a setting of the memory; this
    /// is for those that do not go through it.
    pub writes: bool,
    /// Writes to the used ring, at an address of their own.
    pub used: Option<UsedLog>,
}

/// A change of the setting, and where to say that it is in force.
type LogOrder = (LogSetting, mpsc::SyncSender<()>);

/// A started queue.
pub struct QueueWorker {
    stop: Arc<EventFlag>,
    wake: Arc<EventFlag>,
    log_orders: mpsc::Sender<LogOrder>,
    hung_up: Arc<AtomicBool>,
    thread: JoinHandle<Stopped>,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The available index at which the ring must continue.
    pub position: u16,
    /// Requests were taken and not answered: the next worker of the ring has to carry
    /// them out.
    pub undone: bool,
}

impl QueueWorker {
    /// Starts the thread and waits until it has its disk and its port.
    pub fn start(setup: QueueSetup) -> io::Result<Self> {
        let (stop, wake) = (Arc::new(EventFlag::new()?), Arc::new(EventFlag::new()?));
        let hung_up = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let (log_orders, orders) = mpsc::channel();
        let theirs = Signals {
            stop: Arc::clone(&stop),
            wake: Arc::clone(&wake),
            log_orders: orders,
            hung_up: Arc::clone(&hung_up),
        };
        let builder = thread::Builder::new().name("queue".into());
        let thread = builder.spawn(move || {
            let position = setup.queue_position();
            match Worker::new(setup, theirs) {
                Ok(worker) => {
                    // It has its disk and its port.
                    sandbox::thread(Kind::Queue);
                    let _ = ready.send(Ok(()));
                    worker.run()
                }
                Err(e) => {
                    let _ = ready.send(Err(e));
                    Stopped {
                        position,
                        undone: false,
                    }
                }
            }
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self {
                stop,
                wake,
                log_orders,
                hung_up,
                thread,
            }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::Error::other("the queue's thread died")),
        }
    }

    /// Changes what is logged, between two rounds of the worker, without a wait for its
    /// requests. Returns what to wait for: a message says that the setting is in force, and
    /// that everything which was written before may be read; a worker that has ended closes
    /// the channel.
    pub fn log(&self, setting: LogSetting) -> mpsc::Receiver<()> {
        let (done, in_force) = mpsc::sync_channel(1);
        if self.log_orders.send((setting, done)).is_ok() {
            self.wake.set();
        }
        in_force
    }

    /// From now on no new requests are taken; those that were taken are finished.
    pub fn request_stop(&self) {
        self.stop.set();
    }

    /// The front end has disconnected: from now on the worker neither answers nor signals,
    /// because the next back end may already have read the ring. Requests that need not
    /// be finished are left undone.
    pub fn hang_up(&self) {
        self.hung_up.store(true, Ordering::Release);
        self.request_stop();
    }

    /// Waits until all requests are on the used ring, or left undone (see [`Stopped`]).
    pub fn stop(self) -> io::Result<Stopped> {
        self.request_stop();
        self.thread
            .join()
            .map_err(|_| io::Error::other("the queue's thread died"))
    }
}

impl QueueSetup {
    fn queue_position(&self) -> u16 {
        self.queue.next_avail()
    }
}

/// How others reach a worker.
struct Signals {
    stop: Arc<EventFlag>,
    wake: Arc<EventFlag>,
    log_orders: mpsc::Receiver<LogOrder>,
    hung_up: Arc<AtomicBool>,
}

/// A chain from the ring, with what it takes.
type Chain = (Taken, Result<BlkRequest, Refused>, Weight);

/// A worker on its thread.
struct Worker {
    name: String,
    ring: Ring,
    broken: bool,
    slots: Slots,
    port: Box<dyn Requests>,
    disk: Box<dyn Disk>,
    space: Arc<ConfigSpace>,
    write_through: Arc<AtomicBool>,
    call: Arc<Call>,
    err: Option<Arc<Notifier>>,
    sleeper: Sleeper,
    combining: Combining,
    polling: Polling,
    wake: Arc<EventFlag>,
    log_orders: mpsc::Receiver<LogOrder>,
    /// Writes to the guest's memory are logged.
    logs_writes: bool,
    // Kept open, because epoll drops a descriptor when it is closed.
    _kick: Arc<File>,
    stop: Arc<EventFlag>,
    leave: Arc<EventFlag>,
    log: Arc<ViewLog>,
    marks: Option<Arc<Marks>>,
    tally: Tally,
    hung_up: Arc<AtomicBool>,
    /// Heads that an earlier worker took and did not give back.
    replay: Vec<u16>,
    stopping: bool,
    /// When `leave` was first seen.
    leaving_since: Option<Instant>,
    /// Operations that matter only to their request are no longer carried out.
    abandoning: bool,
    /// Requests are no longer answered.
    silent: bool,
    undone: bool,
    /// Accesses to memory that was gone, of all front ends, when this was last looked at.
    faults: usize,
    /// Operations were submitted since the last reap, or there are completions to reap.
    submitted: bool,
    /// Of the operations since none was under way, for the report of a request that fails.
    last_error: Option<Errno>,
    // Kept between rounds for their allocation only.
    commands: Vec<Command>,
    done: Vec<Done>,
    taken: Vec<Chain>,
    /// Bytes that the requests under way count for.
    held: u64,
    /// Kicks without a request since the start.
    empty_kicks: u8,
    /// There was a request, so that the guest's memory is the one that is here.
    memory_is_shared: bool,
}
