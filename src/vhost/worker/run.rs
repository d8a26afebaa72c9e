//! The loop of a worker: take requests, carry out commands, reap completions, publish
//! the answers, and sleep; and how the loop ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tracing::{error, warn};

use super::{QueueSetup, Stopped, Worker};
use crate::event_flag::EventFlag;
use crate::mutation::{self, Mutation};
use crate::sync;
use crate::vhost::guest::MemoryHold;
use crate::vhost::ring::Ring;
use crate::vhost::slots::Slots;

const KICK: u64 = 0;
const DISK: u64 = 1;
const WAKE: u64 = 2;
const STOP: u64 = 3;
const LEAVE: u64 = 4;

/// How long the requests under way may take when the daemon ends. Those that are not done
/// then are left to the next daemon.
const GRACE: Duration = Duration::from_millis(300);

/// A drain that takes this long is logged.
const SLOW_DRAIN_SECONDS: i64 = 5;

impl Worker {
    pub(super) fn new(
        setup: QueueSetup,
        stop: Arc<EventFlag>,
        hung_up: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let hold = Arc::new(MemoryHold { map: setup.memory });
        let (ring, replay) = Ring::new(setup.queue, hold, setup.call, setup.inflight)
            .inspect_err(|_| setup.err.iter().for_each(|err| err.notify()))
            .map_err(io::Error::other)?;
        let wake = Arc::new(EventFlag::new()?);
        let disk = setup.backend.disk()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Edge-triggered: the counter need not be read back at every kick.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &setup.kick, EventData::new_u64(KICK), edge)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), edge)?;
        epoll::add(&epoll, &setup.leave, EventData::new_u64(LEAVE), edge)?;
        if let Some(fd) = disk.event_fd() {
            epoll::add(&epoll, fd, EventData::new_u64(DISK), EventFlags::IN)?;
        }
        let slots = Slots::new(ring.size());
        let count = usize::from(ring.size());
        // Last, because nothing may fail once a port is open.
        let port = setup.backend.port(count, wake.clone());
        Ok(Self {
            name: setup.name,
            broken: false,
            slots,
            port,
            disk,
            space: setup.space,
            write_through: setup.write_through,
            err: setup.err,
            epoll,
            wake,
            _kick: setup.kick,
            stop,
            leave: setup.leave,
            hung_up,
            replay,
            stopping: false,
            leaving_since: None,
            abandoning: false,
            silent: false,
            undone: false,
            woken: false,
            submitted: false,
            commands: Vec::with_capacity(count),
            done: Vec::with_capacity(count),
            taken: Vec::with_capacity(count),
            events: Vec::with_capacity(4),
            ring,
        })
    }

    pub(super) fn run(mut self) -> Stopped {
        self.replay();
        // An interrupt and a kick may have been lost with the previous back end, so the
        // driver is signalled and the ring is read without a kick.
        self.ring.signal();
        loop {
            if self.step() {
                continue;
            }
            if self.stopping && (self.is_drained() || mutation::is(Mutation::StopNotDrained)) {
                return Stopped {
                    position: self.ring.next_avail(),
                    undone: self.undone,
                };
            }
            if !self.stopping && !self.broken {
                match self.ring.arm() {
                    Ok(false) => {}
                    Ok(true) => {
                        let disarmed = self.ring.disarm();
                        self.check(disarmed);
                        continue;
                    }
                    Err(fault) => self.fault(&fault),
                }
            }
            self.wait();
        }
    }

    /// One round; false if there was nothing to do.
    ///
    /// 1. take all available heads, 2. carry out commands, 3. submit operations to the
    ///    kernel and pass completions to the engine, 4. publish all answers at once.
    fn step(&mut self) -> bool {
        self.look_for_stop();
        let mut progress = !self.stopping && !self.broken && self.take_heads() > 0;
        // Checked in every round, because a busy queue never waits for events.
        if std::mem::take(&mut self.woken) || self.wake.is_set() {
            if mutation::is(Mutation::WakeClearedLate) {
                self.port.take_inbox(&mut self.commands);
                self.wake.clear();
            } else {
                self.wake.clear();
                self.port.take_inbox(&mut self.commands);
            }
        }
        progress |= !self.commands.is_empty();
        self.execute();
        while self.submitted || self.disk.in_flight() > 0 || !self.done.is_empty() {
            self.submitted = false;
            self.disk.reap(false, &mut self.done);
            if self.done.is_empty() {
                break;
            }
            progress = true;
            for done in self.done.drain(..) {
                self.port
                    .io_done(done.tag, done.result, done.buffer, &mut self.commands);
            }
            self.execute();
            if !self.submitted {
                break;
            }
        }
        if !self.silent {
            let published = self.ring.publish();
            self.check(published);
        }
        progress
    }

    /// A stop: no new requests are taken, and those that were taken are finished. The end
    /// of the view: the same, but after [`GRACE`] what need not be finished is abandoned.
    /// A hang-up: the same at once, and without answers.
    fn look_for_stop(&mut self) {
        let leaving = self.leave.is_set();
        self.stopping = leaving || self.stop.is_set();
        if !self.stopping || self.abandoning {
            return;
        }
        let hung_up = self.hung_up.load(Ordering::Acquire);
        self.silent = hung_up;
        let late = leaving && self.grace_left().is_zero();
        if hung_up || late {
            self.abandoning = true;
            self.port.abandon();
            self.disk.abandon(self.port.abandonable());
        }
    }

    fn grace_left(&mut self) -> Duration {
        let since = *self.leaving_since.get_or_insert_with(Instant::now);
        GRACE.saturating_sub(since.elapsed())
    }

    fn is_drained(&self) -> bool {
        self.slots.is_empty()
            && self.disk.in_flight() == 0
            && self.commands.is_empty()
            && self.done.is_empty()
            && self.port.is_idle()
    }

    /// Sleeps until a kick, a completion, the engine or a stop.
    fn wait(&mut self) {
        if self.disk.in_flight() > 0 && self.disk.event_fd().is_none() {
            // A disk that a test drives completes operations on this call.
            self.disk.reap(true, &mut self.done);
        }
        let timeout = if !self.done.is_empty() {
            Some(Timespec::default())
        } else if self.leaving_since.is_some() && !self.abandoning {
            Timespec::try_from(self.grace_left()).ok()
        } else if self.stopping {
            Some(Timespec {
                tv_sec: SLOW_DRAIN_SECONDS,
                tv_nsec: 0,
            })
        } else {
            None
        };
        self.events.clear();
        let waited = sync::wait(timeout, |timeout| {
            epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout)
        });
        match waited {
            Ok(0) if self.leaving_since.is_some() && !self.abandoning => {}
            Ok(0) if self.stopping && self.done.is_empty() => warn!(
                "{}: stopping takes long: {} requests are under way, {} operations of them on disks",
                self.name,
                self.slots.taken(),
                self.disk.in_flight()
            ),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => error!("{}: epoll: {e}", self.name),
        }
        let mut kicked = false;
        for event in &self.events {
            match event.data.u64() {
                KICK => kicked = true,
                WAKE => self.woken = true,
                // Also with nothing in flight: the descriptor can become readable after its
                // completion was taken, and only a reap clears it.
                DISK => self.submitted = true,
                // The next round checks the stop flags.
                _ => {}
            }
        }
        if kicked && !self.broken {
            let disarmed = self.ring.disarm();
            self.check(disarmed);
        }
    }
}
