//! How a worker waits: it polls for a short time, and then sleeps in one place.

use std::io;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::Worker;
use super::sleeper::{DISK, KICK, Sleeper};

/// A drain that takes this long is logged.
const SLOW_DRAIN: Duration = Duration::from_secs(5);

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 16;

/// Kicks of a new ring that is empty until that is said. Front ends make one when a ring starts.
const EMPTY_KICKS: u8 = 2;

impl Worker {
    /// Whether to leave what was submitted to the call that sleeps.
    pub(super) fn combines(&self) -> bool {
        matches!(self.sleeper, Sleeper::Disk)
            && self.combining.is_worth_it()
            && self.polling.budget().is_zero()
    }

    /// Signals the driver, if need be with the next call to the kernel.
    pub(super) fn signal(&mut self) {
        let Some(notifier) = self.call.current() else {
            return;
        };
        // Such a call comes soon, unless the worker polls or ends.
        let soon = self.polling.budget().is_zero() && !self.stopping;
        let combined = soon
            && notifier
                .nonblocking()
                .is_some_and(|event| self.disk.signal(event));
        if !combined {
            notifier.notify();
        }
    }

    /// Polls while that pays off; true: there is something to do.
    pub(super) fn poll(&mut self) -> bool {
        let budget = self.polling.budget();
        if budget.is_zero() || self.stopping || self.broken {
            return false;
        }
        let disarmed = self.ring.disarm();
        self.check(disarmed);
        let start = Instant::now();
        while start.elapsed() < budget {
            for _ in 0..LOOKS {
                let news = self.disk.in_flight() > 0 && self.disk.has_news();
                self.submitted |= news;
                if news || self.ring.has_more() || self.has_order() {
                    self.polling.hit();
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// The engine or a stop wants the worker's attention.
    fn has_order(&self) -> bool {
        self.wake.is_set() || self.stop.is_set() || self.leave.is_set()
    }

    /// Sleeps until a kick, a completion, the engine or a stop.
    pub(super) fn wait(&mut self) {
        if self.disk.in_flight() > 0 && self.disk.event_fd().is_none() {
            // A disk that a test drives completes operations on this call.
            self.disk.reap(true, &mut self.done);
        }
        let timeout = if !self.done.is_empty() {
            Some(Duration::ZERO)
        } else if self.leaving_since.is_some() && !self.abandoning {
            Some(self.grace_left())
        } else if self.stopping {
            Some(SLOW_DRAIN)
        } else {
            None
        };
        self.polling.sleeps();
        let start = self.stopping.then(Instant::now);
        let waited = match &self.sleeper {
            Sleeper::Disk => {
                if std::mem::take(&mut self.submitted) {
                    self.combining.combined();
                }
                Ok(self.disk.wait(timeout, &mut self.done))
            }
            Sleeper::Set(set) => set.wait(timeout),
        };
        let slept = start.map_or(Duration::ZERO, |start| start.elapsed());
        match waited {
            Ok(events) => self.woken(events),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => error!("{}: epoll: {e}", self.name),
        }
        let idle = self.done.is_empty() && !self.submitted;
        let draining = self.stopping && (self.leaving_since.is_none() || self.abandoning);
        if draining && idle && slept >= SLOW_DRAIN {
            warn!(
                "{}: stopping takes long: {} requests are under way, {} operations of them on disks",
                self.name,
                self.slots.taken(),
                self.disk.in_flight()
            );
        }
    }

    /// The next round looks for what the engine and a stop want.
    fn woken(&mut self, events: u32) {
        // Also with nothing in flight: the descriptor can become readable after its
        // completion was taken, and only a reap clears it.
        self.submitted |= events & DISK != 0;
        if events & KICK != 0 && !self.broken {
            let disarmed = self.ring.disarm();
            self.check(disarmed);
            self.look_for_empty_kicks();
        }
    }

    /// Kicks of a ring that nothing was ever on. More than the front end's own mean that the guest
    /// writes its ring to memory that is not the one here. A guest that is only slow, or was
    /// paused, kicks after it has written.
    fn look_for_empty_kicks(&mut self) {
        if self.empty_kicks < EMPTY_KICKS && self.ring.next_avail() == 0 && !self.ring.has_more() {
            self.empty_kicks += 1;
            if self.empty_kicks == EMPTY_KICKS {
                self.log.doubt_memory(format_args!(
                    "{}: the guest says that there are requests, but its ring is empty here",
                    self.name
                ));
            }
        }
    }

    /// Requests were found on the ring, so that it is where the guest writes.
    pub(super) fn found_requests(&mut self) {
        if !self.memory_is_shared {
            self.memory_is_shared = true;
            self.empty_kicks = EMPTY_KICKS;
            self.log.memory_is_shared();
        }
    }
}
