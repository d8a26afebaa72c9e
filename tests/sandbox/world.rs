//! A daemon on a disk of its own, and what the kernel says of its threads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;
use snapback::control::api::{SnapshotSpec, StoreType};

use crate::guest::{Ask, Guest, Kind};

pub const BYTES: u64 = 4 << 20;
/// Nothing in here takes this long.
pub const LONG: Duration = Duration::from_secs(60);
/// A user and a group that own nothing.
pub const USER: (u32, u32) = (54_321, 54_322);

/// A folder with `disk.img`, and the daemon that serves it.
pub struct World {
    pub folder: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = fs::File::create(folder.path().join("disk.img")).unwrap();
        image.set_len(BYTES).unwrap();
        Self {
            folder,
            daemon: None,
        }
    }

    /// The folder belongs to [`USER`], and the disk in it to root only.
    pub fn of_user() -> Self {
        let world = Self::new();
        let only_root = fs::Permissions::from_mode(0o600);
        fs::set_permissions(world.path("disk.img"), only_root).unwrap();
        std::os::unix::fs::chown(world.folder.path(), Some(USER.0), Some(USER.1)).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .args(["serve", "--origin", "disk.img", "--socket-path", "a.sock"])
            .args(["--control", "c.sock"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    pub fn start(&mut self, arguments: &[&str]) {
        self.spawn(&mut self.command(arguments));
    }

    pub fn spawn(&mut self, command: &mut Command) {
        self.daemon = Some(command.spawn().unwrap());
        self.until("the daemon answers", |w| {
            let status = w.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(status, None, "{}", w.log());
            w.client().status().is_ok()
        });
    }

    /// A start that is refused, and what it says.
    pub fn refuse(&self, command: &mut Command) -> String {
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(2), "{}", self.log());
        self.log()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The descriptors that are open when the start is over: once nothing has changed for a second.
    pub fn descriptors_at_rest(&self) -> usize {
        self.client().status().unwrap();
        let open = || {
            let folder = format!("/proc/{}/fd", self.pid());
            fs::read_dir(folder).unwrap().count()
        };
        let (mut last, mut since) = (open(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(20));
            let now = open();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < LONG,
                "not in time: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn spec(&self, name: &str, cow: PathBuf) -> SnapshotSpec {
        let socket = self.path(&format!("{name}.sock"));
        SnapshotSpec {
            name: name.into(),
            cow: cow.to_str().unwrap().to_owned(),
            store_type: StoreType::P,
            chunk_size: Some(4096),
            size: Some(1 << 20),
            socket: Some(socket.to_str().unwrap().to_owned()),
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Ends the daemon as an operator does.
    pub fn terminate(&mut self) {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the kernel says of one thread, by the words before the colons.
pub type Facts = BTreeMap<String, String>;

/// The threads of a process; those that end meanwhile are left out.
pub fn threads(pid: u32) -> Vec<Facts> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let texts = tasks.filter_map(|task| read(task.ok()?));
    texts
        .map(|text| {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect()
        })
        .collect()
}

/// Whether a request of 4096 bytes at `sector` (none for a flush) ends without an error.
pub fn succeeds(guest: &mut Guest, kind: Kind, sector: u64) -> bool {
    let ask = Ask {
        kind,
        sector,
        len: if kind == Kind::Flush { 0 } else { 4096 },
        offset: 0,
        cut: 0,
    };
    guest.submit(0, &ask);
    guest.kick();
    let mut done = Vec::new();
    guest.reap_within(&mut done, LONG);
    done == [(0, 0)]
}
