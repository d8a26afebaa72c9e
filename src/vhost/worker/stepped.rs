//! A worker without a thread, for the fuzz targets: its owner carries out round after
//! round, and sees the guest's memory between them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{QueueSetup, Signals, Stopped, Worker};
use crate::event_flag::EventFlag;
use crate::sync::mpsc;

/// A worker that its owner drives.
pub struct SteppedWorker(Worker);

impl SteppedWorker {
    /// # Errors
    /// The ring cannot be taken over as it is.
    pub fn new(setup: QueueSetup) -> io::Result<Self> {
        let flag = || EventFlag::new().map(Arc::new);
        // Nobody changes what is logged.
        let (_, log_orders) = mpsc::channel();
        let signals = Signals {
            stop: flag()?,
            wake: flag()?,
            log_orders,
            hung_up: Arc::default(),
        };
        Worker::new(setup, signals).map(Self)
    }

    /// One round. If there is nothing else to do, an operation of the disk is waited for, or
    /// kicks are asked for. False: the worker would sleep.
    pub fn round(&mut self) -> bool {
        let worker = &mut self.0;
        if worker.step() {
            return true;
        }
        if worker.disk.in_flight() > 0 {
            worker.disk.reap(true, &mut worker.done);
            return true;
        }
        if worker.stopping || worker.broken || worker.is_full() {
            return false;
        }
        match worker.ring.arm() {
            Ok(more) => more,
            Err(fault) => {
                worker.fault(&fault);
                false
            }
        }
    }

    /// A kick has come.
    pub fn kick(&mut self) {
        if !self.0.broken {
            let disarmed = self.0.ring.disarm();
            self.0.check(disarmed);
        }
    }

    /// No new requests are taken from now on.
    pub fn request_stop(&self) {
        self.0.stop.set();
    }

    /// As [`Self::request_stop`], and nothing is answered any more.
    pub fn hang_up(&self) {
        self.0.hung_up.store(true, Ordering::Release);
        self.0.stop.set();
    }

    pub fn is_hung_up(&self) -> bool {
        self.0.hung_up.load(Ordering::Acquire)
    }

    /// How it ended, once it has after a [`Self::request_stop`].
    pub fn stopped(&self) -> Option<Stopped> {
        (self.0.stopping && self.0.is_drained()).then(|| Stopped {
            position: self.0.ring.next_avail(),
            undone: self.0.undone,
        })
    }

    /// Heads of an earlier worker that are still to be taken, the next one first.
    pub fn replay(&self) -> &[u16] {
        &self.0.replay
    }

    /// The available index of the next head.
    pub fn next_avail(&self) -> u16 {
        self.0.ring.next_avail()
    }

    /// The ring is no longer served.
    pub const fn is_broken(&self) -> bool {
        self.0.broken
    }

    /// Bytes that the requests under way count for.
    pub const fn held(&self) -> u64 {
        self.0.held
    }
}
