//! A set of descriptors that a thread sleeps on: an epoll instance.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use epoll::{ControlOptions, Event, Events};
use rustix::event::Timespec;

use crate::sync;

/// Most descriptors of a set.
const MOST: usize = 8;

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It is readable.
    Readable,
    /// It can be written to.
    Writable,
    /// Something has made it readable since the last time.
    Written,
}

/// See the module documentation.
#[derive(Debug)]
pub struct WaitSet {
    epoll: RawFd,
}

impl WaitSet {
    /// An empty set.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(true)?;
        Ok(Self { epoll })
    }

    /// Adds a descriptor with a number of the caller's choice below 32. It leaves the set
    /// when it is closed.
    ///
    /// # Errors
    /// It cannot be waited for, or there are too many.
    pub fn add(&self, number: u32, descriptor: &impl AsFd, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Readable => Events::EPOLLIN,
            Interest::Writable => Events::EPOLLOUT,
            Interest::Written => Events::EPOLLIN | Events::EPOLLET,
        };
        let event = Event::new(events, number.into());
        let descriptor = descriptor.as_fd().as_raw_fd();
        epoll::ctl(self.epoll, ControlOptions::EPOLL_CTL_ADD, descriptor, event)
    }

    /// Adds another set, which has an event as long as one of its descriptors has.
    ///
    /// # Errors
    /// As of [`Self::add`].
    pub fn add_set(&self, number: u32, other: &Self) -> io::Result<()> {
        let event = Event::new(Events::EPOLLIN, number.into());
        let ctl = ControlOptions::EPOLL_CTL_ADD;
        epoll::ctl(self.epoll, ctl, other.epoll, event)
    }

    /// Removes a descriptor that stays open.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        let event = Event { events: 0, data: 0 };
        let ctl = ControlOptions::EPOLL_CTL_DEL;
        epoll::ctl(self.epoll, ctl, descriptor.as_fd().as_raw_fd(), event)
    }

    /// Sleeps until there is an event or `timeout` has passed. Returns a bit for each
    /// descriptor that has one (also its end, or an error); none after `timeout`.
    ///
    /// # Errors
    /// As of `epoll_wait`; a signal among them.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<u32> {
        let mut events = [Event { events: 0, data: 0 }; MOST];
        let timeout = timeout.map(|time| {
            Timespec::try_from(time).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let count = sync::wait(timeout, |timeout| {
            epoll::wait(self.epoll, milliseconds(timeout), &mut events)
        })?;
        let happened = events.iter().take(count);
        Ok(happened.fold(0, |bits, event| {
            let number = event.data;
            bits | u32::try_from(number).map_or(0, |n| 1_u32.checked_shl(n).unwrap_or(0))
        }))
    }
}

/// Rounded up, so that a thread does not wake just before its time and spin.
fn milliseconds(timeout: Option<&Timespec>) -> i32 {
    let Some(Timespec { tv_sec, tv_nsec }) = timeout else {
        return -1;
    };
    let part = (tv_nsec + 999_999) / 1_000_000;
    let all = tv_sec.saturating_mul(1000).saturating_add(part);
    i32::try_from(all).unwrap_or(i32::MAX)
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        let _ = epoll::close(self.epoll);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_flag::EventFlag;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_descriptor_that_stays_readable_is_reported_once_per_write_or_each_time() {
        let set = WaitSet::new().unwrap();
        let (edge, level) = (EventFlag::new().unwrap(), EventFlag::new().unwrap());
        set.add(3, &edge, Interest::Written).unwrap();
        set.add(31, &level, Interest::Readable).unwrap();
        assert_eq!(set.wait(NOW).unwrap(), 0);
        edge.set();
        level.set();
        assert_eq!(set.wait(None).unwrap(), 1 << 3 | 1 << 31);
        assert_eq!(set.wait(None).unwrap(), 1 << 31);
        level.clear();
        assert_eq!(set.wait(NOW).unwrap(), 0);
        edge.lower();
        edge.set();
        assert_eq!(set.wait(None).unwrap(), 1 << 3);
    }

    #[test]
    fn a_set_in_a_set_has_an_event_until_that_is_taken() {
        let (outer, inner) = (WaitSet::new().unwrap(), WaitSet::new().unwrap());
        let flag = EventFlag::new().unwrap();
        inner.add(1, &flag, Interest::Written).unwrap();
        outer.add_set(7, &inner).unwrap();
        assert_eq!(outer.wait(NOW).unwrap(), 0);
        flag.set();
        assert_eq!(outer.wait(None).unwrap(), 1 << 7);
        assert_eq!(inner.wait(NOW).unwrap(), 1 << 1);
        assert_eq!(outer.wait(NOW).unwrap(), 0);
        inner.remove(&flag).unwrap();
        flag.lower();
        flag.set();
        assert_eq!(outer.wait(NOW).unwrap(), 0);
    }

    #[test]
    fn a_wait_never_ends_before_its_time() {
        let time = |tv_sec, tv_nsec| milliseconds(Some(&Timespec { tv_sec, tv_nsec }));
        assert_eq!(milliseconds(None), -1);
        assert_eq!((time(0, 0), time(0, 1), time(0, 1_000_000)), (0, 1, 1));
        assert_eq!((time(5, 1_000_001), time(i64::MAX, 0)), (5002, i32::MAX));
    }
}
