//! Golden images: forks of a read-only origin are in no state file, so an extended attribute
//! of each fork's COW records the state of the image, if the file system has attributes. The
//! content of the COW remains in Linux's format.

use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use serde::{Deserialize, Serialize};

use crate::daemon::identity::{OriginIdentity, StorageKind, Timestamp};
use crate::size::in_words;

const ATTRIBUTE: &str = "user.snapback.origin";
/// Larger than any such record.
const SIZE_MAX: usize = 512;

/// Properties of an image that do not change unless it is written; a copy that keeps the
/// times has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Image {
    size: u64,
    mtime: Option<Timestamp>,
}

impl Image {
    const fn of(origin: &OriginIdentity) -> Self {
        let mtime = match &origin.kind {
            StorageKind::File(file) => Some(file.mtime),
            StorageKind::Device(_) => None,
        };
        Self {
            size: origin.size,
            mtime,
        }
    }
}

/// Records in the store at `cow` that it belongs to `origin` as it is now. Without
/// attributes a later change of the image is not noticed.
pub fn note(cow: impl AsRef<Path>, origin: &OriginIdentity) {
    let cow = cow.as_ref();
    let noted = serde_json::to_vec(&Image::of(origin))
        .map_err(std::io::Error::from)
        .and_then(|text| Ok(setxattr(cow, ATTRIBUTE, &text, XattrFlags::empty())?));
    if let Err(error) = noted {
        tracing::debug!(cow = %cow.display(), %error, "cannot record which image the store belongs to");
    }
}

/// How the image has changed since the store at `cow` was last used; `None` if it has not,
/// or if nothing is recorded.
pub fn change(cow: &Path, origin: &OriginIdentity) -> Option<String> {
    let mut bytes = [0; SIZE_MAX];
    let len = getxattr(cow, ATTRIBUTE, &mut bytes[..]).ok()?;
    let then: Image = serde_json::from_slice(bytes.get(..len)?).ok()?;
    let now = Image::of(origin);
    if then.size != now.size {
        return Some(format!(
            "its size was {} and is {}",
            in_words(then.size),
            in_words(now.size)
        ));
    }
    (then.mtime != now.mtime).then(|| "it was written since then, or it is another file".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64, seconds: i64) -> OriginIdentity {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut identity =
            OriginIdentity::of_descriptor(file.as_file(), file.path(), size).unwrap();
        if let StorageKind::File(file) = &mut identity.kind {
            file.mtime.seconds = seconds;
            file.mtime.nanoseconds = 0;
        }
        identity
    }

    #[test]
    fn a_change_of_the_image_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("vm.cow");
        std::fs::write(&cow, b"x").unwrap();
        assert_eq!(change(&cow, &image(1 << 20, 5)), None, "nothing is known");
        note(&cow, &image(1 << 20, 5));
        if getxattr(&cow, ATTRIBUTE, &mut [0_u8; SIZE_MAX][..]).is_err() {
            println!("skipped: no attributes in this file system");
            return;
        }
        assert_eq!(change(&cow, &image(1 << 20, 5)), None);
        assert!(
            change(&cow, &image(1 << 20, 6))
                .unwrap()
                .contains("written")
        );
        assert!(change(&cow, &image(1 << 21, 5)).unwrap().contains("size"));
        setxattr(&cow, ATTRIBUTE, b"{", XattrFlags::empty()).unwrap();
        assert_eq!(change(&cow, &image(1 << 21, 5)), None);
    }
}
