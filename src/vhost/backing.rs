//! The files behind what a front end wants to be mapped.

use std::fs::File;
use std::io;

use crate::size::in_words;
use rustix::fs::{FileType, FsWord, fstatfs};

/// What to look for when the guest's memory and the memory that is here are not the same.
pub const UNSHARED: &str =
    "is share=on missing for the guest's memory (cloud-hypervisor: shared=on)?";

/// What a front end wants to be mapped, of a file that it passes.
pub struct Backing<'a> {
    /// For messages.
    pub what: &'a str,
    pub len: u64,
    pub offset: u64,
}

impl Backing<'_> {
    /// It must lie within its file: touching a page beyond the end would kill the process,
    /// with all other guests.
    pub fn check_size(&self, file: &File) -> io::Result<()> {
        let Self { what, len, offset } = self;
        let stat = rustix::fs::fstat(file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(invalid(format!(
                "{what} is backed by {}, not by shared memory or a file; {UNSHARED}",
                kind_of(kind)
            )));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        match offset.checked_add(*len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(invalid(format!(
                "{what} needs {} from offset {offset} of a file of {}",
                in_words(*len),
                in_words(size)
            ))),
        }
    }

    /// The size in bytes of the file's pages, if its pages are memory of this machine. Pages
    /// of other file systems may never arrive (FUSE, a network), and nobody could end a
    /// process that waits for one.
    pub fn check_kind(&self, file: &File, any: bool) -> io::Result<usize> {
        const TMPFS: FsWord = 0x0102_1994;
        const HUGETLBFS: FsWord = 0x9584_58f6;
        let stat = fstatfs(file)?;
        match stat.f_type {
            HUGETLBFS => usize::try_from(stat.f_bsize).map_err(io::Error::other),
            TMPFS => Ok(0),
            _ if any => Ok(0),
            kind => Err(invalid(format!(
                "{} is a file on a file system of type {kind:#x}, whose pages may never arrive; \
                 use a memfd, /dev/shm or hugetlbfs, or start snapback with --any-guest-memory",
                self.what
            ))),
        }
    }
}

/// The kind of file behind a descriptor, in words.
pub const fn kind_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "no file",
    }
}

pub fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
