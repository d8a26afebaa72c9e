//! A small file that is replaced as a whole, durably, and that only one process locks: the
//! mechanism below the state file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::io::{Links, open_regular};
use crate::size::in_words;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// Larger than any state file; limits how much of a wrong file is read.
const SIZE_MAX: u64 = 16 << 20;

/// The next step of [`LockedFile::replace`], for tests that make it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncDirectory,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("{path} has {}, which is too large for a state file", in_words(*size))]
    TooLarge { path: PathBuf, size: u64 },
    #[error(
        "{path} was moved or replaced while it was in use, so nothing can be recorded: move it, or the folder that it was in, \
         back, or stop the daemon that uses it"
    )]
    Moved { path: PathBuf },
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The file at `path`. Once it exists, it is locked as long as this value exists.
#[derive(Debug)]
pub struct LockedFile {
    path: PathBuf,
    /// The open, locked file; `None` while there is no file.
    held: Option<File>,
    content: Vec<u8>,
    /// Device and inode of the folder, once the file exists.
    folder: Option<(u64, u64)>,
}

/// Device and inode.
fn number(found: io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    found.ok().map(|m| (m.dev(), m.ino()))
}

/// Opens a state file, and nothing else. A link is refused, because it would be replaced instead of the file
/// that it leads to, which would stay behind as it was. The path may be in a mark, which anybody
/// may have written.
fn open_to_read(path: &Path) -> io::Result<File> {
    open_regular(path, Links::Refuse, OFlags::RDONLY)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError::Io { what, path, source }
}

/// The content of a file that another process may have locked.
///
/// # Errors
/// It cannot be read, is no regular file, or is too large for a state file.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_to_read(path)?
        .take(SIZE_MAX.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() as u64 > SIZE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

/// Locks an open file; fails if another process has locked it.
fn lock(file: &File, path: &Path) -> Result<(), FileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(FileError::InUse {
            path: path.to_path_buf(),
        }),
        Err(errno) => Err(io_error("lock", path)(errno.into())),
    }
}

impl LockedFile {
    /// As [`Self::open`], but does not lock the file.
    pub fn look(path: &Path) -> Result<Self, FileError> {
        Self::open_with(path, |_, _| Ok(()))
    }

