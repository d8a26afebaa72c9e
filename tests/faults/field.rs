//! A daemon whose disk, COWs and state file lie in a folder of the test's choice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use snapback::control::Client;
use snapback::control::api::{SnapshotSpec, StoreType, VolumeStatus};

use super::guest::Guest;

/// Bytes of the disk.
pub const DISK: usize = 4 << 20;
/// Far more than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for sockets and the log; the daemon's files are elsewhere.
pub struct Field {
    pub here: tempfile::TempDir,
    pub disk: PathBuf,
    pub daemon: Option<Child>,
}

/// Bytes that differ from place to place and with `seed`, and are never a sector of zeroes.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i / 512) as u8 ^ (i % 251) as u8 ^ seed | 1)
        .collect()
}

impl Field {
    /// With a new disk at `disk`, which exists below at `file`.
    pub fn new(disk: PathBuf, file: &Path) -> Self {
        fs::write(file, pattern(0, DISK)).unwrap();
        Self::on(disk)
    }

    /// With a disk that exists.
    pub fn on(disk: PathBuf) -> Self {
        Self {
            here: tempfile::tempdir().unwrap(),
            disk,
            daemon: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.here.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.here.path())
            .env("XDG_RUNTIME_DIR", self.here.path())
            .args(["serve", "--origin", self.disk.to_str().unwrap()])
            .args(["--socket-path", "a.sock", "--control", "c.sock"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    pub fn start(&mut self, arguments: &[&str]) {
        let command = self.command(arguments);
        self.start_by(command);
    }

    pub fn start_by(&mut self, mut command: Command) {
        assert!(self.daemon.is_none());
        self.daemon = Some(command.spawn().unwrap());
        let start = Instant::now();
        while self.client().status().is_err() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{}", self.log());
            assert!(start.elapsed() < PATIENCE, "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    pub fn status(&self) -> VolumeStatus {
        self.client().status().unwrap()
    }

    /// As `status --json` prints it.
    pub fn json(&self) -> Value {
        serde_json::to_value(self.status()).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A verb of the command line, and what it said.
    pub fn verb(&self, arguments: &[&str]) -> (bool, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .current_dir(self.here.path())
            .args(arguments)
            .args(["--control", "c.sock"])
            .output()
            .unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        (status.success(), said)
    }

    pub fn events(&self, kind: &str) -> Vec<Value> {
        let page = self.client().events(0, None).unwrap();
        let events = page.events.into_iter();
        events.filter(|e| e["kind"] == kind).collect()
    }

    /// The first event of this kind, which is waited for.
    pub fn event(&self, kind: &str) -> Value {
        self.until(kind, |f| !f.events(kind).is_empty());
        self.events(kind).remove(0)
    }

    pub fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn guest(&self, socket: &str) -> Guest {
        Guest::connect(&self.path(socket))
    }

    /// Of the snapshot `name` with its COW in this folder.
    pub fn spec(&self, name: &str, folder: &Path) -> SnapshotSpec {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        SnapshotSpec {
            name: name.into(),
            cow: text(folder.join(format!("{name}.cow"))),
            store_type: StoreType::P,
            chunk_size: Some(4096),
            size: Some(8 << 20),
            socket: Some(text(self.path(&format!("{name}.sock")))),
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        }
    }

    /// Takes the snapshot `name`, with its COW beside the disk.
    pub fn snapshot(&self, name: &str) {
        let spec = self.spec(name, self.disk.parent().unwrap());
        self.client().add_snapshot(&spec).unwrap();
    }

    /// The state of a snapshot, as `status` prints it.
    pub fn state(&self, name: &str) -> String {
        let status = self.json();
        let mut snapshots = status["snapshots"].as_array().unwrap().iter();
        let found = snapshots.find(|s| s["name"] == name);
        found.unwrap()["state"].as_str().unwrap().to_owned()
    }

    /// Everything that is seen at a socket.
    pub fn shows(&self, socket: &str) -> Vec<u8> {
        self.guest(socket).read_all(DISK)
    }

    pub fn merged(&self) {
        self.until("the merge ends", |f| f.status().merge.is_none());
        let ended = self.status().last_merge.and_then(|merge| merge.error);
        assert_eq!(ended, None);
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// The two are the same, or the test names the first sector that is not.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    let pairs = left.chunks(512).zip(right.chunks(512));
    let differing = pairs.enumerate().find(|(_, (l, r))| l != r);
    let sector = differing.map(|(sector, _)| sector);
    assert_eq!((sector, left.len()), (None, right.len()), "{what}");
}
