//! Opening, locking, creating and growing.

use super::*;
use crate::io::lock;
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

/// For a file that nobody has open any more. A process that another test is just
/// starting may still have a copy of the descriptor, and with it the lock.
fn open_soon(path: &Path, options: OpenOptions) -> BlockFile {
    let start = std::time::Instant::now();
    loop {
        match BlockFile::open(path, options) {
            Err(OpenError::InUse { .. }) if start.elapsed().as_secs() < 5 => {}
            other => return other.unwrap(),
        }
    }
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
        |result: Result<BlockFile, OpenError>| matches!(result, Err(OpenError::InUse { .. }));
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

    let one = open_soon(&path, OpenOptions::read_only());
    let two = reader().unwrap();
    assert!(in_use(open(&path)));
    drop((one, two));
    open_soon(&path, OpenOptions::default());
}

#[test]
fn a_lock_that_no_process_has_any_more_is_waited_for() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    // Of this process, which is not looked at: nobody seems to have it.
    let held = open(&path).unwrap();
    let last_io = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(held);
    });
    open(&path).unwrap();
    last_io.join().unwrap();
}

#[test]
fn lock_user_in_another_process_is_named() {
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let mut sleeper = std::process::Command::new("sleep");
    let mut child = sleeper
        .arg("60")
        .stdin(File::open(&path).unwrap())
        .spawn()
        .unwrap();
    let metadata = fs::metadata(&path).unwrap();
    let pid = child.id();
    // Until `exec`, the child still has our name and all our descriptors.
    let start = std::time::Instant::now();
    let mut user = None;
    while user != Some(format!("sleep (pid {pid})")) && start.elapsed().as_secs() < 5 {
        user = lock::find_user(metadata.dev(), metadata.ino());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(user, Some(format!("sleep (pid {pid})")));
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
    assert!(matches!(open(&path), Err(OpenError::InUse { .. })));
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
    assert_eq!(
        open_soon(&path, OpenOptions::default()).device_string(),
        "0:0"
    );
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

/// A loop device over a file, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(backing: &Path) -> Option<Self> {
        let mut losetup = std::process::Command::new("losetup");
        let output = losetup.args(["--find", "--show"]).arg(backing).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ))),
            _ => {
                eprintln!("skipped: loop devices are not allowed here");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .arg("-d")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn block_device_is_measured_named_and_claimed() {
    let dir = Dir::new();
    let backing = dir.file("backing", 1 << 20);
    let Some(device) = Loop::new(&backing) else {
        return;
    };
    let file = open(&device.0).unwrap();
    assert!(file.is_device());
    assert_eq!((file.size(), file.block_size()), (1 << 20, 512));
    let name = device.0.file_name().unwrap().to_str().unwrap().to_owned();
    let numbers = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap();
    assert_eq!(file.device_string(), numbers.trim());
    let path = device.0.clone();
    assert_eq!(
        file.grow(2 << 20),
        Err(OpenError::FixedSize {
            path: path.clone(),
            size: 1 << 20
        })
    );
    // The device's claim, or the lock: either way the second writer is kept out.
    let second = open(&path).unwrap_err();
    assert!(
        matches!(
            second,
            OpenError::DeviceBusy { .. } | OpenError::InUse { .. }
        ),
        "{second}"
    );
    assert_eq!(create(&path, 4096).unwrap_err(), OpenError::Exists { path });
}

#[test]
fn qemu_respects_our_locks_and_we_respect_its() {
    let dir = Dir::new();
    let path = dir.file("image", 1 << 20);
    let qemu_opens = |mode: &[&str]| {
        let mut qemu = std::process::Command::new("qemu-io");
        qemu.args(["-f", "raw", "-c", "read 0 512"])
            .args(mode)
            .arg(&path);
        qemu.output().ok().map(|output| output.status.success())
    };
    let Some(free) = qemu_opens(&[]) else {
        eprintln!("skipped: no qemu-io here");
        return;
    };
    assert!(free);
    let writer = open_soon(&path, OpenOptions::default());
    assert_eq!(
        (qemu_opens(&[]), qemu_opens(&["-r"])),
        (Some(false), Some(false))
    );
    drop(writer);
    let reader = open_soon(&path, OpenOptions::read_only());
    assert_eq!(
        (qemu_opens(&[]), qemu_opens(&["-r"])),
        (Some(false), Some(true))
    );
    drop(reader);

    for (mode, reader_fits) in [(&[][..], false), (&["-r"], true)] {
        let mut qemu = std::process::Command::new("qemu-io");
        qemu.args(["-f", "raw"]).args(mode).arg(&path);
        qemu.stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = qemu.spawn().unwrap();
        let user = Some(format!("qemu-io (pid {})", child.id()));
        let refused = Err(OpenError::InUse {
            path: path.clone(),
            user,
        });
        // Its prompt says that it has the image open (or has failed to).
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
        let writer = open(&path).map(drop);
        let reader = BlockFile::open(&path, OpenOptions::read_only()).map(drop);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(writer, refused);
        assert_eq!(reader, if reader_fits { Ok(()) } else { refused });
    }
}
