//! A COW that a client has opened, because the daemon may not: the sandbox keeps it from most places.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access as May, AtFlags, CWD, OFlags, accessat, fcntl_getfl};

use super::error::CowError;
use crate::daemon::identity::storage_of;
use crate::io::{BlockFile, OpenError, OpenOptions, identity_of_open};
use crate::sandbox;

/// An open file or device, for reading and writing, that is the one at its path.
#[derive(Debug)]
pub struct Given {
    file: File,
    path: PathBuf,
}

impl Given {
    /// Examines the descriptor that came with a request that names `path`.
    ///
    /// # Errors
    /// It is of another file or of none, cannot be read and written, or the next start of the daemon
    /// could not open that path.
    pub fn check(descriptor: OwnedFd, path: &Path) -> Result<Self, CowError> {
        let refuse = |why| CowError::Given {
            path: path.to_owned(),
            why,
        };
        let file = File::from(descriptor);
        let flags = fcntl_getfl(&file).map_err(|_| refuse("cannot be examined"))?;
        if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE != OFlags::RDWR {
            return Err(refuse("cannot be read and written"));
        }
        let found = identity_of_open(&file).map_err(|_| refuse("cannot be examined"))?;
        let found = found.ok_or_else(|| refuse("is of no file and no block device"))?;
        if storage_of(path) != Some(found) {
            return Err(refuse("is of another file than the one at this path"));
        }
        let may = accessat(CWD, path, May::READ_OK | May::WRITE_OK, AtFlags::EACCESS);
        if may.is_err() && !sandbox::is_another_user() {
            return Err(CowError::NotForDaemon {
                path: path.to_owned(),
                user: rustix::process::geteuid().as_raw(),
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, which lasts as long as the client or this has the descriptor.
    pub fn open(&self, options: OpenOptions) -> Result<BlockFile, OpenError> {
        let file = self.file.try_clone();
        let file = file.map_err(|e| OpenError::Io {
            path: self.path.clone(),
            action: "use its descriptor",
            errno: e.raw_os_error().unwrap_or(0),
        })?;
        BlockFile::adopt(file, &self.path, options)
    }
}
