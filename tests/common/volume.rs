//! A daemon over its binary: started, asked, killed.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;
use snapback::control::api::VolumeStatus;

use super::stamps::{self, SECTOR};

/// A folder with `disk.img`, and the daemon that serves it.
pub struct Volume {
    folder: tempfile::TempDir,
    /// For records, if `/run` is no memory.
    runtime: tempfile::TempDir,
    daemon: Option<Child>,
    client: Client,
    sectors: u64,
}

impl Volume {
    /// Makes a disk whose stamps are its sector numbers, in `SNAPBACK_FOLDER`, or in
    /// memory where the system has a file system for that.
    pub fn new(sectors: u64) -> Self {
        Self::new_in(
            std::env::var_os("SNAPBACK_FOLDER").map(PathBuf::from),
            sectors,
        )
    }

    /// The same in a chosen folder, if there is one.
    pub fn new_in(chosen: Option<PathBuf>, sectors: u64) -> Self {
        let memory = chosen.unwrap_or_else(|| "/dev/shm".into());
        let mut builder = tempfile::Builder::new();
        builder.prefix("snapback-");
        let make = |parent: PathBuf| {
            builder
                .tempdir_in(parent)
                .or_else(|_| builder.tempdir())
                .unwrap()
        };
        let (folder, runtime) = (make(memory), make("/dev/shm".into()));
        let mut image = File::create(folder.path().join("disk.img")).unwrap();
        let mut data = vec![0; 1 << 20];
        let step = (data.len() / SECTOR) as u64;
        for first in (0..sectors).step_by(step as usize) {
            let part = &mut data[..step.min(sectors - first) as usize * SECTOR];
            stamps::fill(part, first);
            image.write_all(part).unwrap();
        }
        let client = Client::new(&folder.path().join("c.sock")).unwrap();
        Self {
            folder,
            runtime,
            daemon: None,
            client,
            sectors,
        }
    }

    /// The stamps that the disk was made with.
    pub fn first_content(&self) -> Vec<u64> {
        (0..self.sectors).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn status(&self) -> VolumeStatus {
        self.client.status().unwrap()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self, arguments: &[&str]) {
        let program = assert_cmd::cargo::cargo_bin!("snapback");
        self.start_by(Command::new(program), arguments);
    }

    /// The same; `command` runs the program with the arguments that are added.
    pub fn start_by(&mut self, command: Command, arguments: &[&str]) {
        self.spawn(command, arguments);
        self.until_it_answers();
    }

    /// The same, without waiting until the daemon answers.
    pub fn spawn(&mut self, mut command: Command, arguments: &[&str]) {
        assert!(self.daemon.is_none());
        let mut log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("daemon.log"))
            .unwrap();
        writeln!(log, "--- serve {}", arguments.join(" ")).unwrap();
        let child = command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
    }

    /// Waits until a daemon that was spawned answers.
    pub fn until_it_answers(&mut self) {
        let start = Instant::now();
        while self.client.status().is_err() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "the daemon ended at its start");
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "the daemon does not answer"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A verb of the command line, which must succeed.
    pub fn verb(&self, arguments: &[&str]) {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .args(arguments)
            .args(["--control", "c.sock"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The running daemon's process.
    #[allow(dead_code, reason = "not every test signals it")]
    pub fn child(&mut self) -> &mut Child {
        self.daemon.as_mut().unwrap()
    }

    /// The running daemon's number.
    #[allow(dead_code, reason = "as above")]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// The daemon's end was seen.
    #[allow(dead_code, reason = "as above")]
    pub fn forget(&mut self) {
        self.daemon = None;
    }

    /// SIGTERM; the daemon must end well.
    pub fn terminate(&mut self) {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Waits until no merge runs; if one ended in this process, it must have ended well.
    pub fn merged(&self, within: Duration) {
        let start = Instant::now();
        while let Some(merge) = self.status().merge {
            assert_eq!(merge.error, None);
            assert!(start.elapsed() < within, "after {within:?}: {merge:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let ended = self.status().last_merge;
        assert_eq!(ended.and_then(|m| m.error), None);
    }

    /// Compares the origin's own file.
    pub fn check_origin(&self, expected: &[u64]) {
        use std::io::Read;
        let mut image = File::open(self.path("disk.img")).unwrap();
        let mut data = vec![0; 1 << 20];
        for (i, expected) in expected.chunks(data.len() / SECTOR).enumerate() {
            let part = &mut data[..expected.len() * SECTOR];
            image.read_exact(part).unwrap();
            stamps::check("disk.img", i as u64 * 2048, part, expected);
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            println!("the daemon's last lines:\n{}", last.join("\n"));
        }
    }
}
