//! Marks: an extended attribute on disks and COWs that names their volume. `cp -a` and
//! similar tools copy it and plain copies do not, so it never proves that a file is the
//! original; but it reveals a swapped or outdated file, and a disk whose state file is
//! missing. Devices and some file systems have no attributes. The content of a COW remains
//! in Linux's format.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, getxattr, removexattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

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

/// Marks the file at `path`, durably; false if the file system or the permissions do not
/// allow it, which is harmless.
pub fn write(path: &Path, mark: &Mark) -> bool {
    let written = || -> io::Result<()> {
        // Opened once: what is checked is what is marked. Nothing else is done to what is no file.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(Errno::NOTSUP.into());
        }
        let text = serde_json::to_vec(mark)?;
        fsetxattr(&file, ATTRIBUTE, &text, XattrFlags::empty())?;
        file.sync_all()
    };
    match written() {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "the file cannot be marked");
            false
        }
    }
}

/// Removes the mark, if possible.
pub fn clear(path: &Path) {
    let _ = removexattr(path, ATTRIBUTE);
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
        assert!(!write(&path, &mark), "there is no file");
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(read(&path), None);
        if !write(&path, &mark) {
            println!("skipped: no attributes in this file system");
            return;
        }
        assert_eq!(read(&path), Some(mark));
        rustix::fs::setxattr(&path, ATTRIBUTE, b"{", XattrFlags::empty()).unwrap();
        assert_eq!(read(&path), None);
        clear(&path);
        assert_eq!(read(&path), None);
        assert_ne!(new_id().unwrap(), new_id().unwrap());
        assert!(!write(
            Path::new("/proc/self/status"),
            &Mark {
                volume: String::new(),
                generation: 0,
                state: None,
                snapshot: None,
            }
        ));
    }
}
