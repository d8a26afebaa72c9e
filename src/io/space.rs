//! The space of a file: allocating it, growing the file, and making a new one durable.

use std::fs::File;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::open_error::errno_of;
use super::{BlockFile, OpenError};
use crate::units::SECTOR_SIZE;

impl BlockFile {
    /// Enlarges to `size` bytes, durably: allocates a regular file's space now,
    /// and for a device checks that it has been enlarged. Returns the new size.
    pub fn grow(&self, size: u64) -> Result<u64, OpenError> {
        self.lengthen(size, |now| self.preallocate(now, size))
    }

    /// As [`Self::grow`], without allocating space: the new part of a file is a hole.
    pub fn extend(&self, size: u64) -> Result<u64, OpenError> {
        self.lengthen(size, |_| self.set_size(size))
    }

    fn lengthen(
        &self,
        size: u64,
        make_longer: impl FnOnce(u64) -> Result<(), OpenError>,
    ) -> Result<u64, OpenError> {
        let path = self.path().to_owned();
        if let Err(why) = self.check_flush() {
            // The lost part would read as zeroes.
            return Err(OpenError::Cut { path, why });
        }
        let now = self.refresh_size()?;
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(OpenError::OddSize { path, size });
        }
        if size < now {
            return Err(OpenError::Shrink {
                path,
                from: now,
                to: size,
            });
        }
        if size > now {
            if self.is_device() {
                return Err(OpenError::FixedSize { path, size: now });
            }
            make_longer(now)?;
        }
        // Also if it has that size: somebody else, or an attempt that failed, may have made it
        // longer.
        rustix::fs::fsync(self)
            .map_err(|e| OpenError::io(self.path(), "make its size durable", e))?;
        self.refresh_size()
    }

    /// Allocates space for the bytes `from .. to`, so that a lack of space shows now.
    pub(super) fn preallocate(&self, from: u64, to: u64) -> Result<(), OpenError> {
        // An attempt that must fail would use up the space of other files until it does.
        let free = self.free_space();
        if free.is_some_and(|free| free < to.saturating_sub(from)) {
            return Err(OpenError::NoSpace {
                path: self.path().to_owned(),
                size: to,
                free,
            });
        }
        let allocated = loop {
            match rustix::fs::fallocate(
                self,
                FallocateFlags::empty(),
                from,
                to.saturating_sub(from),
            ) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let result = match allocated {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::fs::ftruncate(self, to),
            Err(e) => {
                // Some file systems keep what they have allocated. The original error is
                // reported, whether or not the space can be given back.
                let _ = rustix::fs::ftruncate(self, from);
                Err(e)
            }
            Ok(()) => Ok(()),
        };
        result.map_err(|e| match e {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => OpenError::NoSpace {
                path: self.path().to_owned(),
                size: to,
                free: self.free_space(),
            },
            e => OpenError::io(self.path(), "allocate its space", e),
        })
    }

    /// Bytes that its file system has for more. Some network file systems do not say.
    fn free_space(&self) -> Option<u64> {
        let facts = rustix::fs::fstatvfs(self).ok();
        let facts = facts.filter(|fs| fs.f_blocks > 0)?;
        Some(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// Makes the file `size` bytes long without allocating space.
    pub(super) fn set_size(&self, size: u64) -> Result<(), OpenError> {
        rustix::fs::ftruncate(self, size).map_err(|e| match e {
            Errno::FBIG => OpenError::TooLarge {
                path: self.path().to_owned(),
                size,
            },
            e => OpenError::io(self.path(), "set its size", e),
        })
    }

    /// 1 the file and its size durable → 2 its name durable.
    pub(super) fn make_creation_durable(&self) -> Result<(), OpenError> {
        let failed = |e: Errno| OpenError::io(self.path(), "make it durable", e);
        rustix::fs::fsync(self).map_err(failed)?;
        let parent = self
            .path()
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let parent = File::open(parent).map_err(|e| failed(errno_of(&e)))?;
        match rustix::fs::fsync(&parent) {
            // Some file systems do not support this for directories.
            Err(Errno::INVAL) | Ok(()) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }
}
