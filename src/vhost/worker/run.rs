//! The loop of a worker: take requests, carry out commands, reap completions, publish
//! the answers, and sleep; and how the loop ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::polling::Polling;
use super::sleeper::{Combining, Sleeper};
use super::{QueueSetup, Signals, Stopped, Worker};
use crate::mutation::{self, Mutation};
use crate::vhost::descriptors;
use crate::vhost::guest::MemoryHold;
use crate::vhost::ring::Ring;
use crate::vhost::slots::Slots;
use crate::vhost::tally::Tally;
use crate::vhost::vanishing;

/// How long the requests under way may take when the daemon ends. Those that are not done
/// then are left to the next daemon.
const GRACE: Duration = Duration::from_millis(300);

impl Worker {
    pub(super) fn new(setup: QueueSetup, signals: Signals) -> io::Result<Self> {
        let Signals {
            stop,
            wake,
            log_orders,
            hung_up,
        } = signals;
        let hold = Arc::new(MemoryHold { map: setup.memory });
        let (mut ring, replay) = Ring::new(setup.queue, hold, setup.inflight)
            .inspect_err(|_| setup.err.iter().for_each(|err| err.notify()))
            .map_err(io::Error::other)?;
        ring.set_used_log(setup.dirty.used);
        let mut disk = setup.backend.disk()?;
        let flags = [&wake, &stop, &setup.leave];
        let sleeper = Sleeper::new(&mut *disk, setup.kick.clone(), flags)?;
        let slots = Slots::new(ring.size());
        let count = usize::from(ring.size());
        descriptors::check_room()?;
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
            call: setup.call,
            err: setup.err,
            sleeper,
            combining: Combining::new(),
            polling: Polling::new(setup.backend.polling()),
            wake,
            log_orders,
            logs_writes: setup.dirty.writes,
            _kick: setup.kick,
            stop,
            leave: setup.leave,
            log: setup.log,
            marks: setup.marks,
            tally: Tally::new(setup.counters, count),
            hung_up,
            replay,
            stopping: false,
            leaving_since: None,
            abandoning: false,
            silent: false,
            undone: false,
            // So that the first look is a real one: the ring was read already.
            faults: 0,
            submitted: false,
            last_error: None,
            commands: Vec::with_capacity(count),
            done: Vec::with_capacity(count),
            taken: Vec::with_capacity(count),
            held: 0,
            empty_kicks: 0,
            memory_is_shared: false,
            ring,
        })
    }

    pub(super) fn run(mut self) -> Stopped {
        if !self.replay.is_empty() {
            let (name, count) = (&self.name, self.replay.len());
            self.log.info(format_args!(
                "{name}: {count} requests go on that were under way when the last back end ended"
            ));
        }
        // An interrupt and a kick may have been lost with the previous back end, so the
        // driver is signalled and the ring is read without a kick.
        self.call.notify();
        loop {
            if self.step() {
                continue;
            }
            if self.stopping && (self.is_drained() || mutation::is(Mutation::StopNotDrained)) {
                if self.disk.in_flight() == 0 {
                    // The last signal may still wait for a call to the kernel.
                    self.disk.reap(false, &mut self.done);
                }
                return Stopped {
                    position: self.ring.next_avail(),
                    undone: self.undone,
                };
            }
            // What is on the ring waits until requests under way have ended.
            if self.is_full() {
                self.wait();
                continue;
            }
            if self.poll() {
                continue;
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
    /// 1. take available heads, 2. carry out commands, 3. submit operations to the
    ///    kernel (if that is not left to the sleep) and pass completions to the engine,
    ///    4. count and publish all answers at once.
    pub(super) fn step(&mut self) -> bool {
        self.look_for_stop();
        let mut progress = self.take() > 0;
        // Checked in every round, because a busy queue never waits for events.
        if self.wake.is_set() {
            if mutation::is(Mutation::WakeClearedLate) {
                self.port.take_inbox(&mut self.commands);
                self.wake.lower();
            } else {
                self.wake.lower();
                self.port.take_inbox(&mut self.commands);
            }
            self.take_log_orders();
        }
        progress |= !self.commands.is_empty();
        self.execute();
        while self.submitted || self.disk.in_flight() > 0 || !self.done.is_empty() {
            let submitted = self.submitted;
            if submitted && self.done.is_empty() && self.combines() {
                break;
            }
            self.submitted = false;
            self.disk.reap(false, &mut self.done);
            if submitted {
                self.combining.submitted(!self.done.is_empty());
            }
            if self.done.is_empty() {
                break;
            }
            progress = true;
            for done in self.done.drain(..) {
                if let Err(errno) = done.result {
                    self.last_error = Some(errno);
                }
                self.port
                    .io_done(done.tag, done.result, done.buffer, &mut self.commands);
            }
            self.execute();
            if !self.submitted {
                break;
            }
        }
        if self.disk.in_flight() == 0 {
            self.last_error = None;
        }
        self.look_for_memory();
        self.tally.count_answered(!self.silent, self.slots.taken());
        if !self.silent {
            match self.ring.publish() {
                Ok(true) => self.signal(),
                Ok(false) => {}
                Err(fault) => self.fault(&fault),
            }
        }
        progress
    }

    /// Changes what is logged. Answers that are not published yet were written before, so
    /// whoever gets the message sees them.
    fn take_log_orders(&mut self) {
        while let Ok((setting, done)) = self.log_orders.try_recv() {
            self.logs_writes = setting.writes;
            self.ring.set_used_log(setting.used);
            let _ = done.send(());
        }
    }

    /// Takes requests, as far as that is permitted: first those that an earlier worker left
    /// undone, which a stop waits for.
    fn take(&mut self) -> usize {
        if self.abandoning || self.broken {
            self.undone |= !self.replay.is_empty();
            self.replay.clear();
        }
        if self.broken || self.is_full() {
            0
        } else if !self.replay.is_empty() {
            self.take_replayed()
        } else if self.stopping {
            0
        } else {
            self.take_heads()
        }
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
        self.silent |= hung_up;
        let late = leaving && self.grace_left().is_zero();
        if hung_up || late {
            self.abandoning = true;
            self.port.abandon();
            self.disk.abandon(self.port.abandonable());
        }
    }

    /// If the guest's memory is gone, nothing that is read there is the guest's: no request
    /// is taken or answered any more. The view's thread ends the session.
    pub(super) fn look_for_memory(&mut self) {
        let faults = vanishing::faults();
        if faults != self.faults {
            self.faults = faults;
            if self.ring.hold().map.is_gone() {
                self.broken = true;
                self.silent = true;
                self.undone = true;
            }
        }
    }

    pub(super) fn grace_left(&mut self) -> Duration {
        let since = *self.leaving_since.get_or_insert_with(Instant::now);
        GRACE.saturating_sub(since.elapsed())
    }

    pub(super) fn is_drained(&self) -> bool {
        self.slots.is_empty()
            && self.replay.is_empty()
            && self.disk.in_flight() == 0
            && self.commands.is_empty()
            && self.done.is_empty()
            && self.port.is_idle()
    }
}
