//! The front end's messages. One handler lives as long as one connection and
//! is used by the view's thread only.
//!
//! A refusal is always [`Error::ReqHandlerError`]: the connection continues if the front
//! end gets it as an answer, see [`super::connection`].

mod dirty;
mod messages;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use tracing::debug;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error, Result};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::back_channel::BackChannel;
use super::counters::ViewCounters;
use super::inflight::{InflightQueue, InflightRegion};
use super::memory::MemoryTable;
use super::queue::QueueState;
use super::reset::{Driver, ResetDetector};
use super::view_log::ViewLog;
use super::watcher::{WatchedView, Watcher};
use super::worker::{QueueSetup, QueueWorker};
use super::{Backend, ViewConfig, ViewHooks};
use crate::event_flag::EventFlag;
use crate::virtio_blk::ConfigSpace;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | EVENT_IDX;
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// Asks for a log of all writes to the guest's memory.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// What a view needs to serve connections, one after the other.
#[derive(Clone)]
pub struct ViewContext {
    pub config: Arc<ViewConfig>,
    pub space: Arc<ConfigSpace>,
    pub backend: Arc<dyn Backend>,
    pub hooks: Arc<dyn ViewHooks>,
    pub back_channel: Arc<BackChannel>,
    /// Set when the view ends.
    pub leave: Arc<EventFlag>,
    pub log: Arc<ViewLog>,
    /// `None`: nobody looks for requests that take long.
    pub watched: Option<Arc<WatchedView>>,
    pub counters: Arc<ViewCounters>,
    /// The last front end is known to have disconnected by itself.
    pub last_left: bool,
}

pub struct Handler {
    view: ViewContext,
    /// The front end's record of requests under way.
    inflight: Option<InflightRegion>,
    /// A worker left requests undone: the state of the rings is not final for the front
    /// end.
    undone: bool,
    memory: MemoryTable,
    queues: Vec<QueueState>,
    features: u64,
    protocol_features: u64,
    write_through: Arc<AtomicBool>,
    detector: ResetDetector,
    /// A ring was refused that a guest may set up.
    guests_fault: bool,
    /// The log has what was negotiated.
    described: bool,
}

impl Handler {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(view: ViewContext) -> io::Result<Self> {
        let count = usize::from(view.config.max_queues);
        let detector = ResetDetector::new(count, view.last_left);
        let memory = MemoryTable::new(view.config.any_memory)?;
        Ok(Self {
            view,
            inflight: None,
            undone: false,
            memory,
            queues: (0..count).map(|_| QueueState::new()).collect(),
            features: 0,
            protocol_features: 0,
            write_through: Arc::new(AtomicBool::new(true)),
            detector,
            guests_fault: false,
            described: false,
        })
    }

    /// Becomes readable when the guest's memory is gone.
    pub fn memory_gone(&self) -> Arc<EventFlag> {
        Arc::clone(self.memory.gone())
    }

    /// Whether the front end gets an answer when a message is refused. QEMU before 7.2
    /// negotiates protocol features and does not acknowledge the bit for them.
    pub const fn reply_ack(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Finishes everything and stops all rings.
    pub fn stop_all(&mut self) {
        self.pause();
        for queue in &mut self.queues {
            queue.kick = None;
            queue.enabled = false;
        }
    }

    /// The front end has disconnected: ends all workers without further signals to the
    /// driver.
    pub fn hang_up(&mut self) {
        for worker in self.queues.iter().filter_map(|queue| queue.worker.as_ref()) {
            worker.hang_up();
        }
        self.stop_all();
    }

    fn offered(&self) -> u64 {
        self.view.space.device().features() | RING_FEATURES | PROTOCOL | LOG_ALL
    }

    fn queue(&mut self, index: usize) -> Result<&mut QueueState> {
        let count = self.queues.len();
        self.queues
            .get_mut(index)
            .ok_or_else(|| refusal(format!("queue {index} does not exist, there are {count}")))
    }

    /// Stops the queue's worker, makes the change, and starts the worker again if the
    /// queue's new settings say so.
    fn change(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut QueueState) -> Result<()>,
    ) -> Result<()> {
        self.queue(index)?;
        self.stop(index);
        let changed = self.queue(index).and_then(change);
        let started = self.start(index);
        changed.and(started)
    }

