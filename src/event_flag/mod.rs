//! An eventfd as a flag: the only event descriptor that this program makes itself.

#[cfg(all(test, feature = "loom"))]
mod loom_tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::mutation::{self, Mutation};
use crate::sync::atomic::{AtomicBool, Ordering};

/// A flag that any thread may set. One thread waits for it with poll, epoll or io_uring,
/// and may also look at it without a system call.
#[derive(Debug)]
pub struct EventFlag {
    fd: OwnedFd,
    set: AtomicBool,
}

impl EventFlag {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            fd: eventfd(0, flags)?,
            set: AtomicBool::new(false),
        })
    }

    /// Makes the descriptor readable until [`Self::clear`]. Allowed in a signal
    /// handler.
    pub fn set(&self) {
        // If the flag was set before, the thread that set it has written, or will.
        if !self.set.swap(true, Ordering::AcqRel) {
            // This fails only if the counter is full, and then it is readable.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Whether [`Self::set`] was called since the last [`Self::clear`]. What the
    /// kernel writes to the descriptor does not show here.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// 1. The counter becomes 0, 2. the flag becomes false, 3. the caller looks for
    ///    the reason of the wake-up. 3 sees what preceded a `set` before 2; a later
    ///    `set` makes the descriptor readable again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        self.lower();
    }

    /// As [`Self::clear`], without a system call, for a thread that is woken by each
    /// write to the descriptor and not by its being readable (edge-triggered). The counter
    /// keeps growing; it takes centuries to fill.
    pub fn lower(&self) {
        if mutation::is(Mutation::SignalClearedByStore) {
            self.set.store(false, Ordering::SeqCst);
        } else {
            // A store would not synchronise with the `set` whose flag it replaces.
            self.set.swap(false, Ordering::AcqRel);
        }
    }
}

impl AsFd for EventFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_flag_that_is_set_while_it_is_cleared_is_not_lost() {
        let flag = Arc::new(EventFlag::new().unwrap());
        let posted = Arc::new(AtomicU64::new(0));
        let (theirs, count) = (Arc::clone(&flag), Arc::clone(&posted));
        let rounds = 20_000;
        let poster = std::thread::spawn(move || {
            for _ in 0..rounds {
                count.fetch_add(1, Ordering::SeqCst);
                theirs.set();
            }
        });
        let timeout = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        while posted.load(Ordering::SeqCst) < rounds {
            let mut fds = [PollFd::new(&*flag, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "a wake-up was lost");
            flag.clear();
        }
        poster.join().unwrap();
    }
}
