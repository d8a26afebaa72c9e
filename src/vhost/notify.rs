//! Event descriptors: the front end's and our own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FileType, OFlags};

use crate::engine::Wake;
use crate::mutation::{self, Mutation};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Our own event: set by any thread, waited for with epoll by one, which may
/// also look without a system call.
#[derive(Debug)]
pub struct Signal {
    fd: OwnedFd,
    set: AtomicBool,
}

impl Signal {
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            fd: eventfd(0, flags)?,
            set: AtomicBool::new(false),
        })
    }

    pub fn set(&self) {
        // Who set it before has written, or is about to.
        if !self.set.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is full: then it is readable anyway.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// 1. The counter back to 0, 2. the flag back to false, 3. the caller looks
    ///    for what it was woken for. A `set` before 2 is seen by 3, a later one
    ///    wakes again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        if mutation::is(Mutation::SignalClearedByStore) {
            self.set.store(false, Ordering::SeqCst);
        } else {
            // Not a store: what the `set` told of that left it must be seen.
            self.set.swap(false, Ordering::AcqRel);
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wake for Signal {
    fn wake(&self) {
        self.set();
    }
}

/// Refuses what is not an event descriptor: writing to a full pipe or to a
/// regular file would make a worker wait on the front end.
pub fn check_eventfd(file: &File) -> io::Result<()> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    // Descriptors without a file behind them, such as eventfds, have no type.
    match FileType::from_raw_mode(mode) {
        FileType::Unknown => Ok(()),
        kind => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a ring's notifications need an eventfd, not {}",
                super::memory::kind_of(kind)
            ),
        )),
    }
}

/// An eventfd of the front end that we write to.
#[derive(Debug)]
pub struct Notifier {
    file: File,
    /// A write could block, if somebody filled the counter.
    blocking: bool,
}

impl Notifier {
    pub fn new(file: File) -> io::Result<Self> {
        check_eventfd(&file)?;
        let blocking = !rustix::fs::fcntl_getfl(&file)?.contains(OFlags::NONBLOCK);
        Ok(Self { file, blocking })
    }

    /// Adds one. A full counter needs no more to be seen.
    pub fn notify(&self) {
        if self.blocking {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            if poll(&mut fds, Some(&Timespec::default())) != Ok(1) {
                return;
            }
        }
        let _ = rustix::io::write(&self.file, &1_u64.to_ne_bytes());
    }
}

/// A ring's call descriptor. The front end may exchange it while the ring runs
/// (a guest masks its interrupt), so a lock, shared by one worker and the
/// view's thread only.
#[derive(Debug, Default)]
pub struct Call(Mutex<Option<Notifier>>);

impl Call {
    pub fn set(&self, notifier: Option<Notifier>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = notifier;
    }

    pub fn notify(&self) {
        let notifier = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notifier) = &*notifier {
            notifier.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::OwnedFd;

    fn event(flags: EventfdFlags) -> File {
        File::from(eventfd(0, flags).unwrap())
    }

    #[test]
    fn a_signal_set_while_it_is_cleared_is_not_lost() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicU64;
        let signal = Arc::new(Signal::new().unwrap());
        let posted = Arc::new(AtomicU64::new(0));
        let (theirs, count) = (Arc::clone(&signal), Arc::clone(&posted));
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
            let mut fds = [PollFd::new(&*signal, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "a wake-up was lost");
            signal.clear();
        }
        poster.join().unwrap();
    }

    #[test]
    fn only_event_descriptors_are_taken_for_notifications() {
        assert!(check_eventfd(&event(EventfdFlags::empty())).is_ok());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for other in [
            File::from(read),
            File::from(write),
            tempfile::tempfile().unwrap(),
            File::from(OwnedFd::from(socket)),
        ] {
            let error = check_eventfd(&other).unwrap_err();
            assert!(error.to_string().contains("need an eventfd"), "{error}");
        }
    }

    #[test]
    fn a_full_counter_does_not_block_the_notifier() {
        let file = event(EventfdFlags::empty());
        rustix::io::write(&file, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        Notifier::new(file).unwrap().notify();
    }
}
