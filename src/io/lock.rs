//! Locks that keep two writers off one image, of the kind that QEMU and other users of
//! images take and respect: open-file-description locks, which end with the last descriptor
//! of the open file, however its process ends.
//!
//! QEMU says with each byte of a small range what it does with an image (from byte 100 on) and
//! what nobody else may do meanwhile (from byte 200 on). It takes read locks on these bytes, which
//! never conflict with one another, and then looks whether somebody's lock contradicts its own.
#![allow(unsafe_code)] // Named file: F_OFD_SETLK has no safe wrapper.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The use of the file that other processes may make meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// None, except for readers that accept that the content changes while they read.
    Exclusive,
    /// Other readers.
    Shared,
    /// No lock: the caller accepts that the content changes while it reads.
    None,
    /// No lock either, but it fails if another process has one that would conflict with an
    /// exclusive one (with a shared one, if the file is opened read-only).
    Look,
    /// The latter.
    LookShared,
}

/// What somebody's lock says. In a sentence about who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Writing,
    Resizing,
    NoReaders,
    NoWriters,
    NoResizing,
    /// A lock that does not say what it is for.
    Unspecific,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writing => "has a lock for writing on it",
            Self::Resizing => "has a lock for resizing on it",
            Self::NoReaders => "has a lock against readers on it",
            Self::NoWriters => "has a lock against writers on it",
            Self::NoResizing => "has a lock against resizing on it",
            Self::Unspecific => "has a lock on it",
        })
    }
}

/// Bytes of a file: the first one, and how many (0: to the end, however far the file grows).
type Bytes = (i64, i64);

const READS: Bytes = (100, 1);
const WRITES: Bytes = (101, 1);
const RESIZES: Bytes = (103, 1);
const NO_READERS: Bytes = (200, 1);
const NO_WRITERS: Bytes = (201, 1);
const NO_RESIZING: Bytes = (203, 1);

/// A reader shares the image with readers only.
const READER: [Bytes; 3] = [READS, NO_WRITERS, NO_RESIZING];
/// A writer reads, writes and resizes, and nobody else writes or resizes. Readers that accept
/// changes (`qemu-img -U`) do not conflict with it.
const WRITER: [Bytes; 5] = [READS, WRITES, RESIZES, NO_WRITERS, NO_RESIZING];
/// What QEMU leaves alone. A writer has these bytes to itself: they decide between two daemons
/// that start at once, and keep out programs that lock all of a file.
const OUTSIDE: [Bytes; 3] = [(0, 100), (164, 36), (264, 0)];

/// What conflicts with a reader, and what it means.
const AGAINST_READER: [(Bytes, Held); 3] = [
    (WRITES, Held::Writing),
    (RESIZES, Held::Resizing),
    (NO_READERS, Held::NoReaders),
];
/// What conflicts with a writer besides.
const AGAINST_WRITER: [(Bytes, Held); 5] = [
    (NO_WRITERS, Held::NoWriters),
    (NO_RESIZING, Held::NoResizing),
    (OUTSIDE[0], Held::Unspecific),
    (OUTSIDE[1], Held::Unspecific),
    (OUTSIDE[2], Held::Unspecific),
];

/// Somebody's lock that conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) held: Held,
    /// The process, where the kernel names it: for locks that belong to a process instead of
    /// an open file.
    pub(super) pid: Option<u32>,
}

fn flock(kind: i32, (start, len): Bytes) -> libc::flock {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap_or(i16::MAX);
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = start;
    lock.l_len = len;
    lock
}

/// Sets a lock on each of `all`, or gives it back. False: another one conflicts; then
/// some may be set.
fn set(fd: BorrowedFd<'_>, kind: i32, all: &[Bytes]) -> io::Result<bool> {
    for bytes in all {
        let lock = flock(kind, *bytes);
        // SAFETY: the descriptor is open for the time of the call, and the kernel
        // only reads `lock`, which lives through it.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == -1 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Ok(false),
                _ => Err(error),
            };
        }
    }
    Ok(true)
}

/// The lock that another open file has on one of `bytes`.
fn look(fd: BorrowedFd<'_>, bytes: Bytes, held: Held) -> io::Result<Option<Conflict>> {
    let mut lock = flock(libc::F_WRLCK, bytes);
    // SAFETY: as in `set`; the kernel also writes `lock`, which nothing else uses.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(Conflict {
        held: if has_meaning(&lock) {
            held
        } else {
            Held::Unspecific
        },
        pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0),
    }))
}

/// A lock that reaches beyond the bytes that have a meaning is that of a program which does not
/// know them. The kernel makes one lock of neighbours.
const fn has_meaning(lock: &libc::flock) -> bool {
    let Some(end) = lock.l_start.checked_add(lock.l_len) else {
        return false;
    };
    let of_one_kind = end <= 164 || lock.l_start >= 200;
    lock.l_len > 0 && lock.l_start >= 100 && end <= 264 && of_one_kind
}

fn look_for(fd: BorrowedFd<'_>, all: &[(Bytes, Held)]) -> io::Result<Option<Conflict>> {
    let mut looks = all.iter().map(|(bytes, held)| look(fd, *bytes, *held));
    looks
        .find(|found| !matches!(found, Ok(None)))
        .unwrap_or(Ok(None))
}

/// Somebody's lock that conflicts with a shared one of this open file.
pub(super) fn against_reader(fd: BorrowedFd<'_>) -> io::Result<Option<Conflict>> {
    look_for(fd, &AGAINST_READER)
}

/// Somebody's lock that conflicts with an exclusive one of this open file.
pub(super) fn against_writer(fd: BorrowedFd<'_>) -> io::Result<Option<Conflict>> {
    Ok(match look_for(fd, &AGAINST_READER)? {
        None => look_for(fd, &AGAINST_WRITER)?,
        found => found,
    })
}

/// Says that this open file is read, and written by nobody; false: somebody has all of it.
pub(super) fn say_reader(fd: BorrowedFd<'_>) -> io::Result<bool> {
    set(fd, libc::F_RDLCK, &READER)
}

/// Says that this open file is written, and by nobody else; false: somebody has all of it.
pub(super) fn say_writer(fd: BorrowedFd<'_>) -> io::Result<bool> {
    set(fd, libc::F_RDLCK, &WRITER)
}

/// Says no longer what [`say_writer`] or [`say_reader`] says.
pub(super) fn take_back(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::F_UNLCK, &WRITER).map(drop)
}

/// Takes what only one open file can have; false: another one has it.
pub(super) fn take_outside(fd: BorrowedFd<'_>) -> io::Result<bool> {
    set(fd, libc::F_WRLCK, &OUTSIDE)
}

/// Ends all locks of this open file.
pub(super) fn unlock(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::F_UNLCK, &[(0, 0)]).map(drop)
}