    /// Ends the queue's worker, if it has one, after all its requests have ended.
    fn stop(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        let Some(worker) = queue.worker.take() else {
            return;
        };
        match worker.stop() {
            Ok(stopped) => {
                queue.base = stopped.position;
                self.undone |= stopped.undone;
                self.detector.stopped(index, stopped.position);
            }
            Err(e) => {
                self.detector.stopped(index, queue.base);
                self.warn(format_args!("queue {index}: {e}"));
            }
        }
        self.view.hooks.ring_stopped(self.logs_writes());
    }

    /// Starts the queue's worker if it should run and does not run yet.
    fn start(&mut self, index: usize) -> Result<()> {
        let Some(queue) = self.queues.get(index) else {
            return Ok(());
        };
        if !queue.should_run() || queue.worker.is_some() {
            return Ok(());
        }
        self.ring_starts(index);
        self.spawn(index).map_err(|e| {
            self.warn(format_args!("queue {index} cannot start: {e}"));
            Error::ReqHandlerError(e)
        })
    }

    /// A front end gave a ring what it cannot have. The ring does not run with what it had
    /// before: the guest means another one.
    fn is_unusable(&mut self, index: u32, forget: impl FnOnce(&mut QueueState)) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.stop(index);
        if let Some(queue) = self.queues.get_mut(index) {
            forget(queue);
            self.is_broken(index);
        }
    }

    /// The addresses of a ring are not aligned.
    pub fn has_unaligned_addresses(&mut self, index: u32) {
        self.is_unusable(index, |queue| queue.addresses = None);
    }

    /// The guest's ring cannot be served, which VRING_ERR says.
    fn is_broken(&mut self, index: usize) {
        self.guests_fault = true;
        let queue = self.queues.get(index);
        if let Some(err) = queue.and_then(|queue| queue.err.as_ref()) {
            err.notify();
        }
    }

    /// Whether the last message was refused because of what a guest's driver chooses.
    pub fn take_guests_fault(&mut self) -> bool {
        std::mem::take(&mut self.guests_fault)
    }

    /// 1. All rings are stopped and drained, 2. the daemon is notified of the start, 3. the
    ///    rings start. If only a later ring shows that a new driver has begun, the rings
    ///    before it are stopped again for 2.
    fn ring_starts(&mut self, index: usize) {
        let base = self.queues.get(index).map_or(0, |queue| queue.base);
        let some_run = self.queues.iter().any(|q| q.worker.is_some());
        let start = if some_run {
            self.detector.another_starts(index, base)
        } else {
            let set_up = self.queues.iter().enumerate();
            let set_up = set_up.filter(|(_, queue)| queue.is_set_up());
            let rings: Vec<_> = set_up.map(|(index, queue)| (index, queue.base)).collect();
            let driver = Driver {
                // A migration may begin and end between two starts.
                features: self.features & !LOG_ALL,
                is_program: self.memory.is_the_front_ends_own(),
            };
            Some(self.detector.starting(rings, driver))
        };
        let Some(start) = start else { return };
        self.describe_session();
        debug!("view {}: rings start: {start:?}", self.view.config.name);
        let running: Vec<usize> = (0..self.queues.len())
            .filter(|i| self.queues.get(*i).is_some_and(|q| q.worker.is_some()))
            .collect();
        self.pause();
        self.view.hooks.rings_start(start);
        // A volume that was awaited until now may say that the cache is off.
        self.update_write_through();
        for index in running {
            self.go_on(index);
        }
    }

    fn spawn(&mut self, index: usize) -> io::Result<()> {
        let map = self.memory.map();
        let event_idx = self.features & EVENT_IDX != 0;
        let inflight = self.inflight_of(index);
        let dirty = self.log_setting(index)?;
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(());
        };
        let Some(kick) = queue.kick.clone() else {
            return Ok(());
        };
        let ring = match queue.build(&self.memory, &map, event_idx) {
            Ok(ring) => ring,
            Err(e) => {
                self.is_broken(index);
                return Err(e);
            }
        };
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(());
        };
        let (name, size) = (&self.view.config.name, queue.size);
        debug!("view {name}: queue {index} runs, with {size} entries");
        let watched = self.view.watched.clone();
        let marks = watched.map(|view| Watcher::get().watch(view, queue.size));
        queue.worker = Some(QueueWorker::start(QueueSetup {
            name: format!("view {} queue {index}", self.view.config.name),
            queue: ring,
            memory: map,
            kick,
            call: Arc::clone(&queue.call),
            err: queue.err.clone(),
            space: Arc::clone(&self.view.space),
            write_through: Arc::clone(&self.write_through),
            backend: Arc::clone(&self.view.backend),
            inflight,
            leave: Arc::clone(&self.view.leave),
            log: Arc::clone(&self.view.log),
            marks,
            counters: self.view.counters.queue(index),
            dirty,
        })?);
        self.view.hooks.ring_started();
        Ok(())
    }

    /// The queue's record of requests under way. A ring that is larger than its record runs
    /// without one: nothing but the record of an earlier start of the ring could be in it.
    fn inflight_of(&self, index: usize) -> Option<InflightQueue> {
        let record = self.inflight.as_ref()?.queue(index)?;
        let ring = self.queues.get(index)?.size;
        if record.size() >= ring {
            return Some(record);
        }
        self.warn(format_args!(
            "queue {index} has a ring of {ring} entries, and the front end's in-flight region has \
             room for {}; the queue runs without it",
            record.size()
        ));
        None
    }

    /// Ends all workers, all at the same time; the queues stay as they are set.
    fn pause(&mut self) {
        for worker in self.queues.iter().filter_map(|queue| queue.worker.as_ref()) {
            worker.request_stop();
        }
        for index in 0..self.queues.len() {
            self.stop(index);
        }
    }

    /// Starts all workers that should run, after a [`Self::pause`] that the guest does not
    /// notice. A ring that no longer fits into the memory waits for the next change.
    fn resume(&mut self) {
        for index in 0..self.queues.len() {
            if self.queues.get(index).is_some_and(QueueState::should_run) {
                self.go_on(index);
            }
        }
    }

    fn go_on(&mut self, index: usize) {
        if let Err(e) = self.spawn(index) {
            self.warn(format_args!("queue {index} cannot go on: {e}"));
        }
    }

    /// Changes the memory. 1. Workers end, so that nothing points into the old memory,
    /// 2. the table changes, 3. new workers start with the new table.
    fn change_memory(
        &mut self,
        change: impl FnOnce(&mut MemoryTable) -> io::Result<()>,
    ) -> Result<()> {
        self.pause();
        let result = change(&mut self.memory).map_err(Error::ReqHandlerError);
        self.resume();
        if let Err(e) = &result {
            self.warn(format_args!("{e}"));
        }
        result
    }

    /// A request was refused, and the front end knows it.
    pub fn refused(&self, error: &dyn fmt::Display) {
        self.warn(format_args!("refused a front end's request: {error}"));
    }

    fn warn(&self, line: fmt::Arguments<'_>) {
        let name = &self.view.config.name;
        self.view.log.warn(format_args!("view {name}: {line}"));
    }

    /// The guest turns its write cache on or off.
    ///
    /// Off: 1 recorded for the next daemon → 2 all requests that are taken from now on are
    /// durable when they complete → 3 the front end gets its answer. A guest that has it does
    /// not flush any more, whoever serves it. On: 2 first.
    fn set_write_cache(&self, on: bool) -> Result<()> {
        let space = &self.view.space;
        if on == space.writeback() {
            return Ok(());
        }
        if !on {
            let recorded = self.view.hooks.write_cache(false);
            recorded.map_err(|e| refusal(format!("the write cache stays on: {e}")))?;
        }
        space.set_writeback(on);
        self.update_write_through();
        if on && let Err(e) = self.view.hooks.write_cache(true) {
            // Then a daemon that is started later makes each write durable.
            self.warn(format_args!(
                "the write cache is on, which cannot be recorded: {e}"
            ));
        }
        Ok(())
    }

    fn update_write_through(&self) {
        let write_through = self.view.space.write_through(self.features);
        self.write_through.store(write_through, Ordering::Relaxed);
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.stop_all();
    }
}

fn refusal(message: String) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, message))
}
