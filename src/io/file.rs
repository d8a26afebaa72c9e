//! An origin or COW on the host: a regular file or a block device.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::OwnedBuffer;
use super::allocate::Abilities;
use super::found::{self, Found};
use super::identity::Identity;
use super::kernel_use;
use super::lock::Lock;
use super::locking::{self, Outcome};
use super::open_error::{OpenError, errno_of};
use super::other_names;
use crate::units::SECTOR_SIZE;

/// Whether to bypass the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the file supports direct I/O in sectors.
    #[default]
    Auto,
    Off,
}

/// How to open. The default: read and write, exclusively, direct if possible,
/// and the file must exist.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    pub read_only: bool,
    pub direct: Direct,
    /// A descriptor without write access can only be locked shared, so with `read_only`
    /// `Exclusive` means `Shared`.
    pub lock: Lock,
    /// Create a regular file of this many bytes (a multiple of 512); it must not exist.
    pub create: Option<u64>,
    /// Give the created file no space yet: it may be larger than the file
    /// system has room for, and a write may fail with ENOSPC later.
    pub sparse: bool,
    /// Space that the file has is never given back by zeroing.
    pub keep_space: bool,
    /// Detect that another program has shortened the file: from then on only
    /// [`BlockFile::grow`] makes it longer, and flushes fail.
    pub guard_size: bool,
    /// Accept a file whose size no store or disk can have; a part of a sector at its
    /// end is ignored.
    pub any_size: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            direct: Direct::Auto,
            lock: Lock::Exclusive,
            create: None,
            sparse: false,
            keep_space: false,
            guard_size: false,
            any_size: false,
        }
    }
}

impl OpenOptions {
    /// For reading, while other processes may read as well.
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            lock: Lock::Shared,
            ..Self::default()
        }
    }
}

/// An open origin or COW. Its lock lasts until it is dropped.
#[derive(Debug)]
pub struct BlockFile {
    file: File,
    /// What the device is made of, locked as well.
    #[expect(dead_code, reason = "held for its locks")]
    beneath: Vec<File>,
    path: PathBuf,
    identity: Identity,
    size: AtomicU64,
    block_size: u32,
    memory_align: usize,
    direct: bool,
    flushes_apart: bool,
    /// The file lies in memory, and calls are carried out at once: see
    /// [`BlockFile::try_at_once`].
    at_once: AtomicBool,
    read_only: bool,
    keep_space: bool,
    /// The end of what was written or has to be there, in bytes, if the size is
    /// guarded.
    held: Option<AtomicU64>,
    abilities: Abilities,
    /// See `known_zeroing.rs`.
    zeroing_known: bool,
}

