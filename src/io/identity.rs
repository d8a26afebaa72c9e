//! Which storage is behind a path.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Equal for two paths that lead to the same storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    File { device: u64, inode: u64 },
    Device { number: u64 },
}

impl Identity {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device {
                number: metadata.rdev(),
            }
        } else {
            Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        }
    }
}

/// The storage behind a path; `None` if there is none.
pub fn identity_of(path: &Path) -> Option<Identity> {
    Some(Identity::of(&fs::metadata(path).ok()?))
}
