//! A folder with images and a folder for temporary files, and `snapback run` in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const BLOCKS: usize = 512;
/// For what a busy machine does at last.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    folder: tempfile::TempDir,
}

/// The content of a block of the image before anything is written.
pub fn original(block: usize) -> u8 {
    (block * 7 + 1) as u8
}

impl World {
    /// With the image `golden.img`.
    pub fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        world.image("golden.img");
        fs::create_dir(world.path("tmp")).unwrap();
        world
    }

    pub fn image(&self, name: &str) {
        let blocks = (0..BLOCKS).flat_map(|block| vec![original(block); super::BLOCK]);
        fs::write(self.path(name), blocks.collect::<Vec<u8>>()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `snapback ARGUMENTS`.
    pub fn snapback(&self, arguments: &[&str]) -> Command {
        // Whoever started the tests may have these signals ignored, as a shell does for what
        // runs in the background; what is ignored stays so in every child.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=INT,QUIT")
            .arg(assert_cmd::cargo::cargo_bin!("snapback"))
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("TMPDIR", self.path("tmp"))
            .env_remove("SNAPBACK_LOG")
            .env_remove("SNAPBACK_CONTROL")
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    /// `snapback run OPTIONS -- COMMAND`.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Command {
        self.snapback(&[&["run"], options, &["--"], command].concat())
    }

    /// The same on `golden.img` with a guest that takes `steps`.
    pub fn guest(&self, options: &[&str], steps: &str) -> Command {
        let this = std::env::current_exe().unwrap();
        let guest = [
            this.to_str().unwrap(),
            "guest_that_takes_steps",
            "--exact",
            "--ignored",
            "--nocapture",
        ];
        let mut command = self.run(&[&["--image", "golden.img"], options].concat(), &guest);
        command.env("STEPS", steps);
        command
    }

    /// Block `block` of a file, if it is full of one value.
    pub fn block(&self, name: &str, block: usize) -> u8 {
        let bytes = fs::read(self.path(name)).unwrap();
        let bytes = &bytes[block * super::BLOCK..][..super::BLOCK];
        assert!(bytes.iter().all(|b| *b == bytes[0]), "block {block}");
        bytes[0]
    }

    #[track_caller]
    pub fn assert_image_untouched(&self) {
        for block in 0..BLOCKS {
            assert_eq!(self.block("golden.img", block), original(block));
        }
    }

    /// No temporary file is left, and beside the image there are only these.
    #[track_caller]
    pub fn assert_files(&self, expected: &[&str]) {
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<String> = entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&self.path("tmp")), Vec::<String>::new());
        let mut all = vec!["golden.img", "tmp"];
        all.extend(expected);
        all.sort_unstable();
        assert_eq!(names(self.folder.path()), all);
    }
}

#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs it; returns its exit status, and what it said on both outputs.
#[track_caller]
pub fn ended(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let status = status.code().expect("snapback itself is not killed");
    (status, text(stdout), text(stderr))
}

/// Runs it, and it must exit with this status. Returns what it said on stderr.
#[track_caller]
pub fn exits(status: i32, command: &mut Command) -> String {
    let (code, stdout, stderr) = ended(command);
    assert_eq!(code, status, "{command:?}: {stdout}{stderr}");
    stderr
}

/// The process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains("Z (") && !line.contains("X ("))
}

/// The processes whose parent this is.
pub fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{pid}"))
    })
    .collect()
}

/// The first word of a process's command line, behind the program's name.
pub fn verb(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split(|b| *b == 0).skip(1);
    String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned()
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// `snapback run` under way; killed if it is dropped.
pub struct Running(pub Child);

impl Running {
    /// Starts it and waits until its command has made the file `ready`.
    pub fn start(world: &World, command: &mut Command) -> Self {
        let running = Self(command.spawn().unwrap());
        until("the command is ready", || world.path("ready").exists());
        running
    }

    pub fn keeper(&self) -> u32 {
        let children = children(self.0.id());
        *children
            .iter()
            .find(|pid| verb(**pid) == "run-disk")
            .unwrap()
    }

    pub fn command(&self) -> u32 {
        let children = children(self.0.id());
        *children
            .iter()
            .find(|pid| verb(**pid) != "run-disk")
            .unwrap()
    }

    #[track_caller]
    pub fn status(mut self) -> i32 {
        let status = self.0.wait().unwrap();
        status.code().expect("snapback itself is not killed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
