//! Why an origin or COW could not be opened, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::Errno;

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
    #[error("{}: has {size} bytes; at least one sector (512 bytes) is needed", path.display())]
    TooSmall { path: PathBuf, size: u64 },
    #[error("{}: has {size} bytes, which is not a multiple of 512; round it up with `truncate -s %512` first", path.display())]
    OddSize { path: PathBuf, size: u64 },
    #[error("{}: is in use by {}; stop that first", path.display(), user.as_deref().unwrap_or("another process"))]
    InUse { path: PathBuf, user: Option<String> },
    #[error("{}: the device is mounted or used by the kernel (device-mapper, swap, RAID); release it first", path.display())]
    DeviceBusy { path: PathBuf },
    #[error("{}: permission denied; run as a user who may {} it", path.display(), if *write { "read and write" } else { "read" })]
    Denied { path: PathBuf, write: bool },
    #[error("{}: is write-protected; open it read-only", path.display())]
    WriteProtected { path: PathBuf },
    #[error("{}: no space for {size} bytes; free some, choose a smaller size or another place, or make the file with `snapback create --sparse` and watch that its file system never fills up", path.display())]
    NoSpace { path: PathBuf, size: u64 },
    #[error("{}: its file system cannot hold a file of {size} bytes; choose a smaller size or another place", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{}: cannot shrink from {from} to {to} bytes; give a size that is not smaller", path.display())]
    Shrink { path: PathBuf, from: u64, to: u64 },
    #[error("{}: {why}, and growing it does not bring that back; bring the file back from a copy, or give its snapshot up", path.display())]
    Cut { path: PathBuf, why: Errno },
    #[error("{}: snapback cannot change the size of a device; resize the device first, then give its new size (it has {size} bytes)", path.display())]
    FixedSize { path: PathBuf, size: u64 },
    #[error("{}: cannot {action}: {}", path.display(), io::Error::from_raw_os_error(*errno))]
    Io {
        path: PathBuf,
        action: &'static str,
        errno: i32,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path, action: &'static str, errno: rustix::io::Errno) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            errno: errno.raw_os_error(),
        }
    }
}
