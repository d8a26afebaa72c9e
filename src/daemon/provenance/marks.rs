//! Marks: an extended attribute on disks and COWs that names their volume. `cp -a` and
//! similar tools copy it and plain copies do not, so it never proves that a file is the
//! original; but it reveals a swapped or outdated file, and a disk whose state file is
//! missing. Devices and some file systems have no attributes. The content of a COW remains
//! in Linux's format.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, XattrFlags, fremovexattr, fsetxattr, fstat, fsync, getxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::io::{Links, by_descriptor, open_regular};

const ATTRIBUTE: &str = "user.snapback";
/// Larger than any mark.
const SIZE_MAX: usize = 8192;

/// The mark of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Identity of the volume.
    pub volume: String,
    /// The generation of the volume's state when the mark was written.
    pub generation: u64,
    /// The volume's state file, absolute; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The snapshot whose COW this is; `None`: this is the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<MarkedSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedSnapshot {
    pub id: String,
    pub name: String,
}

/// The mark of the file at `path`; `None` if it cannot be read or decoded.
pub fn read(path: &Path) -> Option<Mark> {
    let mut bytes = vec![0; SIZE_MAX];
    let len = getxattr(path, ATTRIBUTE, &mut bytes[..]).ok()?;
    serde_json::from_slice(bytes.get(..len)?).ok()
}

/// As [`read`], for a file that was found or opened.
pub fn of(file: impl AsFd) -> Option<Mark> {
    read(Path::new(&by_descriptor(&file)))
}

/// Marks an open file, durably; false if the file system or the permissions do not allow it, which is
/// harmless. Its path may be one that the daemon cannot open.
pub fn write_open(file: BorrowedFd<'_>, path: &Path, mark: &Mark) -> bool {
    // Nothing is done to what is no file.
    let written = || -> io::Result<()> {
        if !FileType::from_raw_mode(fstat(file)?.st_mode).is_file() {
            return Err(Errno::NOTSUP.into());
        }
        let text = serde_json::to_vec(mark)?;
        fsetxattr(file, ATTRIBUTE, &text, XattrFlags::empty())?;
        Ok(fsync(file)?)
    };
    let written = written();
    if let Err(error) = &written {
        tracing::debug!(path = %path.display(), %error, "the file cannot be marked");
    }
    written.is_ok()
}

/// A file whose mark is read and changed. It is looked up once: what was read is what is changed.
#[derive(Debug)]
pub struct MarkedFile {
    file: File,
    path: PathBuf,
}

impl MarkedFile {
    /// Only regular files are opened, because others have no marks.
    ///
    /// # Errors
    /// It is something else, or cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open_regular(path, Links::Follow, OFlags::RDONLY)?,
            path: path.to_path_buf(),
        })
    }

    pub fn mark(&self) -> Option<Mark> {
        of(&self.file)
    }

    /// See [`write_open`].
    pub fn set(&self, mark: &Mark) -> bool {
        write_open(self.file.as_fd(), &self.path, mark)
    }

    /// Removes the mark, if possible.
    pub fn clear(&self) {
        let _ = fremovexattr(&self.file, ATTRIBUTE);
    }
}

/// A random identifier for a volume or snapshot.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Found;

    #[test]
    fn a_mark_stays_with_its_file_and_its_absence_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let mark = Mark {
            volume: new_id().unwrap(),
            generation: 3,
            state: Some("/vm/disk.img.snapback".into()),
            snapshot: None,
        };
        assert_eq!(read(&path), None);
        assert!(MarkedFile::open(&path).is_err(), "there is no file");
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(read(&path), None);
        let file = MarkedFile::open(&path).unwrap();
        if !file.set(&mark) {
            println!("skipped: no attributes in this file system");
            return;
        }
        assert_eq!(read(&path), Some(mark.clone()));
        assert_eq!(of(Found::at(&path).unwrap()), Some(mark.clone()));
        rustix::fs::setxattr(&path, ATTRIBUTE, b"{", XattrFlags::empty()).unwrap();
        assert_eq!(read(&path), None);
        file.clear();
        assert!(rustix::fs::getxattr(&path, ATTRIBUTE, &mut [0; 9][..]).is_err());
        assert_ne!(new_id().unwrap(), new_id().unwrap());
        let status = MarkedFile::open(Path::new("/proc/self/status")).unwrap();
        assert!(!status.set(&mark));
    }

    #[test]
    fn a_mark_is_read_set_and_removed_of_the_file_that_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mark = |generation| Mark {
            volume: "v".into(),
            generation,
            state: None,
            snapshot: None,
        };
        std::fs::write(path("a"), b"x").unwrap();
        std::fs::write(path("b"), b"x").unwrap();
        let (file, other) = (MarkedFile::open(&path("a")), MarkedFile::open(&path("b")));
        let (file, other) = (file.unwrap(), other.unwrap());
        if !other.set(&mark(2)) {
            println!("skipped: no attributes in this file system");
            return;
        }
        // Another file takes the place.
        std::fs::rename(path("a"), path("kept")).unwrap();
        std::fs::rename(path("b"), path("a")).unwrap();
        assert_eq!(file.mark(), None);
        assert!(file.set(&mark(1)));
        assert_eq!(read(&path("a")), Some(mark(2)));
        assert_eq!(read(&path("kept")), Some(mark(1)));
        file.clear();
        assert_eq!(read(&path("kept")), None);
        assert_eq!(read(&path("a")), Some(mark(2)));
    }
}
