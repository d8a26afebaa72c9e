//! Descriptors that are kept for the daemon itself.
//!
//! A front end passes descriptors and starts queues that need some. The last ones that the
//! process may have are for control connections, for COWs, and for the record of an
//! invalidation, for which writes to the origin wait; so no front end gets them. The
//! kernel gives out the lowest free number, so the number of a new descriptor shows how
//! many are left.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::event_flag::EventFlag;

/// Descriptors that are kept, or a quarter of all if that is less.
const RESERVE: u64 = 128;

/// Raises the limit for this process as far as it may be raised.
///
/// # Errors
/// The kernel refuses.
pub fn raise_limit() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Refuses a descriptor of a front end that is among the last ones.
///
/// # Errors
/// It is.
pub fn check(descriptor: &impl AsFd) -> io::Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Ok(());
    };
    let reserve = RESERVE.min(limit / 4);
    let number = u64::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or(0);
    if number < limit - reserve {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the process may have {limit} descriptors, and the last {reserve} are kept for the daemon \
         itself; raise its limit (ulimit -Hn, LimitNOFILE= of systemd), or let guests have fewer \
         queues"
    )))
}

/// As [`check`], for what was opened last.
///
/// # Errors
/// The last descriptors have begun to be used.
pub fn check_room() -> io::Result<()> {
    check(&EventFlag::new()?)
}
