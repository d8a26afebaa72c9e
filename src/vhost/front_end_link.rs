//! The connection to the front end that is served now, as the control side sees it.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Holds the connection while it is served.
#[derive(Default)]
pub struct FrontEndLink(Mutex<Option<Arc<UnixStream>>>);

impl FrontEndLink {
    /// `None`: it is not served any more.
    pub fn set(&self, stream: Option<Arc<UnixStream>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }

    /// Whether no front end is at the other end any more, although its session may still
    /// be ending: the thread that serves it has perhaps not run since.
    pub fn has_hung_up(&self) -> bool {
        // The lock is kept meanwhile, so that this never delays a hang-up of ours.
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = link.as_deref() else {
            return true;
        };
        let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
        let now = Timespec::default();
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_end_that_has_closed_its_end_is_seen_at_once() {
        let link = FrontEndLink::default();
        assert!(link.has_hung_up());
        let (ours, theirs) = UnixStream::pair().unwrap();
        link.set(Some(Arc::new(ours)));
        assert!(!link.has_hung_up());
        drop(theirs);
        assert!(link.has_hung_up());
        link.set(None);
        assert!(link.has_hung_up());
    }
}