impl BlockFile {
    /// Opens (or creates) `path` as `options` say.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let Some(size) = options.create else {
            return Self::open_existing(path, options);
        };
        let file = create(path, size)?;
        let opened = Self::check(file, path, options).and_then(|new| {
            new.give_size(size, options.sparse)?;
            new.make_creation_durable()?;
            Ok(new)
        });
        // An unfinished file must not be mistaken for a store later.
        opened.inspect_err(|_| drop(fs::remove_file(path)))
    }

    fn open_existing(path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        // The type is checked first, because opening can have side effects (a tape, a
        // terminal). The path is looked up once, so that what was checked is what is opened;
        // symbolic links are followed, because names of devices are links.
        let failed = |e: io::Error| open_failed(path, &options, errno_of(&e));
        let found = Found::at(path).map_err(failed)?;
        let metadata = found.metadata().map_err(failed)?;
        check_type(path, metadata.file_type())?;
        let mut flags = if options.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        if metadata.file_type().is_block_device() && options.lock == Lock::Exclusive {
            flags |= OFlags::EXCL;
        }
        Self::from_file(found.open(flags).map_err(failed)?, path, options)
    }

    /// As [`Self::open`], for a file that is open already, and that `path` led to.
    ///
    /// # Errors
    /// It is in use, or not of a size that `options` allow.
    pub fn from_file(file: File, path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let opened = Self::check(file, path, options)?;
        let size = opened.size();
        if options.any_size {
            return Ok(opened);
        }
        if size < SECTOR_SIZE {
            return Err(OpenError::TooSmall {
                path: path.to_owned(),
                size,
            });
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(OpenError::OddSize {
                path: path.to_owned(),
                size,
            });
        }
        Ok(opened)
    }

    /// Makes the empty file `size` bytes long.
    pub(super) fn give_size(&self, size: u64, sparse: bool) -> Result<(), OpenError> {
        if sparse {
            self.set_size(size)?;
        } else {
            self.preallocate(0, size)?;
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Checks and locks an open descriptor, as far as that does not depend on its size.
    fn check(file: File, path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let metadata = file
            .metadata()
            .map_err(|e| OpenError::io(path, "look at it", errno_of(&e)))?;
        check_type(path, metadata.file_type())?;
        let lock = match (options.read_only, options.lock) {
            (true, Lock::Exclusive) => Lock::Shared,
            (true, Lock::Look) => Lock::LookShared,
            (_, lock) => lock,
        };
        let identity = Identity::of(&metadata);
        let is_device = matches!(identity, Identity::Device { .. });
        take_lock(&file, path, lock)?;
        let beneath = other_names::exclude(path, identity, lock)?;
        let zeroing_known = Self::zeroing_is_known(identity, &file);
        // O_NONBLOCK was for opening only; with it io_uring could return EAGAIN.
        set_direct(&file, false).map_err(|e| OpenError::io(path, "set its flags", e))?;
        let mut this = Self {
            file,
            beneath,
            path: path.to_owned(),
            identity,
            size: AtomicU64::new(0),
            block_size: 512,
            memory_align: 1,
            direct: false,
            flushes_apart: false,
            at_once: AtomicBool::new(false),
            read_only: options.read_only,
            keep_space: options.keep_space,
            // A device cannot be shortened like a file.
            held: (options.guard_size && !is_device).then(AtomicU64::default),
            abilities: Abilities::default(),
            zeroing_known,
        };
        this.refresh_size()?;
        if is_device {
            let size = rustix::fs::ioctl_blksszget(&this.file);
            this.block_size = size.map_err(|e| OpenError::io(path, "read its block size", e))?;
        }
        if options.direct == Direct::Auto {
            this.try_direct();
        }
        this.flushes_apart = this.direct && !is_device && needs_flush(metadata.dev());
        Ok(this)
    }

    /// Bypasses the page cache if the file system and the device support that in the
    /// blocks that guests use; otherwise nothing changes.
    fn try_direct(&mut self) {
        let flags = StatxFlags::DIOALIGN;
        let Ok(statx) = rustix::fs::statx(&self.file, c"", AtFlags::EMPTY_PATH, flags) else {
            return;
        };
        let reported = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN);
        let (memory, offset) = (statx.stx_dio_mem_align, statx.stx_dio_offset_align);
        // A regular file is served in sectors, so it needs alignment to sectors.
        // Where the alignment is not reported (old kernels, tmpfs), one block is assumed,
        // and a trial read shows whether that works.
        if reported && (offset == 0 || offset > self.block_size) {
            return;
        }
        let memory = if reported {
            usize::try_from(memory).unwrap_or(1).max(1)
        } else {
            512
        };
        if set_direct(&self.file, true).is_ok() {
            if self.trial_read().is_ok() {
                self.direct = true;
                self.memory_align = memory;
                self.try_at_once();
            } else {
                // The same call has just succeeded.
                let _ = set_direct(&self.file, false);
            }
        }
    }

    /// tmpfs does not declare that its calls do not block, so io_uring passes each to
    /// another thread, which costs more than the call itself. With O_NONBLOCK it relies on
    /// the declaration of who opened the file.
    fn try_at_once(&self) {
        const TMPFS: i128 = 0x0102_1994;
        let is_memory =
            rustix::fs::fstatfs(&self.file).is_ok_and(|s| i128::from(s.f_type) == TMPFS);
        if is_memory && !self.is_device() {
            let flags = OFlags::DIRECT | OFlags::NONBLOCK;
            let set = rustix::fs::fcntl_setfl(&self.file, flags).is_ok();
            self.at_once.store(set, Ordering::Release);
        }
    }

    /// A call ended with EAGAIN, which the next one must not do.
    pub(super) fn may_block(&self) {
        if self.at_once.swap(false, Ordering::AcqRel) {
            let _ = set_direct(&self.file, true);
        }
    }

    fn trial_read(&self) -> Result<(), Errno> {
        let mut buffer = OwnedBuffer::zeroed(usize::try_from(self.block_size).unwrap_or(512));
        // Only EINVAL means that direct I/O is not supported. An unreadable first block is
        // reported when it is used.
        match rustix::io::pread(&self.file, buffer.as_mut_slice(), 0) {
            Err(Errno::INVAL) => Err(Errno::INVAL),
            _ => Ok(()),
        }
    }

    /// Size in bytes when it was last read.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.size() / SECTOR_SIZE
    }

    /// Reads the size in bytes again, because a device may have been enlarged.
    pub fn refresh_size(&self) -> Result<u64, OpenError> {
        let size = self.present_size()?;
        self.size.store(size, Ordering::Release);
        Ok(size)
    }

    /// The size in bytes that the file or device has now; [`Self::size`] stays.
    pub fn present_size(&self) -> Result<u64, OpenError> {
        let size = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0));
        size.map_err(|e| OpenError::io(&self.path, "find its size", e))
    }

    /// Logical block size in bytes: offsets and lengths must be multiples of it.
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The alignment in bytes that addresses in memory must have.
    pub const fn memory_align(&self) -> usize {
        self.memory_align
    }

    /// Whether I/O bypasses the page cache.
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether reads and writes wait for a device, rather than being carried out in memory
    /// while they are submitted.
    pub(super) fn waits_for_device(&self) -> bool {
        self.direct && !self.at_once.load(Ordering::Relaxed)
    }

    /// Whether a durable write through io_uring is a write and then a flush. With RWF_DSYNC the
    /// file system would flush in a work queue of the processor that the disk interrupts, and
    /// that may wait for a whole time slice of a guest that runs there. io_uring's flush runs
    /// in a thread of the caller.
    pub const fn flushes_apart(&self) -> bool {
        self.flushes_apart
    }

    /// Whatever the file system is.
    #[cfg(test)]
    pub(super) const fn set_flushes_apart(&mut self, apart: bool) {
        self.flushes_apart = apart;
    }

    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether zeroing must not give its space back.
    pub const fn keeps_space(&self) -> bool {
        self.keep_space
    }

    /// See [`Self::hold`]; `None`: the size is not guarded.
    pub(super) const fn held(&self) -> Option<&AtomicU64> {
        self.held.as_ref()
    }

    /// The forms of zeroing that are known to fail on this file.
    pub(super) const fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Whether a range that it was told to zero, or that it reports as a hole, is known to read as
    /// zeroes.
    pub const fn zeroes_reliably(&self) -> bool {
        self.zeroing_known
    }

    /// Whether it is a block device.
    pub const fn is_device(&self) -> bool {
        matches!(self.identity, Identity::Device { .. })
    }

    /// Equal for two opens of the same storage, whatever the path.
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// "major:minor" as device-mapper prints it; "0:0" for a regular file.
    pub fn device_string(&self) -> String {
        match self.identity {
            Identity::File { .. } => "0:0".to_owned(),
            Identity::Device { number } => {
                format!(
                    "{}:{}",
                    rustix::fs::major(number),
                    rustix::fs::minor(number)
                )
            }
        }
    }
}

