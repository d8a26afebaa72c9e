//! Opening, locking, creating and growing.
//!
//! No test of this program may start a process: between fork and exec a child has all
//! descriptors of all tests, and with them the locks. Tests with other processes are
//! in `tests/locks`.

use std::os::fd::{AsFd, AsRawFd};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use std::os::unix::net::UnixListener;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of `len` bytes.
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

fn open(path: &Path) -> Result<BlockFile, OpenError> {
    BlockFile::open(path, OpenOptions::default())
}

fn create(path: &Path, size: u64) -> Result<BlockFile, OpenError> {
    BlockFile::open(
        path,
        OpenOptions {
            create: Some(size),
            ..OpenOptions::default()
        },
    )
}

#[test]
fn what_cannot_be_a_disk_is_refused_by_name() {
    let dir = Dir::new();
    let wrong = |path: PathBuf, what| (path.clone(), OpenError::WrongType { path, what });
    let socket = dir.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let missing = dir.path("missing");
    let below_a_file = dir.file("file", 512).join("below");
    for (path, expected) in [
        wrong(dir.0.path().to_owned(), "directory"),
        wrong(socket, "socket"),
        wrong(PathBuf::from("/dev/null"), "character device"),
        (missing.clone(), OpenError::Missing { path: missing }),
        (
            below_a_file.clone(),
            OpenError::Missing { path: below_a_file },
        ),
        (
            dir.file("empty", 0),
            OpenError::TooSmall {
                path: dir.path("empty"),
                size: 0,
            },
        ),
        (
            dir.file("small", 511),
            OpenError::TooSmall {
                path: dir.path("small"),
                size: 511,
            },
        ),
        (
            dir.file("odd", 1025),
            OpenError::OddSize {
                path: dir.path("odd"),
                size: 1025,
            },
        ),
    ] {
        let error = open(&path).unwrap_err();
        assert_eq!(error, expected);
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn pipe_is_refused_without_waiting_for_its_other_end() {
    let dir = Dir::new();
    let path = dir.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    assert_eq!(
        open(&path).unwrap_err(),
        OpenError::WrongType { path, what: "pipe" }
    );
}

#[test]
fn writer_excludes_everybody_and_readers_exclude_writers() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let in_use =
        |result: Result<BlockFile, OpenError>| matches!(result, Err(OpenError::OwnUse { .. }));
    let reader = || BlockFile::open(&path, OpenOptions::read_only());

    let writer = open(&path).unwrap();
    assert!(in_use(open(&path)));
    assert!(in_use(reader()));
    let blind = OpenOptions {
        lock: Lock::None,
        ..OpenOptions::read_only()
    };
    assert!(BlockFile::open(&path, blind).is_ok());
    drop(writer);

    let (one, two) = (reader().unwrap(), reader().unwrap());
    assert!(in_use(open(&path)));
    drop((one, two));
    open(&path).unwrap();
}

#[test]
fn a_lock_that_no_process_has_any_more_is_waited_for() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    // The open file is in a message that nobody has received, so that no process has a
    // descriptor of it.
    let held = open(&path).unwrap();
    let sockets = std::os::unix::net::UnixStream::pair().unwrap();
    let sent = sockets
        .0
        .send_with_fd(&[0_u8][..], held.as_fd().as_raw_fd());
    assert_eq!(sent.unwrap(), 1);
    drop(held);
    let last_io = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(sockets);
    });
    open(&path).unwrap();
    last_io.join().unwrap();
}

#[test]
fn created_file_is_allocated_and_locked() {
    let dir = Dir::new();
    let path = dir.path("cow");
    let file = create(&path, 1 << 20).unwrap();
    assert_eq!((file.size(), file.sectors()), (1 << 20, 2048));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 1 << 20);
    assert!(
        metadata.blocks() * 512 >= 1 << 20,
        "sparse: {} blocks",
        metadata.blocks()
    );
    assert!(matches!(open(&path), Err(OpenError::OwnUse { .. })));
    drop(file);
    assert_eq!(
        create(&path, 1 << 20).unwrap_err(),
        OpenError::Exists { path: path.clone() }
    );
    assert!(open(&path).is_ok());
}

#[test]
fn file_of_an_impossible_size_is_not_created() {
    let dir = Dir::new();
    let path = dir.path("cow");
    assert_eq!(
        create(&path, 0).unwrap_err(),
        OpenError::TooSmall {
            path: path.clone(),
            size: 0
        }
    );
    assert_eq!(
        create(&path, 1000).unwrap_err(),
        OpenError::OddSize {
            path: path.clone(),
            size: 1000
        }
    );
    assert!(create(&path, 1 << 62).is_err());
    assert!(!path.exists());
}

#[test]
fn file_grows_with_space_and_never_shrinks() {
    let dir = Dir::new();
    let path = dir.path("cow");
    let file = create(&path, 4096).unwrap();
    assert_eq!(file.grow(65536), Ok(65536));
    assert_eq!(file.size(), 65536);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 65536);
    assert_eq!(file.grow(65536), Ok(65536));
    assert_eq!(
        file.grow(4096),
        Err(OpenError::Shrink {
            path: path.clone(),
            from: 65536,
            to: 4096
        })
    );
    assert_eq!(
        file.grow(65537),
        Err(OpenError::OddSize {
            path: path.clone(),
            size: 65537
        })
    );
    assert!(file.grow(1 << 62).is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), 65536);
}

#[test]
fn same_storage_is_recognised_behind_links() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let other = dir.file("other", 4096);
    std::os::unix::fs::symlink(&path, dir.path("symlink")).unwrap();
    fs::hard_link(&path, dir.path("hardlink")).unwrap();
    let identity = |p: &Path| {
        BlockFile::open(p, OpenOptions::read_only())
            .unwrap()
            .identity()
    };
    assert_eq!(identity(&path), identity(&dir.path("symlink")));
    assert_eq!(identity(&path), identity(&dir.path("hardlink")));
    assert_ne!(identity(&path), identity(&other));
    assert_eq!(open(&path).unwrap().device_string(), "0:0");
}

#[test]
fn read_only_open_works_without_write_permission_and_says_so() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let file = BlockFile::open(
        &path,
        OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    assert!(file.is_read_only());
    // Its lock is a shared one, as a reader cannot have another.
    assert!(BlockFile::open(&path, OpenOptions::read_only()).is_ok());
}

#[test]
fn buffered_open_takes_any_memory_and_clears_nonblock() {
    let dir = Dir::new();
    let options = OpenOptions {
        direct: Direct::Off,
        ..OpenOptions::default()
    };
    let file = BlockFile::open(dir.file("image", 4096), options).unwrap();
    assert_eq!(
        (file.is_direct(), file.memory_align(), file.block_size()),
        (false, 1, 512)
    );
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    assert!(!flags.intersects(OFlags::NONBLOCK | OFlags::DIRECT));
}

/// On tmpfs, whose calls io_uring would otherwise pass to another thread.
#[test]
fn files_in_memory_are_used_at_once_until_a_call_ends_with_eagain() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let options = OpenOptions {
        create: Some(1 << 20),
        ..OpenOptions::default()
    };
    let file = BlockFile::open(dir.path().join("image"), options).unwrap();
    let flags = || rustix::fs::fcntl_getfl(&file).unwrap();
    assert_eq!(flags().contains(OFlags::NONBLOCK), file.is_direct());
    file.may_block();
    assert!(!flags().contains(OFlags::NONBLOCK));
    assert_eq!(flags().contains(OFlags::DIRECT), file.is_direct());
}