    /// Opens and locks the file if it exists. Creates nothing.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_with(path, lock)
    }

    fn open_with(
        path: &Path,
        lock: impl Fn(&File, &Path) -> Result<(), FileError>,
    ) -> Result<Self, FileError> {
        loop {
            let mut file = match open_to_read(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self {
                        path: path.to_path_buf(),
                        held: None,
                        content: Vec::new(),
                        folder: None,
                    });
                }
                Err(error) => return Err(io_error("open", path)(error)),
            };
            lock(&file, path)?;
            let ours = file.metadata().map_err(io_error("examine", path))?;
            // The process that held the lock may have replaced the file after the open.
            if number(fs::symlink_metadata(path)) != Some((ours.dev(), ours.ino())) {
                continue;
            }
            if ours.len() > SIZE_MAX {
                return Err(FileError::TooLarge {
                    path: path.to_path_buf(),
                    size: ours.len(),
                });
            }
            let mut content = Vec::new();
            file.read_to_end(&mut content)
                .map_err(io_error("read", path))?;
            return Ok(Self {
                path: path.to_path_buf(),
                held: Some(file),
                content,
                folder: number(fs::metadata(folder_of(path))),
            });
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content, `None` while the file does not exist.
    pub fn content(&self) -> Option<&[u8]> {
        self.held.is_some().then_some(&self.content)
    }

    /// Replaces the content, durably.
    ///
    /// Order: 1 a new file is written under another name, locked and made durable → 2 it is
    /// renamed over the old one → 3 the directory is made durable. After a failure at 1 the
    /// old file is unchanged. After a failure at 3 the old content is restored, because
    /// either of the two could remain after a power cut.
    pub fn replace(&mut self, content: Vec<u8>) -> Result<(), FileError> {
        self.replace_with(content, &mut |_| Ok(()))
    }

    fn replace_with(
        &mut self,
        content: Vec<u8>,
        before: &mut dyn FnMut(Step) -> io::Result<()>,
    ) -> Result<(), FileError> {
        let directory = folder_of(&self.path);
        self.check_place(&directory)?;
        let file = self.write_beside(&content, before)?;
        let beside = self.beside();
        before(Step::Rename)
            .and_then(|()| self.rename(&beside))
            .inspect_err(|_| {
                let _ = fs::remove_file(&beside);
            })
            .map_err(io_error("replace", &self.path))?;
        self.folder = number(fs::metadata(&directory));
        let replaced = self.held.replace(file).is_some();
        let old = std::mem::replace(&mut self.content, content);
        let synced = before(Step::SyncDirectory).and_then(|()| File::open(&directory)?.sync_all());
        if let Err(source) = synced {
            self.restore(replaced.then_some(old));
            return Err(io_error("make durable", &self.path)(source));
        }
        Ok(())
    }

    /// Refuses to write if the folder was moved away, or if the file was replaced by another
    /// process. A file that was only deleted is created again.
    fn check_place(&self, directory: &Path) -> Result<(), FileError> {
        let moved = self.folder.is_some() && self.folder != number(fs::metadata(directory));
        let held = self.held.as_ref().and_then(|file| file.metadata().ok());
        let there = number(fs::symlink_metadata(&self.path));
        let replaced =
            held.is_some_and(|held| there.is_some_and(|n| n != (held.dev(), held.ino())));
        if moved || replaced {
            return Err(FileError::Moved {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Restores the content before a replacement that may not be durable (`None`: there was
    /// no file). Best effort.
    fn restore(&mut self, old: Option<Vec<u8>>) {
        match old {
            Some(old) => {
                if let Ok(file) = self.write_beside(&old, &mut |_| Ok(()))
                    && fs::rename(self.beside(), &self.path).is_ok()
                {
                    self.held = Some(file);
                    self.content = old;
                }
            }
            None => {
                if fs::remove_file(&self.path).is_ok() {
                    self.held = None;
                    self.content = Vec::new();
                }
            }
        }
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        PathBuf::from(name)
    }

    /// Creates a durable, locked file with `content` at [`Self::beside`].
    fn write_beside(
        &self,
        content: &[u8],
        before: &mut dyn FnMut(Step) -> io::Result<()>,
    ) -> Result<File, FileError> {
        let path = self.beside();
        before(Step::Create).map_err(io_error("create", &path))?;
        let mut file = create_beside(&path)?;
        let mut write = |file: &mut File| {
            before(Step::Write)?;
            file.write_all(content)?;
            before(Step::Sync)?;
            file.sync_all()
        };
        let written =
            lock(&file, &path).and_then(|()| write(&mut file).map_err(io_error("write", &path)));
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    /// Renames the new file into place. The first time there must not be a file yet:
    /// otherwise another process has created one in the meantime.
    fn rename(&self, beside: &Path) -> io::Result<()> {
        if self.held.is_none() {
            match renameat_with(CWD, beside, CWD, &self.path, RenameFlags::NOREPLACE) {
                // The file system does not support the flag, so only the lock on the origin
                // excludes other daemons.
                Err(Errno::INVAL | Errno::NOSYS) => {}
                other => return Ok(other?),
            }
        }
        fs::rename(beside, &self.path)
    }
}

/// Creates a new file. The file of a killed process is removed; the file of a running one,
/// which has it locked, is not.
fn create_beside(path: &Path) -> Result<File, FileError> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let left = open_to_read(path).map_err(io_error("open", path))?;
            lock(&left, path)?;
            fs::remove_file(path).map_err(io_error("remove", path))?;
            open().map_err(io_error("create", path))
        }
        other => other.map_err(io_error("create", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img.snapback");
        (directory, path)
    }

    fn failing(at: Step) -> impl FnMut(Step) -> io::Result<()> {
        move |step| {
            if step == at {
                Err(io::Error::other("injected"))
            } else {
                Ok(())
            }
        }
    }

    #[test]
    fn opening_creates_nothing() {
        let (directory, path) = scratch();
        assert_eq!(LockedFile::open(&path).unwrap().content(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_old_content_and_no_litter() {
        for step in [
            Step::Create,
            Step::Write,
            Step::Sync,
            Step::Rename,
            Step::SyncDirectory,
        ] {
            let (directory, path) = scratch();
            let mut file = LockedFile::open(&path).unwrap();
            file.replace(b"old".to_vec()).unwrap();
            file.replace_with(b"new".to_vec(), &mut failing(step))
                .unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), b"old", "{step:?}");
            assert_eq!(file.content(), Some(&b"old"[..]), "{step:?}");
            assert_eq!(
                fs::read_dir(directory.path()).unwrap().count(),
                1,
                "{step:?}"
            );
            file.replace(b"newer".to_vec()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"newer", "{step:?}");
        }
    }

    #[test]
    fn a_first_file_that_does_not_last_is_taken_away() {
        let (directory, path) = scratch();
        let mut file = LockedFile::open(&path).unwrap();
        file.replace_with(b"new".to_vec(), &mut failing(Step::SyncDirectory))
            .unwrap_err();
        assert_eq!(file.content(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_file_and_the_next_replace_works() {
        let (_directory, path) = scratch();
        LockedFile::open(&path)
            .unwrap()
            .replace(b"old".to_vec())
            .unwrap();
        fs::write(path.with_extension("snapback.new"), b"half").unwrap();
        let mut file = LockedFile::open(&path).unwrap();
        assert_eq!(file.content(), Some(&b"old"[..]));
        file.replace(b"new".to_vec()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_second_holder_is_refused_before_and_after_replacements() {
        let (_directory, path) = scratch();
        let mut first = LockedFile::open(&path).unwrap();
        first.replace(b"1".to_vec()).unwrap();
        assert!(matches!(
            LockedFile::open(&path),
            Err(FileError::InUse { .. })
        ));
        first.replace(b"2".to_vec()).unwrap();
        assert!(matches!(
            LockedFile::open(&path),
            Err(FileError::InUse { .. })
        ));
        drop(first);
        assert_eq!(LockedFile::open(&path).unwrap().content(), Some(&b"2"[..]));
    }

    #[test]
    fn of_two_that_create_it_one_is_refused() {
        let (_directory, path) = scratch();
        let mut first = LockedFile::open(&path).unwrap();
        let mut second = LockedFile::open(&path).unwrap();
        first.replace(b"first".to_vec()).unwrap();
        second.replace(b"second".to_vec()).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_moved_file_is_not_made_anew_and_a_deleted_one_is() {
        let (directory, _) = scratch();
        let folder = directory.path().join("vm");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("state");
        let mut file = LockedFile::open(&path).unwrap();
        file.replace(b"old".to_vec()).unwrap();
        fs::remove_file(&path).unwrap();
        file.replace(b"again".to_vec()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"again");
        let moved = directory.path().join("moved");
        fs::rename(&folder, &moved).unwrap();
        let mut fails = || match file.replace(b"new".to_vec()) {
            Err(FileError::Moved { .. }) => {}
            other => panic!("{other:?}"),
        };
        fails();
        fs::create_dir(&folder).unwrap();
        fails();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
        fs::rename(&moved, &folder).unwrap();
        fs::rename(&path, folder.join("x")).unwrap();
        fs::write(&path, b"another's").unwrap();
        fails();
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        fs::rename(folder.join("x"), &path).unwrap();
        file.replace(b"new".to_vec()).unwrap();
    }

    #[test]
    fn a_huge_file_is_not_read() {
        let (_directory, path) = scratch();
        File::create(&path).unwrap().set_len(SIZE_MAX + 1).unwrap();
        assert!(matches!(
            LockedFile::open(&path),
            Err(FileError::TooLarge { .. })
        ));
    }

    /// A mark names a state file, so that its path may be anything.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let (directory, path) = scratch();
        let target = directory.path().join("target");
        fs::write(&target, b"old").unwrap();
        let refused = |what: &str| {
            let errors = [
                LockedFile::open(&path).unwrap_err().to_string(),
                LockedFile::look(&path).unwrap_err().to_string(),
                read_small(&path).unwrap_err().to_string(),
            ];
            for error in errors {
                assert!(error.contains(what), "{error}");
            }
            fs::remove_file(&path).unwrap();
        };
        std::os::unix::fs::symlink(&target, &path).unwrap();
        refused("symbolic link: give the path of the file itself");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(CWD, &path, mode).unwrap();
        refused("it is a pipe");
        assert_eq!(read_small(&target).unwrap(), b"old");
    }

    #[test]
    fn a_file_that_becomes_a_link_is_not_replaced() {
        let (directory, path) = scratch();
        let mut file = LockedFile::open(&path).unwrap();
        file.replace(b"old".to_vec()).unwrap();
        let target = directory.path().join("target");
        fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = file.replace(b"new".to_vec()).unwrap_err();
        assert!(matches!(error, FileError::Moved { .. }), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }
}
