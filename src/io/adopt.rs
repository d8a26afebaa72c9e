//! Files that somebody else has opened, and empty ones that somebody else has made.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::identity::Identity;
use super::open_error::errno_of;
use super::{BlockFile, OpenError, OpenOptions};

impl BlockFile {
    /// As [`BlockFile::open`], with an open file instead of the one at `path`, which is its name.
    /// It must have been opened for reading and writing, and a device also for one user alone.
    /// Its locks belong to the open file, and so to everybody who has its descriptor.
    ///
    /// # Errors
    /// As for [`BlockFile::open`].
    pub fn adopt(file: File, path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        Self::from_file(file, path, options)
    }

    /// Gives an empty file `size` bytes of space (a multiple of 512), durably.
    ///
    /// # Errors
    /// There is no space; then it is empty again.
    pub fn fill(&self, size: u64) -> Result<(), OpenError> {
        let durable = || {
            rustix::fs::fsync(self).map_err(|e| OpenError::io(self.path(), "make it durable", e))
        };
        let filled = self.give_size(size, false).and_then(|()| durable());
        filled.inspect_err(|_| self.empty())
    }

    /// Takes everything out of a file again that [`Self::fill`] has filled.
    pub fn empty(&self) {
        if let Err(error) = self.set_size(0) {
            tracing::warn!(path = %self.path().display(), "it cannot be emptied again: {error}");
        }
    }

    /// Its descriptor, for another process. What it is made of, such as the file of a loop device, is
    /// not locked any more.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn into_descriptor(self) -> Result<OwnedFd, OpenError> {
        let copy = self.as_fd().try_clone_to_owned();
        copy.map_err(|e| OpenError::io(self.path(), "hand it on", errno_of(&e)))
    }
}

/// The storage that an open file is; `None` if it is neither a file nor a block device.
///
/// # Errors
/// The system does not tell.
pub fn identity_of_open(file: &File) -> std::io::Result<Option<Identity>> {
    use std::os::unix::fs::FileTypeExt;
    let found = file.metadata()?;
    let kind = found.file_type();
    Ok((kind.is_file() || kind.is_block_device()).then(|| Identity::of(&found)))
}
