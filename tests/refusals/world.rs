//! A folder with a disk and what stands beside it, and the one comparison that
//! all refusals go through.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Bytes of `disk.img`.
pub const DISK: usize = 1 << 20;
/// Bytes of a chunk in the stores made here.
pub const CHUNK: usize = 4096;
/// A refusal comes at once; what still runs then is not refusing.
const PATIENCE: Duration = Duration::from_secs(20);

/// All that can be seen of a file from outside. Not the times of folders: a
/// socket that was bound and closed again is no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    inode: u64,
    links: u64,
    size: u64,
    modified: (i64, i64),
    content: u64,
}

type Everything = BTreeMap<PathBuf, Seen>;

/// Held for reading while a process is started and until it is known to run.
static STARTS: RwLock<()> = RwLock::new(());

pub struct World {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
    /// No other test starts a process.
    alone: Option<RwLockWriteGuard<'static, ()>>,
}

/// What a refused command printed.
#[derive(Debug)]
pub struct CommandOutput {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    /// With `disk.img`, no sector of which is like another.
    pub fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            daemons: Vec::new(),
            alone: None,
        };
        let disk: Vec<u8> = (0..DISK).map(|i| (i / 512 * 13 + i) as u8).collect();
        world.write("disk.img", &disk);
        world
    }

    /// For tests in which a refusal names who has a file open: a child of another test
    /// has all descriptors of this process until its exec, and it may be found first.
    pub fn alone() -> Self {
        let mut world = Self::new();
        world.alone = Some(STARTS.write().unwrap_or_else(PoisonError::into_inner));
        world
    }

    fn starts(&self) -> Option<RwLockReadGuard<'static, ()>> {
        let shared = self.alone.is_none();
        shared.then(|| STARTS.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env_remove("SNAPBACK_LOG")
            .env("SNAPBACK_CONTROL", "c.sock")
            .args(arguments);
        command
    }

    /// Runs a command that ends by itself.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> CommandOutput {
        let _starts = self.starts();
        self.run_in_turn(arguments)
    }

    #[track_caller]
    fn run_in_turn(&self, arguments: &[&str]) -> CommandOutput {
        let mut command = assert_cmd::Command::from_std(self.command(arguments));
        let Output {
            status,
            stdout,
            stderr,
        } = command.timeout(PATIENCE).output().unwrap();
        CommandOutput {
            status: status.code(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Runs another program.
    #[track_caller]
    pub fn succeed(&self, command: &mut Command) {
        let _starts = self.starts();
        let status = command.status().unwrap();
        assert!(status.success(), "{command:?}: {status}");
    }

    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.status, Some(0), "{arguments:?}: {said:?}");
        said.stdout
    }

    /// Exit status 2, silence on stdout, one message from us with all of
    /// `words`, and everything in the folder as it was before.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], words: &[&str]) {
        let said = self.untouched(arguments, Some(2));
        assert_eq!(said.stdout, "", "{arguments:?}");
        let message = said.stderr.trim_end();
        assert!(
            said.stderr.starts_with("snapback: ") && !message.contains("panicked"),
            "{arguments:?}: {message}"
        );
        for word in words {
            assert!(
                message.contains(word),
                "{arguments:?}: no {word:?} in: {message}"
            );
        }
    }

    /// Exit status 1: the answer, on stdout, is no. Nothing is touched.
    #[track_caller]
    pub fn answered_no(&self, arguments: &[&str], words: &[&str]) {
        let said = self.untouched(arguments, Some(1));
        assert_eq!(said.stderr, "", "{arguments:?}");
        for word in words {
            assert!(
                said.stdout.contains(word),
                "{arguments:?}: no {word:?} in: {}",
                said.stdout
            );
        }
    }

    /// `serve` with the disk and these options is refused.
    #[track_caller]
    pub fn start_refused(&self, options: &[&str], words: &[&str]) {
        let start = [&["serve", "--origin", "disk.img"], options].concat();
        self.refused(&start, words);
    }

    #[track_caller]
    fn untouched(&self, arguments: &[&str], status: Option<i32>) -> CommandOutput {
        let before = self.everything();
        let said = self.run(arguments);
        let after = self.everything();
        assert_eq!(said.status, status, "{arguments:?}: {said:?}");
        for (path, seen) in &before {
            assert_eq!(after.get(path), Some(seen), "{arguments:?}: {path:?}");
        }
        let new: Vec<_> = after.keys().filter(|p| !before.contains_key(*p)).collect();
        assert!(new.is_empty(), "{arguments:?} made {new:?}");
        said
    }

    fn everything(&self) -> Everything {
        let mut found = Everything::new();
        look(self.folder.path(), &mut found);
        // The user's folder for daemons is no part of a volume. It stays, and nothing in it.
        found.remove(&self.folder.path().join("snapback"));
        found
    }

    /// Starts `serve` for `origin` and waits until it answers.
    #[track_caller]
    pub fn serve(&mut self, origin: &str, options: &[&str]) {
        self.serve_at("c.sock", origin, options);
    }

    #[track_caller]
    pub fn serve_at(&mut self, control: &str, origin: &str, options: &[&str]) {
        let _starts = self.starts();
        let daemon = self
            .command(&["serve", "--origin", origin, "--control", control])
            .args(options)
            .env("SNAPBACK_LOG", "error")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemons.push(daemon);
        let start = Instant::now();
        while self.run_in_turn(&["status", "--control", control]).status != Some(0) {
            let ended = self.daemons.last_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{origin} {options:?}");
            assert!(start.elapsed() < PATIENCE, "{origin} {options:?}");
        }
    }

    /// Of the latest daemon.
    pub fn pid(&self) -> u32 {
        self.daemons.last().unwrap().id()
    }

    /// Ends the latest daemon as an operator does.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut daemon = self.daemons.pop().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success());
    }

    /// Ends the latest daemon as a power cut does.
    pub fn kill(&mut self) {
        let mut daemon = self.daemons.pop().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Serves the disk with snapshot `s`, whose merge is stopped in the middle,
    /// and with the snapshots in `options`.
    #[track_caller]
    pub fn serve_half_merged(&mut self, options: &[&str]) {
        self.write("s.cow", &store(200));
        let start = [&["--snapshot", "name=s,cow=s.cow"], options].concat();
        self.serve("disk.img", &start);
        // At a byte a second it does not end by itself.
        self.done(&["merge", "s", "--rate", "1"]);
        self.done(&["merge", "--pause"]);
        let start = Instant::now();
        let mut before = self.everything();
        let mut quiet = 0;
        while quiet < 8 {
            // The batch under way goes on after the pause, and may be slow.
            std::thread::sleep(Duration::from_millis(50));
            let now = self.everything();
            let same = std::mem::replace(&mut before, now.clone()) == now;
            quiet = if same { quiet + 1 } else { 0 };
            assert!(start.elapsed() < PATIENCE, "the paused merge goes on");
        }
        let status = self.done(&["status"]);
        assert!(status.contains("merge-paused"), "{status}");
    }

    /// The state file of the disk, changed.
    pub fn edit_state(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut state = serde_json::from_slice(&self.read("disk.img.snapback")).unwrap();
        change(&mut state);
        self.write("disk.img.snapback", state.to_string().as_bytes());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn look(path: &Path, found: &mut Everything) {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut hash = DefaultHasher::new();
    let (size, modified) = if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            look(&entry.unwrap().path(), found);
        }
        (0, (0, 0))
    } else {
        if meta.is_file() {
            fs::read(path).unwrap().hash(&mut hash);
        } else if meta.is_symlink() {
            fs::read_link(path).unwrap().hash(&mut hash);
        }
        (meta.size(), (meta.mtime(), meta.mtime_nsec()))
    };
    let seen = Seen {
        mode: meta.mode(),
        inode: meta.ino(),
        links: if meta.is_dir() { 0 } else { meta.nlink() },
        size,
        modified,
        content: hash.finish(),
    };
    found.insert(path.to_owned(), seen);
}

