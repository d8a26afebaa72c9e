//! The COW file of the last merge, which its owner can remove: whether it is still there, and
//! nobody has used it since.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::sandbox::{self, Kind};

/// How long a status waits for the file system, which may not answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// A COW file that is not needed any more.
#[derive(Debug)]
pub struct LeftOver {
    path: String,
    stamp: Stamp,
    /// It was removed, replaced or changed: for good.
    gone: Arc<AtomicBool>,
    /// A thread looks at it.
    looking: Arc<AtomicBool>,
}

/// Changes with every use of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    /// Also when its mark changes, which says whose store it is.
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no regular file.
    fn of(path: &str) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            file: (found.dev(), found.ino()),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl LeftOver {
    /// The COW at `path`, which was just closed. `None` for a device: whether somebody uses it
    /// again cannot be seen.
    pub fn new(path: &str) -> Option<Self> {
        Some(Self {
            path: path.to_owned(),
            stamp: Stamp::of(path)?,
            gone: Arc::default(),
            looking: Arc::default(),
        })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is there as the merge left it. While the file system does not answer: as it
    /// was last seen.
    pub fn is_there(&self) -> bool {
        if !self.gone.load(Ordering::Acquire) && !self.looking.swap(true, Ordering::AcqRel) {
            self.look();
        }
        !self.gone.load(Ordering::Acquire)
    }

    fn look(&self) {
        let (tell, told) = sync_channel(1);
        let (path, stamp) = (self.path.clone(), self.stamp);
        let (gone, looking) = (self.gone.clone(), self.looking.clone());
        let look = move || {
            sandbox::thread(Kind::Process);
            if Stamp::of(&path) != Some(stamp) {
                gone.store(true, Ordering::Release);
            }
            looking.store(false, Ordering::Release);
            let _ = tell.send(());
        };
        let name = "look at COW".to_owned();
        match std::thread::Builder::new().name(name).spawn(look) {
            Ok(_) => drop(told.recv_timeout(PATIENCE)),
            Err(_) => self.looking.store(false, Ordering::Release),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A slow machine may need longer than a status waits.
    #[track_caller]
    fn assert_gone(left: &LeftOver) {
        let start = Instant::now();
        while left.is_there() {
            assert!(start.elapsed() < Duration::from_secs(60), "still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_is_left_over_until_it_is_removed_replaced_or_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.cow");
        let text = path.to_str().unwrap();
        let made = || {
            fs::write(&path, [1; 512]).unwrap();
            let left = LeftOver::new(text).unwrap();
            assert!(left.is_there() && left.is_there());
            left
        };
        let removed = made();
        fs::remove_file(&path).unwrap();
        assert_gone(&removed);
        // Another file in its place does not bring it back.
        let replaced = made();
        assert_gone(&removed);
        fs::write(folder.path().join("new"), [1; 512]).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_gone(&replaced);
        let used = made();
        fs::write(&path, [1; 1024]).unwrap();
        assert_gone(&used);
    }

    #[test]
    fn a_device_is_never_left_over() {
        assert!(LeftOver::new("/dev/null").is_none());
        assert!(LeftOver::new("/nonexistent").is_none());
    }
}
