//! A daemon, the programs of QEMU, and loop devices, on files in a folder.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::limited::output;

/// Size of the disks.
pub const BYTES: u64 = 4 << 20;
/// Far more than any of the waits takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with `disk.img`.
pub struct World(tempfile::TempDir);

impl World {
    pub fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        world.disk("disk.img");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn disk(&self, name: &str) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(BYTES).unwrap();
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .args(arguments);
        command
    }

    pub fn snapback(&self, arguments: &[&str]) -> Command {
        let program = assert_cmd::cargo::cargo_bin!("snapback");
        self.command(program.to_str().unwrap(), arguments)
    }

    /// What a command prints, all of it.
    #[track_caller]
    pub fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        let output = output(&mut self.command(program, arguments));
        let text = text(&output);
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        text
    }

    /// A program that fails, with this in what it says.
    #[track_caller]
    pub fn refused(&self, program: &str, arguments: &[&str], words: &[&str]) {
        refuses(&mut self.command(program, arguments), words);
    }

    /// This program fails, with this in what it says.
    #[track_caller]
    pub fn we_refuse(&self, arguments: &[&str], words: &[&str]) {
        refuses(&mut self.snapback(arguments), words);
    }

    /// This program ends with success.
    #[track_caller]
    pub fn we_do(&self, arguments: &[&str]) -> String {
        let output = output(&mut self.snapback(arguments));
        let text = text(&output);
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    }

    /// A daemon with this origin that serves at `NAME.sock`.
    #[track_caller]
    pub fn serve(&self, name: &str, arguments: &[&str]) -> Running {
        let (socket, control) = (format!("{name}.sock"), format!("{name}.control"));
        let mut command = self.snapback(&["serve", "--socket-path", &socket]);
        command.args(["--control", &control]).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running(command.spawn().unwrap());
        let start = Instant::now();
        let answers = || {
            output(&mut self.snapback(&["status", "--control", &control]))
                .status
                .success()
        };
        while !answers() {
            if running.0.try_wait().unwrap().is_some() || start.elapsed() > PATIENCE {
                panic!("the daemon does not serve: {}", running.end());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// A program that goes on. It has its files open when it has printed `sign`, as it does after it
    /// was given `input`.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str, sign: &str) -> Running {
        let mut command = self.command(program, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut stdin = running.0.stdin.as_ref().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(sign) {
            let mut next = [0];
            let stdout = running.0.stdout.as_mut().unwrap();
            if stdout.read(&mut next).unwrap() == 0 {
                panic!("{program} {arguments:?}: {}", running.end());
            }
            said.push(next[0]);
        }
        running
    }

    /// `qemu-io` with this open for reading and writing.
    pub fn qemu_io(&self, disk: &str) -> Running {
        self.run("qemu-io", &["-f", "raw", disk], "", "qemu-io>")
    }
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[track_caller]
pub fn refuses(command: &mut Command, words: &[&str]) {
    let output = output(command);
    let text = text(&output);
    assert!(!output.status.success(), "{command:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{command:?}: no {word:?} in: {text}");
    }
}

/// A process; killed with SIGKILL when dropped.
pub struct Running(Child);

impl Running {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// With SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    /// Ends it; returns what it had to say.
    pub fn end(&mut self) -> String {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loop device over a file, detached when dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn new(backing: &Path) -> Option<Self> {
        Self::with(&[], backing)
    }

    pub fn with(options: &[&str], backing: &Path) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        losetup
            .args(["--find", "--show"])
            .args(options)
            .arg(backing);
        match losetup.output() {
            Ok(output) if output.status.success() => Some(Self(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ))),
            _ => {
                eprintln!("skipped: loop devices are not allowed here");
                None
            }
        }
    }

    pub fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).output();
    }
}
