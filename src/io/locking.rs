//! Taking a lock, or finding out who has one that conflicts.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::claim::Claims;
use super::lock::{self, Conflict, Held, Lock};

/// The longest wait for the I/O of a killed process. On a busy machine the kernel takes
/// seconds to end it, and a daemon that is restarted after a kill must not fail then.
const KILLED_IO_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a daemon that serves: clients wait for it.
const SERVING_TIMEOUT: Duration = Duration::from_millis(500);

/// This process serves a volume; a property of the process, as its locks are.
static SERVES: AtomicBool = AtomicBool::new(false);

/// From now on somebody else's lock is hardly waited for. A daemon that serves is no
/// successor of a killed one any more, and it may not look into other processes, so that it
/// would wait to the end for each file that is in use.
pub fn hardly_wait_for_locks() {
    SERVES.store(true, Ordering::Relaxed);
}

fn patience() -> Duration {
    match SERVES.load(Ordering::Relaxed) {
        true => SERVING_TIMEOUT,
        false => KILLED_IO_TIMEOUT,
    }
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The lock is there, or nobody has one that conflicts.
    Done,
    /// The file system has no locks.
    NoLocks,
    /// This process has one that conflicts, by another open file.
    Own,
    /// Another process has one, with its name if it can be found.
    Other(Option<String>, Held),
}

/// Tries to take the lock; `Some`: somebody has one that conflicts, and none was taken.
///
/// Order: 1 the bytes that only one writer can have → 2 what QEMU looks at → 3 what others have
/// is looked at. So of two that start at once at most one goes on; and with a claim,
/// which is hidden in 3, there is no moment in which nothing is said.
fn take(fd: BorrowedFd<'_>, lock: Lock, claims: &Claims) -> io::Result<Option<Conflict>> {
    let (taken, conflict) = match lock {
        Lock::None => return Ok(None),
        Lock::Look => return lock::against_writer(fd),
        Lock::LookShared => return lock::against_reader(fd),
        Lock::Exclusive => {
            let alone = lock::take_outside(fd)?;
            let said = (alone || !claims.is_empty()) && lock::say_writer(fd)?;
            let conflict = claims.hidden(|| lock::against_writer(fd))?;
            (alone && said, conflict)
        }
        Lock::Shared => {
            let said = lock::say_reader(fd)?;
            (said, claims.hidden(|| lock::against_reader(fd))?)
        }
    };
    let unknown = || Conflict {
        // It has ended before it was looked at.
        held: Held::Unspecific,
        pid: None,
    };
    let conflict = conflict.or_else(|| (!taken).then(unknown));
    if conflict.is_some() {
        lock::unlock(fd)?;
    }
    Ok(conflict)
}

/// Takes a lock, or says who has a conflicting one.
///
/// The last io_uring requests of a killed process outlive it and keep its lock, as they
/// must. Its successor waits until they have ended.
pub(super) fn take_or_find_user(fd: BorrowedFd<'_>, lock: Lock) -> io::Result<Outcome> {
    let metadata = rustix::fs::fstat(fd)?;
    let place = (metadata.st_dev, metadata.st_ino);
    let claims = Claims::of(place);
    let start = Instant::now();
    loop {
        let conflict = match take(fd, lock, &claims) {
            Ok(None) => return Ok(Outcome::Done),
            Ok(Some(conflict)) => conflict,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(Outcome::NoLocks),
                    _ => Err(error),
                };
            }
        };
        if is_locked_here(fd, place, &claims) {
            return Ok(Outcome::Own);
        }
        let user = match conflict.pid {
            Some(pid) => Some(name_of(pid)),
            None => find_user(place),
        };
        if user.is_some() || start.elapsed() > patience() {
            return Ok(Outcome::Other(user, conflict.held));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process has a lock by this descriptor, which is an entry of a folder `fd`.
fn has_lock(descriptor: &fs::DirEntry) -> bool {
    let info = descriptor.path();
    let info = info.parent().and_then(|folder| folder.parent());
    let info = info.map(|process| process.join("fdinfo").join(descriptor.file_name()));
    info.and_then(|info| fs::read_to_string(info).ok())
        .is_some_and(|text| text.lines().any(|line| line.starts_with("lock:")))
}

fn leads_to(descriptor: &fs::DirEntry, place: (u64, u64)) -> bool {
    fs::metadata(descriptor.path()).is_ok_and(|m| (m.dev(), m.ino()) == place)
}

/// Whether another descriptor of this process has a lock on the file that is no claim.
fn is_locked_here(fd: BorrowedFd<'_>, place: (u64, u64), claims: &Claims) -> bool {
    let Ok(all) = fs::read_dir("/proc/self/fd") else {
        return false;
    };
    let failed = fd.as_raw_fd().to_string();
    all.flatten().any(|other| {
        let name = other.file_name();
        let name = name.to_string_lossy();
        *name != *failed && !claims.have(&name) && leads_to(&other, place) && has_lock(&other)
    })
}

/// Names a process that has a lock on this file, as "qemu-system-x86 (pid 17)".
/// Best effort: the processes of other users may be unreadable. For an error message
/// only, because it reads all of /proc.
fn find_user(place: (u64, u64)) -> Option<String> {
    let me = std::process::id();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // This process itself has the descriptor that has just failed to get the lock.
        if pid == me {
            continue;
        }
        let Ok(all) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        if all
            .flatten()
            .any(|fd| leads_to(&fd, place) && has_lock(&fd))
        {
            return Some(name_of(pid));
        }
    }
    None
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // A process chooses its name: control characters must not reach the terminal.
    let name: String = name
        .trim_end()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    format!("{name} (pid {pid})")
}
