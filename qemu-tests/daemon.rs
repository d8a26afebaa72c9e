//! The daemon under test and its command line.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use snapback::control::api::{SnapshotStatus, VolumeStatus};

use crate::bench::tail;
use crate::stop;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_snapback");

pub struct Daemon {
    child: Child,
    control: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts `snapback serve ARGS --control DIR/control.sock` and waits until it answers.
    pub fn serve(dir: &Path, args: &[&str]) -> Self {
        let control = dir.join("control.sock");
        Self::start(dir, args, control.clone(), &control)
    }

    /// Starts a daemon that waits for a guest (`--incoming`), which it serves at `view`. It
    /// answers at `control` as soon as it has the disk.
    pub fn incoming(dir: &Path, args: &[&str], control: PathBuf, view: &Path) -> Self {
        Self::start(dir, args, control, view)
    }

    /// Returns when the daemon listens at `socket`.
    fn start(dir: &Path, args: &[&str], control: PathBuf, socket: &Path) -> Self {
        let log = dir.join("snapback.log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        println!(
            "$ snapback serve {} --control {}",
            args.join(" "),
            control.display()
        );
        let child = Command::new(PROGRAM)
            .arg("serve")
            .args(args)
            .arg("--control")
            .arg(&control)
            .env("XDG_RUNTIME_DIR", dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut daemon = Self {
            child,
            control,
            log,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("snapback serve ended at once with {status}");
            }
            assert!(
                Instant::now() < deadline,
                "snapback serve does not listen after 20 s"
            );
            sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Runs an online verb; panics unless it exits 0. Returns its standard output.
    pub fn run(&self, args: &[&str]) -> String {
        let (status, output, error) = self.try_run(args);
        assert!(
            status.success(),
            "snapback {}: {status}\n{output}{error}",
            args.join(" ")
        );
        output
    }

    /// Exit status, standard output and standard error of an online verb.
    pub fn try_run(&self, args: &[&str]) -> (ExitStatus, String, String) {
        println!("$ snapback {}", args.join(" "));
        snapback(
            Command::new(PROGRAM)
                .args(args)
                .env("SNAPBACK_CONTROL", &self.control),
        )
    }

    pub fn status(&self) -> VolumeStatus {
        let (status, output, error) = snapback(
            Command::new(PROGRAM)
                .args(["status", "--json"])
                .env("SNAPBACK_CONTROL", &self.control),
        );
        assert!(
            status.success(),
            "snapback status --json: {status}\n{error}"
        );
        serde_json::from_str(&output)
            .unwrap_or_else(|e| panic!("snapback status --json: {e}\n{output}"))
    }

    pub fn snapshot(&self, name: &str) -> SnapshotStatus {
        let status = self.status();
        let found = status
            .snapshots
            .into_iter()
            .find(|snapshot| snapshot.name == name);
        found.unwrap_or_else(|| panic!("the status has no snapshot '{name}'"))
    }

    /// Open descriptors, and threads without those that serve the API for a while.
    pub fn resources(&self) -> (usize, usize) {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let entries = |what: &str| std::fs::read_dir(process.join(what)).unwrap();
        let threads = entries("task").filter(|task| {
            let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm"));
            name.is_ok_and(|name| !name.starts_with("tokio"))
        });
        (entries("fd").count(), threads.count())
    }

    pub fn is_merging(&self) -> bool {
        self.status().merge.is_some()
    }

    /// Waits until no merge runs; panics if it failed or takes more than two minutes.
    pub fn wait_merged(&self) {
        let begin = Instant::now();
        while let Some(merge) = self.status().merge {
            assert!(merge.error.is_none(), "the merge failed: {merge:?}");
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "the merge hangs: {merge:?}"
            );
            sleep(Duration::from_millis(100));
        }
        println!("merge ended {:.1} s later", begin.elapsed().as_secs_f64());
    }

    /// SIGTERM; panics unless the daemon exits 0 within a second.
    pub fn terminate(mut self) {
        let (status, took) = stop::at_once(PROGRAM.as_ref(), &mut self.child);
        println!("SIGTERM: {status} after {} ms", took.as_millis());
        assert!(status.success(), "after SIGTERM: {status}");
    }

    /// Waits until the daemon has ended by itself, without an error.
    pub fn ends(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the daemon: {status}");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        println!("SIGKILL: the daemon is gone");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- the daemon's log ends:\n{}", tail(&self.log));
        }
    }
}

/// Runs an offline verb; panics unless it exits 0. Returns its standard output.
pub fn offline(args: &[&str]) -> String {
    println!("$ snapback {}", args.join(" "));
    let (status, output, error) = snapback(Command::new(PROGRAM).args(args));
    assert!(
        status.success(),
        "snapback {}: {status}\n{output}{error}",
        args.join(" ")
    );
    output
}

fn snapback(command: &mut Command) -> (ExitStatus, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}