/// A store for a disk of [`DISK`] bytes as Linux writes it: these many chunks,
/// the first of them kept in it.
pub fn store(entries: u64) -> Vec<u8> {
    let chunks = DISK / CHUNK + 16;
    let mut bytes = vec![0; chunks * CHUNK];
    bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    for old in 0..entries {
        let new = old + 2;
        let slot = CHUNK + old as usize * 16;
        bytes[slot..slot + 8].copy_from_slice(&old.to_le_bytes());
        bytes[slot + 8..slot + 16].copy_from_slice(&new.to_le_bytes());
        bytes[new as usize * CHUNK..][..CHUNK].fill(old as u8 + 1);
    }
    bytes
}

/// An open-file-description lock of `kind` over `len` bytes from `start` (0: to
/// the end), as other programs that use images take them.
pub struct Held(fs::File);

impl Drop for Held {
    /// Closing is not enough: a child that another test's thread has forked and
    /// that has not yet become another program shares the lock.
    fn drop(&mut self) {
        set_lock(&self.0, libc::F_UNLCK, 0, 0);
    }
}

pub fn hold(path: impl AsRef<OsStr>, kind: i32, start: i64, len: i64) -> Held {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path.as_ref())
        .unwrap();
    set_lock(&file, kind, start, len);
    Held(file)
}

fn set_lock(file: &fs::File, kind: i32, start: i64, len: i64) {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: the descriptor is open, and the kernel only reads `lock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn whatever_is_done_to_a_file_is_noticed() {
    let world = World::new();
    let disk = world.path("disk.img");
    let touches: [(&str, &dyn Fn()); 6] = [
        ("a byte", &|| {
            let mut bytes = world.read("disk.img");
            bytes[DISK - 1] ^= 1;
            world.write("disk.img", &bytes);
        }),
        ("the same bytes again", &|| {
            world.write("disk.img", &world.read("disk.img"));
        }),
        ("the mode", &|| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&disk, fs::Permissions::from_mode(0o400)).unwrap();
        }),
        ("another name", &|| {
            fs::hard_link(&disk, world.path("new.img")).unwrap();
        }),
        ("a copy in its place", &|| {
            fs::copy(&disk, world.path("copy")).unwrap();
            fs::rename(world.path("copy"), &disk).unwrap();
        }),
        ("an empty folder", &|| {
            fs::create_dir(world.path("folder")).unwrap();
        }),
    ];
    for (what, touch) in touches {
        let before = world.everything();
        assert_eq!(world.everything(), before, "before {what}");
        // So that a clock with coarse ticks tells the two moments apart.
        std::thread::sleep(Duration::from_millis(20));
        touch();
        assert_ne!(world.everything(), before, "{what}");
    }
}
