//! The same storage under another name: a loop device over a file, the file of a loop device, a
//! disk and its partitions, and what the kernel builds on a device or mounts.
//!
//! The locks of one name say nothing to those who use another one, so these are looked at as well.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::identity::Identity;
use super::kernel_use::{self, mounts_of};
use super::lock::Lock;
use super::locking::{Outcome, take_or_find_user};
use super::loop_device::{self, Backing, LoopDevice};
use super::open_error::{OpenError, errno_of};

/// Loop devices over loop devices are followed so far.
const DEPTH: usize = 4;

/// Refuses storage that is used under another name. The files of a loop device are locked as
/// the device itself, and stay so as long as they are open.
///
/// # Errors
/// Somebody uses it in a way that `lock` excludes. What a reader finds changed is only
/// warned of, if it is the kernel that may change it.
pub(super) fn exclude(path: &Path, identity: Identity, lock: Lock) -> Result<Vec<File>, OpenError> {
    if lock == Lock::None {
        return Ok(Vec::new());
    }
    refuse_loops(path, identity, lock)?;
    let Identity::Device { number } = identity else {
        return Ok(Vec::new());
    };
    refuse_kernel(path, number, lock)?;
    for other in kernel_use::overlapping(number) {
        let look = match lock {
            Lock::Shared | Lock::LookShared => Lock::LookShared,
            Lock::Exclusive | Lock::Look | Lock::None => Lock::Look,
        };
        // One that cannot be opened is not looked at.
        if let Ok(file) = open(&other, false) {
            locked(&file, path, &other, look)?;
        }
    }
    lock_files(path, number, lock)
}

/// A loop device over a file that is to be served.
fn refuse_loops(path: &Path, identity: Identity, lock: Lock) -> Result<(), OpenError> {
    let reads = matches!(lock, Lock::Shared | Lock::LookShared);
    for device in loop_device::over(identity) {
        let LoopDevice {
            path: device,
            number,
            writable,
        } = device;
        let mounted = mounts_of(&number).into_iter().next();
        let mounted = mounted.map(|(at, _)| at);
        if !reads {
            let path = path.to_owned();
            return Err(OpenError::LoopOver {
                path,
                device,
                mounted,
            });
        }
        if writable {
            tracing::warn!(path = %path.display(), device = %device.display(),
                "a loop device over this file can be written: what is read may change meanwhile");
        }
    }
    Ok(())
}

/// What the kernel does with a device that was not claimed for this process alone.
fn refuse_kernel(path: &Path, number: u64, lock: Lock) -> Result<(), OpenError> {
    match lock {
        // The kernel has refused to open it if it is used.
        Lock::Exclusive | Lock::None => Ok(()),
        Lock::Look => match kernel_use::in_words(number) {
            Some(by) => Err(OpenError::DeviceBusy {
                path: path.to_owned(),
                by: Some(by),
            }),
            None => Ok(()),
        },
        Lock::Shared | Lock::LookShared => {
            let uses = kernel_use::uses_of(number).into_iter();
            for found in uses.filter(|found| found.may_write) {
                tracing::warn!(path = %path.display(), "{}: what is read may change meanwhile", found.words);
            }
            Ok(())
        }
    }
}

/// Locks the file of a loop device, and what is beneath that.
fn lock_files(path: &Path, number: u64, lock: Lock) -> Result<Vec<File>, OpenError> {
    let mut files = Vec::new();
    let mut next = Some(number);
    while let Some(number) = next.filter(|_| files.len() < DEPTH) {
        let backing = match loop_device::backing_of(number) {
            Backing::None => break,
            Backing::Unknown(name) => {
                tracing::warn!(path = %path.display(), file = name,
                    "its file cannot be found, so nothing keeps others from using that");
                break;
            }
            Backing::At(backing) => backing,
        };
        // Two partitions of one file may be served at once.
        let is_partition = kernel_use::folder_of(number).join("partition").exists();
        let lock = match (is_partition, lock) {
            (true, Lock::Exclusive) => Lock::Look,
            (true, Lock::Shared) => Lock::LookShared,
            (_, lock) => lock,
        };
        let identity;
        match open(&backing, lock == Lock::Exclusive) {
            Ok(file) => {
                locked(&file, path, &backing, lock)?;
                identity = file.metadata().ok().map(|found| Identity::of(&found));
                files.push(file);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), file = %backing.display(),
                    "its file cannot be opened ({error}), so nothing keeps others from using that");
                break;
            }
        }
        next = match identity {
            Some(Identity::Device { number }) => Some(number),
            Some(Identity::File { .. }) | None => None,
        };
    }
    Ok(files)
}

fn open(path: &Path, write: bool) -> std::io::Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Takes the lock on `other`, through which `path` can be reached.
fn locked(file: &File, path: &Path, other: &Path, lock: Lock) -> Result<(), OpenError> {
    let outcome = take_or_find_user(file.as_fd(), lock)
        .map_err(|e| OpenError::io(other, "lock it", errno_of(&e)))?;
    match outcome {
        Outcome::Done | Outcome::NoLocks => Ok(()),
        Outcome::Own => Err(OpenError::OwnUse {
            path: path.to_owned(),
        }),
        Outcome::Other(user, held) => Err(OpenError::OtherNameInUse {
            path: path.to_owned(),
            other: other.to_owned(),
            user,
            held,
        }),
    }
}