impl AsFd for BlockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn create(path: &Path, size: u64) -> Result<File, OpenError> {
    if size < SECTOR_SIZE {
        return Err(OpenError::TooSmall {
            path: path.to_owned(),
            size,
        });
    }
    if !size.is_multiple_of(SECTOR_SIZE) {
        return Err(OpenError::OddSize {
            path: path.to_owned(),
            size,
        });
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| match e {
        Errno::EXIST => OpenError::Exists {
            path: path.to_owned(),
        },
        e => open_failed(path, &OpenOptions::default(), e),
    })?;
    Ok(File::from(fd))
}

fn open_failed(path: &Path, options: &OpenOptions, errno: Errno) -> OpenError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NXIO | Errno::NODEV => OpenError::Missing { path },
        Errno::ACCESS | Errno::PERM => OpenError::Denied {
            path,
            write: !options.read_only,
        },
        Errno::ROFS | Errno::TXTBSY => OpenError::WriteProtected { path },
        Errno::BUSY => {
            let number = fs::metadata(&path).map(|m| m.rdev()).ok();
            let by = number.and_then(kernel_use::in_words);
            OpenError::DeviceBusy { path, by }
        }
        Errno::ISDIR => OpenError::WrongType {
            path,
            what: "directory",
        },
        e => OpenError::io(&path, "open it", e),
    }
}

fn check_type(path: &Path, kind: fs::FileType) -> Result<(), OpenError> {
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else {
        found::in_words(kind)
    };
    Err(OpenError::WrongType {
        path: path.to_owned(),
        what,
    })
}

/// Takes the lock of a file that has just been opened.
fn take_lock(file: &File, path: &Path, lock: Lock) -> Result<(), OpenError> {
    let outcome = locking::take_or_find_user(file.as_fd(), lock)
        .map_err(|e| OpenError::io(path, "lock it", errno_of(&e)))?;
    let path = path.to_owned();
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::NoLocks => {
            tracing::warn!(path = %path.display(), "its file system has no locks: nothing keeps other \
                programs from writing it");
            Ok(())
        }
        Outcome::Own => Err(OpenError::OwnUse { path }),
        Outcome::Other(user, held) => Err(OpenError::InUse { path, user, held }),
    }
}

/// Whether a file system on this device has to flush it after a write that must be durable:
/// it has a volatile cache and cannot write through it. False for file systems without a
/// device of their own.
fn needs_flush(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = |name: &str| {
        let folder = format!("/sys/dev/block/{major}:{minor}");
        // A partition has the settings of its disk.
        fs::read_to_string(format!("{folder}/queue/{name}"))
            .or_else(|_| fs::read_to_string(format!("{folder}/../queue/{name}")))
    };
    let is = |name, value| setting(name).is_ok_and(|text| text.trim() == value);
    major != 0 && !is("fua", "1") && !is("write_cache", "write through")
}

/// Sets the status flags to O_DIRECT alone or to none.
fn set_direct(file: &File, direct: bool) -> Result<(), Errno> {
    rustix::fs::fcntl_setfl(
        file,
        if direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        },
    )
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
