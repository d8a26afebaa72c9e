//! Why an origin or COW could not be opened, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Errno, Held};
use crate::size::{human, in_words};

/// See the messages. `errno`s are as the kernel gave them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("{}: no such file or device; check the path, or create it first", path.display())]
    Missing { path: PathBuf },
    #[error("{}: exists already; choose another name, or remove it if its content is not needed", path.display())]
    Exists { path: PathBuf },
    #[error("{}: is a {what}; give a regular file or a block device", path.display())]
    WrongType { path: PathBuf, what: &'static str },
    #[error("{}: has {}; at least one sector (512 bytes) is needed", path.display(), in_words(*size))]
    TooSmall { path: PathBuf, size: u64 },
    #[error("{}: has {}, which is not a multiple of 512 bytes; round it up with `truncate -s %512` first", path.display(), in_words(*size))]
    OddSize { path: PathBuf, size: u64 },
    #[error("{}: is in use by {}, which {held}; stop that first", path.display(), named(user.as_ref()))]
    InUse {
        path: PathBuf,
        user: Option<String>,
        held: Held,
    },
    #[error("{}: the same data is in {}, which is in use by {}, which {held}; stop that first", path.display(), other.display(), named(user.as_ref()))]
    OtherNameInUse {
        path: PathBuf,
        other: PathBuf,
        user: Option<String>,
        held: Held,
    },
    #[error("{}: the kernel uses it for the loop device {}; {} first", path.display(), device.display(), detach(device, mounted.as_ref()))]
    LoopOver {
        path: PathBuf,
        device: PathBuf,
        /// Where the device is mounted.
        mounted: Option<String>,
    },
    #[error("{}: is in use by this very process, for something else; give another file", path.display())]
    OwnUse { path: PathBuf },
    #[error("{}: the device is mounted or used by the kernel (device-mapper, swap, RAID){}; release it first", path.display(), details(by.as_ref()))]
    DeviceBusy {
        path: PathBuf,
        /// What the kernel does with it, if it tells.
        by: Option<String>,
    },
    #[error("{}: permission denied; run as a user who may {} it", path.display(), if *write { "read and write" } else { "read" })]
    Denied { path: PathBuf, write: bool },
    #[error("{}: is write-protected; open it read-only", path.display())]
    WriteProtected { path: PathBuf },
    #[error("{}: no space for {}, {}; free some, choose a smaller size or another place, or make the file with `snapback create --sparse` and watch that its file system never fills up", path.display(), in_words(*size), free_in_words(*free))]
    NoSpace {
        path: PathBuf,
        size: u64,
        /// What the file system has for more, in bytes, if it tells.
        free: Option<u64>,
    },
    #[error("{}: its file system cannot hold a file of {}; choose a smaller size or another place", path.display(), in_words(*size))]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{}: cannot shrink from {} to {}; give a size that is not smaller", path.display(), in_words(*from), in_words(*to))]
    Shrink { path: PathBuf, from: u64, to: u64 },
    #[error("{}: {why}, and growing it does not bring that back; bring the file back from a copy, or give its snapshot up", path.display())]
    Cut { path: PathBuf, why: Errno },
    #[error("{}: snapback cannot change the size of a device; resize the device first, then give its new size (it has {})", path.display(), in_words(*size))]
    FixedSize { path: PathBuf, size: u64 },
    #[error("{}: cannot {action}: {}", path.display(), io::Error::from_raw_os_error(*errno))]
    Io {
        path: PathBuf,
        action: &'static str,
        errno: i32,
    },
}

fn named(user: Option<&String>) -> &str {
    user.map_or("another process", String::as_str)
}

fn details(by: Option<&String>) -> String {
    by.map(|by| format!(": {by}")).unwrap_or_default()
}

fn detach(device: &Path, mounted: Option<&String>) -> String {
    let detach = format!("detach it with `losetup -d {}`", device.display());
    match mounted {
        Some(at) => format!("unmount {at} and {detach}"),
        None => detach,
    }
}

fn free_in_words(free: Option<u64>) -> String {
    match free {
        Some(free) => format!("{} are free", human(free)),
        None => "its file system does not say how much is free".to_owned(),
    }
}

impl OpenError {
    /// The same may succeed when another process has ended.
    pub const fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. } | Self::OtherNameInUse { .. } | Self::DeviceBusy { .. }
        )
    }

    pub(super) fn io(path: &Path, action: &'static str, errno: rustix::io::Errno) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            errno: errno.raw_os_error(),
        }
    }
}

pub(super) fn errno_of(error: &std::io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO)
}
