//! Files that are looked at before they are opened: what was checked is what is opened, whatever
//! the path leads to by then.

use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Follow,
    Refuse,
}

/// What a path led to at one moment. It is not open for data, because opening can have side effects
/// (a tape, a terminal) or wait (a pipe).
#[derive(Debug)]
pub struct Found(File);

impl Found {
    /// Looks `path` up, once, with symbolic links followed.
    ///
    /// # Errors
    /// There is nothing, or a folder of the path cannot be searched.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::look(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    fn look(path: &Path, flags: OFlags) -> io::Result<Self> {
        let found = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self(File::from(found)))
    }

    /// # Errors
    /// The file system does not answer.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    /// Opens this, and nothing else. A device or a pipe is not waited for.
    ///
    /// # Errors
    /// It may not be opened like this.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = rustix::fs::open(by_descriptor(self), flags, Mode::empty())?;
        Ok(File::from(file))
    }
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A path that leads to this as long as it is open, whatever has become of its own path. For calls that
/// refuse a descriptor that is not open for data.
pub fn by_descriptor(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// Opens a regular file that exists.
///
/// # Errors
/// It cannot be opened, or it is something else, which the error names.
pub fn open_regular(path: &Path, links: Links, flags: OFlags) -> io::Result<File> {
    let look = OFlags::PATH | OFlags::CLOEXEC;
    let found = Found::look(
        path,
        match links {
            Links::Follow => look,
            Links::Refuse => look | OFlags::NOFOLLOW,
        },
    )?;
    let kind = found.metadata()?.file_type();
    if kind.is_symlink() {
        return Err(io::Error::other(
            "it is a symbolic link: give the path of the file itself",
        ));
    }
    if !kind.is_file() {
        let what = in_words(kind);
        return Err(io::Error::other(format!(
            "it is a {what}, and has to be a regular file"
        )));
    }
    found.open(flags)
}

/// What a thing is that is not a regular file.
pub fn in_words(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_block_device() {
        "block device"
    } else {
        "character device"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn content(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_was_found_is_opened_although_its_path_leads_elsewhere_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "found").unwrap();
        let found = Found::at(&path).unwrap();
        fs::write(folder.path().join("b"), "another").unwrap();
        fs::rename(folder.path().join("b"), &path).unwrap();
        assert_eq!(content(found.open(OFlags::RDONLY).unwrap()), "found");
        assert_eq!(content(File::open(&path).unwrap()), "another");
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "x").unwrap();
        symlink(path("file"), path("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), Mode::RUSR).unwrap();
        symlink(path("pipe"), path("to pipe")).unwrap();
        let open = |name: &str, links| {
            let opened = open_regular(&path(name), links, OFlags::RDONLY);
            opened.map(content).map_err(|e| e.to_string())
        };
        assert_eq!(open("file", Links::Refuse).unwrap(), "x");
        assert_eq!(open("link", Links::Follow).unwrap(), "x");
        for (name, links, word) in [
            ("link", Links::Refuse, "symbolic link"),
            ("pipe", Links::Refuse, "a pipe"),
            ("to pipe", Links::Follow, "a pipe"),
            (".", Links::Follow, "a directory"),
        ] {
            let error = open(name, links).unwrap_err();
            assert!(error.contains(word), "{name}: {error}");
        }
        let error = open_regular(Path::new("/dev/null"), Links::Follow, OFlags::RDONLY);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("character device"), "{error}");
        let missing = open_regular(&path("none"), Links::Refuse, OFlags::RDONLY);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
