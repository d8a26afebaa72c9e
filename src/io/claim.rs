//! Claims on files that this process will take over from another one.
//!
//! Between the end of one daemon and the locks of the next one, QEMU or a third daemon could
//! open the files. A claim says what the lock of a writer says to both, beside the lock
//! that the other daemon still has.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{Mode, OFlags};

use super::{lock, loop_device};

static CLAIMED: Mutex<Vec<Weak<Claimed>>> = Mutex::new(Vec::new());

fn registry() -> MutexGuard<'static, Vec<Weak<Claimed>>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Claimed {
    file: File,
    /// Device and inode.
    place: (u64, u64),
}

/// Claims on files; they end when this is dropped.
#[derive(Debug)]
pub struct Claim {
    _files: Vec<Arc<Claimed>>,
}

impl Claim {
    /// Claims the files and devices at `paths`, whoever has locked them. One that
    /// cannot be opened, or has no locks, is left out.
    pub fn on<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut files = Vec::new();
        for path in paths {
            let backing = loop_device::backing_of_path(path);
            for path in std::iter::once(path.to_path_buf()).chain(backing) {
                match claim(&path) {
                    Ok(claimed) => files.push(Arc::new(claimed)),
                    Err(error) => {
                        tracing::debug!(path = %path.display(), %error, "cannot be claimed");
                    }
                }
            }
        }
        let mut registry = registry();
        registry.retain(|other| other.strong_count() > 0);
        registry.extend(files.iter().map(Arc::downgrade));
        Self { _files: files }
    }
}

fn claim(path: &PathBuf) -> io::Result<Claimed> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !lock::say_writer(file.as_fd())? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let place = (metadata.dev(), metadata.ino());
    Ok(Claimed { file, place })
}

/// The claims of this process on one file.
pub(super) struct Claims(Vec<Arc<Claimed>>);

impl Claims {
    pub(super) fn of(place: (u64, u64)) -> Self {
        let registry = registry();
        let all = registry.iter().filter_map(Weak::upgrade);
        Self(all.filter(|claimed| claimed.place == place).collect())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does something while they are not seen. The caller's own lock says the same meanwhile.
    pub(super) fn hidden<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        for claimed in &self.0 {
            lock::take_back(claimed.file.as_fd())?;
        }
        let result = work();
        for claimed in &self.0 {
            lock::say_writer(claimed.file.as_fd())?;
        }
        result
    }

    /// Whether it is the number of one of their descriptors.
    pub(super) fn have(&self, descriptor: &str) -> bool {
        let mut all = self.0.iter();
        all.any(|claimed| claimed.file.as_raw_fd().to_string() == descriptor)
    }
}
