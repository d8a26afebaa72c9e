//! Folders with a disk, its daemon and its guests, and how files get elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;

use crate::guest::{Ask, Guest, Kind};

pub const CHUNK: usize = 4096;
pub const CHUNKS: usize = 256;
/// Bytes of `disk.img`.
pub const DISK: usize = CHUNK * CHUNKS;
/// A start or a stop that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a test's folders are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The system's place for temporary files.
    Disk,
    /// A tmpfs, so that a move between the two crosses file systems.
    Memory,
}

pub struct Field {
    base: tempfile::TempDir,
    memory: Option<tempfile::TempDir>,
}

impl Field {
    pub fn new() -> Self {
        Self::at(Where::Disk)
    }

    pub fn at(place: Where) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("snapback-");
        let memory = builder.tempdir_in("/dev/shm").ok();
        let base = match (place, builder.tempdir_in("/dev/shm")) {
            (Where::Memory, Ok(directory)) => directory,
            _ => builder.tempdir().unwrap(),
        };
        Self { base, memory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        // Canonical, as the daemon prints it.
        fs::canonicalize(self.base.path()).unwrap().join(name)
    }

    /// In another file system than [`path`](Self::path), if there is one.
    pub fn elsewhere(&self, name: &str) -> Option<PathBuf> {
        Some(self.memory.as_ref()?.path().join(name))
    }

    /// A folder with a disk, no chunk of which is like another.
    pub fn vm(&self, name: &str) -> Vm {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        let vm = Vm::in_folder(folder);
        fs::write(vm.path("disk.img"), first_content()).unwrap();
        vm
    }

    /// The volume whose files were brought to `name`.
    pub fn brought(&self, name: &str) -> Vm {
        Vm::in_folder(self.path(name))
    }
}

pub fn first_content() -> Vec<u8> {
    (0..DISK)
        .map(|i| (i / CHUNK * 31 + i / 512 + i) as u8)
        .collect()
}

/// Runs a program that must succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Long enough for the clocks of all file systems to tell two moments apart.
pub fn later() {
    std::thread::sleep(Duration::from_millis(30));
}

/// A folder with `disk.img`, served at `a.sock` and `c.sock` in it; the snapshots
/// are `NAME` in `NAME.cow` at `NAME.sock`.
pub struct Vm {
    folder: PathBuf,
    disk: String,
    daemon: Option<Child>,
}

