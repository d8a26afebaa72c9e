//! Disk I/O: submit and reap with owned operations.
//!
//! The rules of the [`Disk`] trait hold for every implementation (io_uring,
//! blocking threads, simulated) and one battery of tests runs over all:
//!
//! 1. An accepted operation completes exactly once, and never inside `submit`.
//! 2. Its buffer (and with it the guest memory it points at) is owned by the
//!    disk until the completion gives it back.
//! 3. Short transfers are continued inside; a completion is all or an error.
//! 4. Completions come in any order. `Flush` covers the writes whose completion
//!    was reaped before the flush was submitted, and nothing else.
//! 5. Dropping a disk waits for what the kernel still owns.

mod adopt;
mod allocate;
pub mod blocking;
mod buffer;
mod claim;
#[cfg(test)]
mod conformance;
mod cut;
mod devices;
mod file;
mod found;
mod head;
mod identity;
mod kernel_use;
mod known_zeroing;
mod limits;
mod lock;
mod locking;
mod loop_device;
mod open_disk;
mod open_error;
mod other_names;
pub mod sim;
mod space;
mod sparse;
mod sqe;
mod threads;
mod transfer;
mod uring;
mod zeroing;

pub use adopt::identity_of_open;
pub use buffer::{BUFFER_ALIGN, Buffer, GuestBuffer, GuestSlice, OwnedBuffer};
pub use claim::Claim;
pub use devices::Devices;
pub use file::{BlockFile, Direct, OpenOptions};
pub use found::{Found, Links, by_descriptor, open_regular};
pub use identity::{Identity, identity_of};
pub use limits::Limits;
pub use lock::{Held, Lock};
pub use locking::hardly_wait_for_locks;
pub use open_disk::{IoEngine, open_disk};
pub use open_error::OpenError;
pub use threads::ThreadDisk;
pub use uring::UringDisk;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Identifies an open device within one process. The number of a removed device is
/// not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// A value of the submitter's choice that comes back with the completion.
pub type Tag = u64;

/// An operation. Offsets and lengths are in bytes and must be multiples of the
/// device's logical block size; the length is the buffer's.
#[derive(Debug)]
pub struct Op {
    pub tag: Tag,
    pub device: DeviceId,
    pub kind: OpKind,
}

#[derive(Debug)]
pub enum OpKind {
    Read {
        offset: u64,
        buffer: Buffer,
    },
    /// `durable`: complete only when the data would survive power loss (FUA).
    Write {
        offset: u64,
        buffer: Buffer,
        durable: bool,
    },
    /// Makes everything durable that was written, and reaped, before.
    Flush,
    /// Zeroes `len` bytes without data, in the cheapest way that the device supports.
    /// For a flush it is a write like any other.
    Zero {
        offset: u64,
        len: u64,
        how: Zeroing,
    },
}

/// The effect of an [`OpKind::Zero`] on its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// It reads as zeroes and keeps its space.
    Keep,
    /// It reads as zeroes; its space is given back where the device supports that and
    /// it is permitted.
    Unmap,
    /// A hint to give its space back: each block reads as zeroes or as before.
    Discard,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Done {
    pub tag: Tag,
    pub result: Result<(), Errno>,
    /// The buffer that the operation carried (`None` where it carries none).
    pub buffer: Option<Buffer>,
}

/// An errno as the kernel returned it; never `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::CUT {
            return f.write_str("the file was cut: it is shorter than what it held");
        }
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl Errno {
    /// Not one of the kernel's numbers: a file became shorter than what was written to
    /// it, or than it was when it was opened.
    pub const CUT: Self = Self(10_001);
    pub const EIO: Self = Self(5);
    pub const EINVAL: Self = Self(22);
    pub const ENOSPC: Self = Self(28);
    pub const ENODEV: Self = Self(19);
    pub const ECANCELED: Self = Self(125);
}

/// One thread's access to all devices.
pub trait Disk {
    /// Accepts an operation. An operation that cannot be carried out (unknown
    /// device, misaligned) completes with an error through [`Self::reap`].
    fn submit(&mut self, op: Op);

    /// Hands what was submitted to the kernel and moves finished operations to
    /// `done`. With `wait`, blocks until at least one is there; returns at once
    /// if nothing is in flight.
    fn reap(&mut self, wait: bool, done: &mut Vec<Done>);

    /// Transfers and zeroing that `which` selects need not be finished: those that have
    /// not begun end with ECANCELED, the others at the next point where they can be
    /// stopped. A disk may finish them nevertheless.
    fn abandon(&mut self, which: fn(Tag) -> bool) {
        let _ = which;
    }

    /// Operations accepted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// A descriptor that is readable when `reap` would return something.
    /// `None` for disks that are driven by their test.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// The owner will sleep in [`Self::wait`] only, which also ends when one of `events`
    /// (at most 8 event descriptors) is written to. False: this disk cannot do that, and
    /// the owner has to wait for [`Self::event_fd`].
    fn watch(&mut self, events: Vec<Watched>) -> bool {
        drop(events);
        false
    }

    /// Hands what was submitted to the kernel and sleeps until an operation has finished,
    /// an event has happened or `timeout` has passed; moves what has finished to `done`.
    /// Returns the events since the last call: bit n for the n-th of [`Self::watch`]. May
    /// end early.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> u32 {
        let _ = (timeout, done);
        0
    }

    /// Whether [`Self::reap`] would find something new, as far as that can be seen without
    /// a system call.
    fn has_news(&mut self) -> bool {
        false
    }

    /// Adds one to an event descriptor that does not block, at the next call that enters
    /// the kernel. False: this disk cannot do that.
    fn signal(&mut self, event: &Arc<File>) -> bool {
        let _ = event;
        false
    }
}

/// An event descriptor that a disk watches.
pub type Watched = Arc<dyn AsFd + Send + Sync>;
