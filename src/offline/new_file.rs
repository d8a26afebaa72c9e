//! A new file, which appears when all of it is on disk.

use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::OfflineError;

/// A file that is written: without a name, where possible, until it is complete. Dropped before,
/// it leaves nothing behind.
pub struct NewFile<'a> {
    file: File,
    path: &'a Path,
    named: bool,
    finished: bool,
}

impl<'a> NewFile<'a> {
    /// A new file at `path` with the permissions `mode`, less the umask.
    ///
    /// # Errors
    /// There is something at `path`, or no file can be made there.
    pub fn create(path: &'a Path, mode: Mode) -> Result<Self, OfflineError> {
        if path.symlink_metadata().is_ok() {
            return Err(OfflineError::OutExists(path.to_owned()));
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let nameless = rustix::fs::open(folder(path), flags | OFlags::TMPFILE, mode);
        let named = nameless.is_err();
        let fd = nameless
            .or_else(|_| rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, mode));
        let file = File::from(fd.map_err(|e| out_error(path, "create it", e))?);
        Ok(Self {
            file,
            path,
            named,
            finished: false,
        })
    }

    /// To write it.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// 1 content durable → 2 its name → 3 the name durable.
    ///
    /// # Errors
    /// One of these failed, or meanwhile somebody has made a file of that name.
    pub fn finish(mut self) -> Result<(), OfflineError> {
        let failed = |e| OfflineError::system(self.path, "make it durable", e);
        self.file.sync_all().map_err(failed)?;
        if !self.named {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&self.file);
            let from = format!("/proc/self/fd/{fd}");
            rustix::fs::linkat(CWD, from, CWD, self.path, AtFlags::SYMLINK_FOLLOW)
                .map_err(|e| out_error(self.path, "give it its name", e))?;
        }
        self.finished = true;
        match File::open(folder(self.path)).and_then(|folder| folder.sync_all()) {
            // Some file systems do not support this for directories.
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Err(failed(e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if self.named && !self.finished {
            // The original error is the one to report.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn out_error(path: &Path, action: &'static str, errno: rustix::io::Errno) -> OfflineError {
    if errno == rustix::io::Errno::EXIST {
        OfflineError::OutExists(path.to_owned())
    } else {
        OfflineError::system(path, action, errno.into())
    }
}
