//! Locks that keep two writers off one image: open-file-description locks, of
//! the kind that QEMU and other users of images take and respect.
#![allow(unsafe_code)] // Named file: F_OFD_SETLK has no safe wrapper.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The use of the file that other processes may make meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// None: neither readers nor writers.
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

/// QEMU takes a read lock on byte 100 (101, 103) while it reads (writes, resizes) an
/// image, and one on byte 201 (203) if no other process may write (resize) it. It takes
/// its own locks first and then looks for conflicting ones. These bytes are those of a
/// reader that permits neither; QEMU's own readers do not conflict with it. The lock of
/// a writer covers all bytes and therefore conflicts with each of these.
const READER: [i64; 3] = [100, 201, 203];
const OTHERS_WRITING: [i64; 2] = [101, 103];

fn flock(kind: i32, start: i64, len: i64) -> libc::flock {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap_or(i16::MAX);
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = start;
    lock.l_len = len;
    lock
}

/// Takes a lock, or fails with EAGAIN.
fn set(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let lock = flock(kind, start, len);
    // SAFETY: the descriptor is open for the time of the call, and the kernel
    // only reads `lock`, which lives through it.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Fails with EAGAIN if another process has any lock on the bytes.
fn look(fd: BorrowedFd<'_>, start: i64, len: i64) -> io::Result<()> {
    let mut lock = flock(libc::F_WRLCK, start, len);
    // SAFETY: as in `set`; the kernel also writes `lock`, which nothing else uses.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else if i32::from(lock.l_type) == libc::F_UNLCK {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

fn refuse_writers(fd: BorrowedFd<'_>) -> io::Result<()> {
    OTHERS_WRITING
        .iter()
        .try_for_each(|byte| look(fd, *byte, 1))
}

/// Tries to take the lock. `Ok(false)`: another process has one that conflicts.
/// A file system without locks counts as success, as it does for QEMU.
fn take(fd: BorrowedFd<'_>, lock: Lock) -> io::Result<bool> {
    let result = match lock {
        Lock::None => Ok(()),
        // Length 0: to the end, however far the file grows.
        Lock::Exclusive => set(fd, libc::F_WRLCK, 0, 0),
        Lock::Shared => {
            let taken = READER
                .iter()
                .try_for_each(|byte| set(fd, libc::F_RDLCK, *byte, 1));
            taken.and_then(|()| refuse_writers(fd))
        }
        Lock::Look => look(fd, 0, 0),
        Lock::LookShared => refuse_writers(fd),
    };
    match result {
        Ok(()) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(true),
            _ => Err(e),
        },
    }
}

/// The longest wait for the I/O of a killed process. On a busy machine the kernel takes
/// seconds to end it, and a daemon that is restarted after a kill must not fail then.
const KILLED_IO_TIMEOUT: Duration = Duration::from_secs(10);

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// This process, by another descriptor.
    Own,
    /// Another process, with its name if it can be found.
    Other(Option<String>),
}

/// Takes a lock, or says who has a conflicting one.
///
/// The last io_uring requests of a killed process outlive it and keep its lock, as they
/// must. Its successor waits until they have ended.
pub(super) fn take_or_find_user(fd: BorrowedFd<'_>, lock: Lock) -> io::Result<Result<(), User>> {
    let start = Instant::now();
    while !take(fd, lock)? {
        let metadata = rustix::fs::fstat(fd)?;
        if is_locked_here(fd, metadata.st_dev, metadata.st_ino) {
            return Ok(Err(User::Own));
        }
        let user = find_user(metadata.st_dev, metadata.st_ino);
        if user.is_some() || start.elapsed() > KILLED_IO_TIMEOUT {
            return Ok(Err(User::Other(user)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Ok(()))
}

/// Whether another descriptor of this process has a lock on the file.
fn is_locked_here(fd: BorrowedFd<'_>, device: u64, inode: u64) -> bool {
    let Ok(fds) = fs::read_dir("/proc/self/fd") else {
        return false;
    };
    let failed = fd.as_raw_fd().to_string();
    fds.flatten().any(|other| {
        let name = other.file_name();
        let name = name.to_string_lossy();
        *name != *failed
            && fs::metadata(other.path()).is_ok_and(|m| (m.dev(), m.ino()) == (device, inode))
            && fs::read_to_string(format!("/proc/self/fdinfo/{name}"))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}

/// Names a process that has this file open, as "qemu-system-x86 (pid 17)".
/// Best effort: the processes of other users may be unreadable. For an error message
/// only, because it reads all of /proc.
pub(super) fn find_user(device: u64, inode: u64) -> Option<String> {
    let me = std::process::id();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let is_it = |fd: fs::DirEntry| {
            fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (device, inode))
        };
        // This process itself holds the descriptor that has just failed to get the lock.
        let holds = fds.flatten().filter(|_| pid != me).any(is_it);
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            // A process chooses its name: control characters must not reach the terminal.
            let name: String = name
                .trim_end()
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            return Some(format!("{name} (pid {pid})"));
        }
    }
    None
}