impl Vm {
    pub fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            disk: "disk.img".into(),
            daemon: None,
        }
    }

    /// The disk has another name, or is a device.
    pub fn with_disk(mut self, disk: &str) -> Self {
        self.disk = disk.into();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(&self.folder)
            .env_remove("SNAPBACK_LOG")
            .env_remove("SNAPBACK_CONTROL")
            // For records, if `/run` is no memory and the folder is.
            .env("XDG_RUNTIME_DIR", &self.folder)
            .args(arguments);
        command
    }

    /// A verb of the command line; its exit status and all that it printed.
    pub fn say(&self, arguments: &[&str]) -> (i32, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(arguments).output().unwrap();
        let all = [stdout, stderr].concat();
        (status.code().unwrap(), String::from_utf8(all).unwrap())
    }

    #[track_caller]
    pub fn verb(&self, arguments: &[&str]) -> String {
        let (status, said) = self.say(arguments);
        assert_eq!(status, 0, "{arguments:?}: {said}");
        said
    }

    /// Starts the daemon with the origin's and the control socket given.
    #[track_caller]
    pub fn start(&mut self, arguments: &[&str]) -> String {
        let sockets = ["--socket-path", "a.sock", "--control", "c.sock"];
        self.start_plain(&[&sockets, arguments].concat())
    }

    /// Starts it with these arguments alone; waits until it answers at `c.sock`.
    /// Returns what it logged so far.
    #[track_caller]
    pub fn start_plain(&mut self, arguments: &[&str]) -> String {
        assert!(self.daemon.is_none());
        let log = self.folder.join("log");
        let err = fs::File::create(&log).unwrap();
        let disk = self.disk.clone();
        let arguments = [&["serve", "--origin", &disk], arguments].concat();
        let child = self
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(err)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        let start = Instant::now();
        // Its own socket: one that a killed daemon left does not answer.
        while Client::new(&self.path("c.sock")).unwrap().status().is_err() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            let said = fs::read_to_string(&log).unwrap();
            assert_eq!(ended, None, "{arguments:?}: {said}");
            assert!(start.elapsed() < PATIENCE, "{arguments:?}: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::read_to_string(&log).unwrap()
    }

    /// The start is refused; what was said. No byte of any file is touched.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let sockets = ["--socket-path", "a.sock", "--control", "c.sock"];
        self.refused_plain(&[&sockets, arguments].concat())
    }

    #[track_caller]
    pub fn refused_plain(&self, arguments: &[&str]) -> String {
        let before = contents(&self.folder);
        let disk = self.disk.clone();
        let arguments = [&["serve", "--origin", &disk], arguments].concat();
        let mut child = self
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE || self.answers() {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{arguments:?}: the start is not refused");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(contents(&self.folder), before, "{arguments:?}: {said}");
        said
    }

    fn answers(&self) -> bool {
        Client::new(&self.path("c.sock")).unwrap().status().is_ok()
    }

    /// Ends the daemon as an operator does.
    #[track_caller]
    pub fn stop(&mut self) -> String {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        let said = fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "{said}");
        // What is done to the files from here on has another time.
        later();
        said
    }

    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        later();
    }

    /// The daemon serves on while its folder has another name.
    pub fn renamed(mut self, folder: PathBuf) -> Self {
        Self {
            folder,
            disk: self.disk.clone(),
            daemon: self.daemon.take(),
        }
    }

    #[track_caller]
    pub fn snapshot(&self, name: &str) {
        let (cow, socket) = (format!("{name}.cow"), format!("{name}.sock"));
        let what = ["snapshot", name, "--cow", &cow, "--size", "2M"];
        let at = ["--socket-path", &socket, "--control", "c.sock"];
        self.verb(&[&what[..], &at].concat());
    }

    /// The guest at `socket` writes whole chunks, all bytes of them `byte`.
    pub fn write(&self, socket: &str, chunks: std::ops::Range<usize>, byte: u8) {
        let mut guest = Guest::connect(&self.path(socket), 1, 1);
        for chunk in chunks {
            guest.memory(0)[..CHUNK].fill(byte);
            guest.submit(
                0,
                &Ask {
                    kind: Kind::Write,
                    sector: (chunk * CHUNK / 512) as u64,
                    len: CHUNK,
                    offset: 0,
                    cut: 0,
                },
            );
            guest.all(1);
        }
    }

    /// All that the guest at `socket` sees.
    pub fn shows(&self, socket: &str) -> Vec<u8> {
        let mut all = Vec::new();
        Guest::connect(&self.path(socket), 1, 1).read_all(|_, data| all.extend_from_slice(data));
        all
    }

    /// The state of a snapshot as the daemon says it; `None` if there is none.
    pub fn state(&self, name: &str) -> Option<String> {
        let status = Client::new(&self.path("c.sock")).unwrap().status().unwrap();
        let found = status.snapshots.iter().find(|s| s.name == name)?;
        Some(format!("{:?}", found.state))
    }

    /// Snapshots `s1` of the first content and `s2` of what came then, with
    /// writes behind them; the daemon has stopped. Returns what both show.
    #[track_caller]
    pub fn with_two_snapshots(&mut self) -> [Vec<u8>; 2] {
        self.start(&[]);
        self.snapshot("s1");
        self.write("a.sock", 0..40, 0x11);
        self.snapshot("s2");
        self.write("a.sock", 20..60, 0x22);
        let shown = [self.shows("s1.sock"), self.shows("s2.sock")];
        assert_eq!(shown[0], first_content());
        self.stop();
        shown
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Names and bytes of all regular files below `folder`.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.extend(contents(&path));
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}
