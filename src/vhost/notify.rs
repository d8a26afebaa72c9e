//! The front end's event descriptors.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};

use super::descriptors;
use crate::sync::{Mutex, MutexGuard};

/// Refuses what is not an event descriptor: writing to a full pipe or to a
/// regular file would make a worker wait on the front end.
pub fn check_eventfd(file: &File) -> io::Result<()> {
    descriptors::check(file)?;
    let mode = rustix::fs::fstat(file)?.st_mode;
    // Descriptors without a file behind them, such as eventfds, have no type.
    match FileType::from_raw_mode(mode) {
        FileType::Unknown => Ok(()),
        kind => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a ring's notifications need an eventfd, not {}",
                super::backing::kind_of(kind)
            ),
        )),
    }
}

/// An eventfd of the front end that we write to.
#[derive(Clone, Debug)]
pub struct Notifier {
    file: Arc<File>,
    /// A write blocks if the counter is full.
    blocking: bool,
}

impl Notifier {
    pub fn new(file: File) -> io::Result<Self> {
        check_eventfd(&file)?;
        let blocking = !rustix::fs::fcntl_getfl(&file)?.contains(OFlags::NONBLOCK);
        let file = Arc::new(file);
        Ok(Self { file, blocking })
    }

    /// Adds one. A full counter is readable already.
    pub fn notify(&self) {
        if self.blocking {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            if poll(&mut fds, Some(&Timespec::default())) != Ok(1) {
                return;
            }
        }
        let _ = rustix::io::write(&self.file, &1_u64.to_ne_bytes());
    }

    /// The descriptor, if a write to it never blocks.
    pub fn nonblocking(&self) -> Option<&Arc<File>> {
        (!self.blocking).then_some(&self.file)
    }
}

/// A ring's call descriptor. The front end may exchange it while the ring runs
/// (a guest masks its interrupt), so a lock, shared by one worker and the
/// view's thread only.
#[derive(Debug, Default)]
pub struct Call(Mutex<Option<Notifier>>);

impl Call {
    pub fn set(&self, notifier: Option<Notifier>) {
        *self.lock() = notifier;
    }

    pub fn notify(&self) {
        let notifier = self.lock();
        if let Some(notifier) = &*notifier {
            notifier.notify();
        }
    }

    /// The present descriptor. A caller may write to it later: whoever exchanges it signals
    /// the new one, so that the driver looks at what was published before.
    pub fn current(&self) -> Option<Notifier> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Notifier>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn event(flags: EventfdFlags) -> File {
        File::from(eventfd(0, flags).unwrap())
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
