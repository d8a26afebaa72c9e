//! The daemon as a process on a disk of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use snapback::control::Client;
use snapback::control::api::VolumeStatus;

use super::eventually;
use super::ring::{SLOTS, sector_of, stamp};

const BYTES: usize = 16 << 20;

pub struct Daemon {
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Serves `disk.img` at `a.sock`.
    pub fn start() -> Self {
        let mut daemon = Self::with_disk();
        daemon.serve(&["--socket-path", "a.sock"]);
        daemon
    }

    /// A disk that is not served yet.
    pub fn with_disk() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk.img"), vec![0x5a; BYTES]).unwrap();
        Self {
            folder,
            child: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("a.sock")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path());
        command.args(["serve", "--origin", "disk.img"]);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&mut self, arguments: &[&str]) {
        let mut command = self.command();
        command.args(arguments).args(["--control", "c.sock"]);
        self.run(&mut command);
        eventually("the daemon answers", || {
            Client::new(&self.path("c.sock")).is_ok_and(|c| c.status().is_ok())
        });
    }

    /// Its messages go to the file `log`.
    pub fn run(&mut self, command: &mut Command) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.adopt(child);
    }

    /// A daemon that was started otherwise, and whose predecessor has ended.
    pub fn adopt(&mut self, child: Child) {
        if let Some(mut before) = self.child.replace(child) {
            assert!(before.try_wait().unwrap().is_some());
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    pub fn status(&self) -> VolumeStatus {
        self.client().status().unwrap()
    }

    /// The kinds of the events so far.
    pub fn events(&self) -> Vec<String> {
        let events = self.client().events(0, None).unwrap().events;
        let kind = |event: &serde_json::Value| event["kind"].as_str().unwrap().to_owned();
        events.iter().map(kind).collect()
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// It ends by itself, with this status.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// Ends it as an operator does; the disk has what round `round` wrote on these rings.
    pub fn end(mut self, rings: std::ops::Range<usize>, round: u64) {
        self.terminate();
        let disk = std::fs::read(self.path("disk.img")).unwrap();
        for ring in rings {
            for slot in 0..SLOTS {
                let sector = sector_of(ring, slot);
                let want = stamp(round, sector);
                let at = sector as usize * 512;
                let same = disk[at..at + want.len()] == want;
                assert!(same, "queue {ring}, slot {slot} on the disk");
            }
        }
    }

    pub fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log"));
            eprintln!("{}", log.unwrap_or_default());
        }
    }
}
