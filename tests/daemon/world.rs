//! The daemon as a process on a disk of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;
use snapback::control::api::{
    RollbackOutcome, RollbackRequest, RollbackWhen, SnapshotSpec, StoreType,
};

use super::guest::Guest;
use super::limited::output;
use super::{machine, stop};

pub const BYTES: usize = 16 << 20;

/// A folder with `disk.img`, and the daemon that serves it.
pub struct World {
    pub folder: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl World {
    pub fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    /// In a tmpfs, if there is one.
    pub fn in_memory() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::in_folder(folder.unwrap())
    }

    fn in_folder(folder: tempfile::TempDir) -> Self {
        let world = Self {
            folder,
            daemon: None,
        };
        let image: Vec<u8> = (0..BYTES).map(|i| (i / 512 * 13 + i) as u8).collect();
        fs::write(world.path("disk.img"), image).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            // For records, if `/run` is no memory and the folder is.
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .args(["serve", "--origin", "disk.img"])
            .args(arguments);
        command
    }

    /// Starts the daemon and waits until its control socket answers.
    pub fn start(&mut self, arguments: &[&str]) {
        assert!(self.daemon.is_none());
        let child = self
            .command(arguments)
            .args(["--control", "c.sock"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        self.until("the daemon answers", |w| w.client().status().is_ok());
    }

    pub fn refuse(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = output(&mut self.command(arguments));
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}: {text}");
        text
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    pub fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "not within 20 s: {what}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon as an operator does.
    pub fn terminate(&mut self) {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// The same; the daemon must not wait for anything.
    #[track_caller]
    pub fn terminate_at_once(&mut self) {
        let program = assert_cmd::cargo::cargo_bin!("snapback");
        let (status, _) = stop::at_once(program.as_os_str(), self.daemon.as_mut().unwrap());
        self.daemon = None;
        assert!(status.success(), "{status}");
    }

    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn state(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("disk.img.snapback")).unwrap()).unwrap()
    }

    pub fn origin(&self) -> Vec<u8> {
        fs::read(self.path("disk.img")).unwrap()
    }

    pub fn snapshot(&self, name: &str) -> SnapshotSpec {
        let at = |suffix: &str| {
            self.path(&format!("{name}.{suffix}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        SnapshotSpec {
            name: name.into(),
            cow: at("cow"),
            store_type: StoreType::P,
            chunk_size: Some(4096),
            size: Some(32 << 20),
            socket: Some(at("sock")),
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        }
    }

    pub fn rollback(&self, name: &str, when: RollbackWhen) -> RollbackOutcome {
        let request = RollbackRequest {
            snapshot: name.into(),
            when,
            keep: None,
            rate: None,
            ..Default::default()
        };
        self.client().rollback(&request).unwrap().outcome
    }

    /// The disk is not the first one any more; the snapshot `before` is.
    pub fn spoilt(&mut self, arguments: &[&str]) -> Vec<u8> {
        self.start(&[&["--socket-path", "a.sock"], arguments].concat());
        let before = self.origin()[..512].to_vec();
        self.client()
            .add_snapshot(&self.snapshot("before"))
            .unwrap();
        let mut guest = Guest::connect(&self.path("a.sock"));
        assert_eq!(guest.write(0, &[0xee; 4096]), 0);
        drop(guest);
        self.until("the guest has left", |w| !w.attached());
        before
    }

    /// A machine starts on the disk, and is switched off again.
    pub fn boot(&self) {
        drop(machine::Machine::power_on(
            &self.path("a.sock"),
            machine::FIRMWARE,
        ));
        self.until("the machine has left", |w| !w.attached());
    }

    pub fn attached(&self) -> bool {
        let views = self.client().status().unwrap().views;
        views.iter().any(|v| v.attached)
    }

    pub fn merged(&self) {
        self.until("the merge ends", |w| {
            w.client().status().unwrap().merge.is_none()
        });
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

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Overwrites a part of every megabyte.
pub fn wreck(guest: &mut Guest, seed: u8) {
    for at in (0..BYTES).step_by(1 << 20) {
        let data = vec![seed; 3 * 4096 + 512 * usize::from(seed % 7 + 1)];
        assert_eq!(guest.write(at as u64 / 512 + u64::from(seed), &data), 0);
    }
    assert_eq!(guest.flush(), 0);
}

pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    let differing = left
        .chunks(512)
        .zip(right.chunks(512))
        .position(|(l, r)| l != r);
    assert_eq!(
        (differing, left.len()),
        (None, right.len()),
        "first differing sector: {what}"
    );
}

/// Names, sizes and bytes of everything in the folder.
pub fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files
        .filter(|p| p.is_file())
        .map(|p| (p.clone(), fs::read(&p).unwrap()))
        .collect()
}
