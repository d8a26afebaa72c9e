//! The place where a worker sleeps, and what it leaves to the call that sleeps.

use std::io;
use std::sync::Arc;

use crate::event_flag::EventFlag;
use crate::io::{Disk, Watched};
use crate::wait_set::{Interest, WaitSet};

/// Bits of what ends a sleep. The first ones are in the order of [`Sleeper::new`].
pub(super) const KICK: u32 = 1;
pub(super) const DISK: u32 = 1 << 4;

/// Submissions that are combined with a sleep until it is tried again whether the disk
/// completes at once.
const COMBINED: u32 = 64;

/// Where a worker sleeps.
pub(super) enum Sleeper {
    /// In its disk, which watches the worker's events too.
    Disk,
    /// In a set of descriptors, the disk's among them if it has one.
    Set(WaitSet),
}

impl Sleeper {
    /// What ends a sleep: a kick, the engine (`wake`), a stop, the end of the view. Their
    /// descriptors stay readable; each write to one counts.
    pub(super) fn new(
        disk: &mut dyn Disk,
        kick: Watched,
        flags: [&Arc<EventFlag>; 3],
    ) -> io::Result<Self> {
        let mut events = vec![kick];
        for flag in flags {
            events.push(Arc::<EventFlag>::clone(flag));
        }
        if disk.watch(events.clone()) {
            return Ok(Self::Disk);
        }
        let set = WaitSet::new()?;
        for (number, event) in (0..).zip(&events) {
            set.add(number, event, Interest::Written)?;
        }
        if let Some(fd) = disk.event_fd() {
            set.add(DISK.trailing_zeros(), &fd, Interest::Readable)?;
        }
        Ok(Self::Set(set))
    }
}

/// Whether operations go to the kernel with the call that sleeps. That saves a call if
/// they take time, but a disk that completes at once (memory, page cache) would make the
/// worker ask for kicks that it does not need.
pub(super) struct Combining {
    /// The last operations that were submitted by themselves completed at once.
    prompt: bool,
    /// Combined submissions until the next one by itself.
    left: u32,
}

impl Combining {
    pub(super) const fn new() -> Self {
        Self {
            prompt: true,
            left: 0,
        }
    }

    pub(super) const fn is_worth_it(&self) -> bool {
        !self.prompt && self.left > 0
    }

    /// Operations were submitted with the sleep.
    pub(super) const fn combined(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Operations were submitted by themselves; `prompt`: some have completed.
    pub(super) const fn submitted(&mut self, prompt: bool) {
        self.prompt = prompt;
        self.left = COMBINED;
    }
}
