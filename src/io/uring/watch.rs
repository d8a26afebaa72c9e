//! Other threads' events on a ring: descriptors that it watches for its owner, and
//! signals that it sends.
#![allow(unsafe_code)] // Named file: hands pointers to the kernel.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::Watched;

/// User data from here on belongs to this file: this for signals, and the next ones for
/// the watched descriptors.
const FIRST: u64 = 1 << 63;
/// Most descriptors.
const MOST: usize = 8;

/// What a signal adds.
static ONE: [u8; 8] = 1_u64.to_ne_bytes();

/// A watched descriptor has a poll in the kernel that reports every write to it, so its
/// counter need not be read. The kernel may end a poll (when completions do not find
/// room); it is started again then, and reports what was written meanwhile.
pub(super) struct Watches {
    events: Vec<Watched>,
    /// Bit n: the n-th has no poll in the kernel.
    unarmed: u32,
    /// Bit n: the n-th was written to.
    happened: u32,
    /// Descriptors that entries in the submission queue name.
    signals: Vec<Arc<File>>,
}

impl Watches {
    pub(super) fn new(mut events: Vec<Watched>) -> Self {
        events.truncate(MOST);
        Self {
            unarmed: (1 << events.len()) - 1,
            happened: 0,
            signals: Vec::new(),
            events,
        }
    }

    /// Starts the polls that the kernel does not have. False if there was no room for
    /// them in the submission queue, or if an event has happened: do not sleep.
    pub(super) fn arm(&mut self, ring: &mut IoUring) -> bool {
        if self.unarmed != 0 {
            for (n, event) in (0_u32..).zip(&self.events) {
                if self.unarmed & 1 << n == 0 {
                    continue;
                }
                let fd = types::Fd(event.as_fd().as_raw_fd());
                let poll = opcode::PollAdd::new(fd, POLL_IN).multi(true).build();
                if !push(ring, &poll.user_data(FIRST + 1 + u64::from(n))) {
                    return false;
                }
                self.unarmed &= !(1 << n);
            }
        }
        self.happened == 0
    }

    /// Takes a completion if it is one of this file.
    pub(super) fn take(&mut self, cqe: &cqueue::Entry) -> bool {
        let Some(number) = cqe.user_data().checked_sub(FIRST) else {
            return false;
        };
        // 0: a signal that failed because the counter is full, and then it is readable.
        if let Some(n) = number.checked_sub(1) {
            self.happened |= 1 << n;
            // What cannot be polled is not tried again.
            let failed = cqe.result() < 0 && cqe.result() != -libc::ENOMEM;
            if !cqueue::more(cqe.flags()) && !failed {
                self.unarmed |= 1 << n;
            }
        }
        true
    }

    /// The events since the last call.
    pub(super) fn happened(&mut self) -> u32 {
        std::mem::take(&mut self.happened)
    }

    /// See [`super::Disk::signal`].
    pub(super) fn signal(&mut self, ring: &mut IoUring, event: &Arc<File>) -> bool {
        if ring.submission().is_empty() {
            self.signals.clear();
        }
        let fd = types::Fd(event.as_raw_fd());
        let write = opcode::Write::new(fd, ONE.as_ptr(), 8)
            .offset(u64::MAX)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(FIRST);
        let sent = push(ring, &write);
        if sent {
            self.signals.push(Arc::clone(event));
        }
        sent
    }
}

#[allow(clippy::cast_sign_loss, reason = "a bit of a mask")]
const POLL_IN: u32 = libc::POLLIN as u32;

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: an entry of this file names a descriptor, which `events` (for a poll) or
    // `signals` (until it has been submitted) holds open, and memory that is static.
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// Whether the kernel has completions, or work that leads to some, as far as shared memory
/// shows.
pub(super) fn has_news(ring: &mut IoUring) -> bool {
    !ring.completion().is_empty() || ring.submission().taskrun()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
