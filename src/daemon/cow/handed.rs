//! A COW that the command line opens, with the rights of its user, to hand it to the daemon.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::inspect::store_options;
use crate::control::api::SnapshotSpec;
use crate::io::{BlockFile, OpenError, OpenOptions};

/// An open COW. A file that was made for it is removed when this is dropped, unless it was kept.
#[derive(Debug)]
pub struct HandedCow {
    path: PathBuf,
    /// The file that was made, which is empty.
    made: Option<File>,
    descriptor: OwnedFd,
}

impl HandedCow {
    /// Opens the COW of `spec`, or makes an empty file for it if a size was given. That belongs to
    /// `owner`, the user and the group of the daemon, if this process may give it to them.
    ///
    /// # Errors
    /// It cannot be opened or made, or somebody else uses it.
    pub fn open(spec: &SnapshotSpec, owner: (u32, u32)) -> Result<Self, OpenError> {
        let path = PathBuf::from(&spec.cow);
        if spec.size.is_some()
            && let Some(file) = make(&path, owner)?
        {
            let descriptor = file.as_fd().try_clone_to_owned();
            return Ok(Self {
                descriptor: descriptor.map_err(failed(&path, "hand it on"))?,
                made: Some(file),
                path,
            });
        }
        // Whether it can be a COW says the daemon.
        let options = OpenOptions {
            any_size: true,
            ..store_options()
        };
        Ok(Self {
            descriptor: BlockFile::open(&path, options)?.into_descriptor()?,
            made: None,
            path,
        })
    }

    /// The descriptor for the daemon.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn descriptor(&self) -> Result<OwnedFd, OpenError> {
        let copy = self.descriptor.try_clone();
        copy.map_err(failed(&self.path, "hand it on"))
    }

    /// The daemon uses it, or may use it.
    pub fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for HandedCow {
    fn drop(&mut self) {
        let place = |found: fs::Metadata| (found.dev(), found.ino());
        let made = self.made.as_ref().and_then(|file| file.metadata().ok());
        let there = fs::symlink_metadata(&self.path).ok();
        if made.is_some() && made.map(place) == there.map(place) {
            // What is left is empty, and can be given again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A new empty file, whose name is durable; `None`: something is there.
fn make(path: &Path, (user, group): (u32, u32)) -> Result<Option<File>, OpenError> {
    let mut options = File::options();
    let made = options.read(true).write(true).create_new(true).mode(0o600);
    let file = match made.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(OpenError::Denied {
                path: path.to_owned(),
                write: true,
            });
        }
        Err(error) => return Err(failed(path, "make it")(error)),
    };
    let durable = || {
        if rustix::process::geteuid().is_root() {
            fchown(&file, Some(user), Some(group))?;
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        match File::open(folder)?.sync_all() {
            // Some file systems do not support this for directories.
            Err(error) if error.kind() != ErrorKind::InvalidInput => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    match durable() {
        Ok(()) => Ok(Some(file)),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(failed(path, "make it durable")(error))
        }
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |error| OpenError::Io {
        path,
        action,
        errno: error.raw_os_error().unwrap_or(0),
    }
}
