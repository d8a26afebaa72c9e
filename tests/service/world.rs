//! A folder with a disk, and daemons on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snapback::control::Client;

/// After this something hangs.
const HANGS: Duration = Duration::from_secs(60);

pub struct World {
    pub folder: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = File::create(folder.path().join("disk.img")).unwrap();
        disk.set_len(4 << 20).unwrap();
        Self {
            folder,
            daemon: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn names(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// `snapback serve` in another folder than that of the disk.
    pub fn serve(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir("/")
            .env_remove("NOTIFY_SOCKET")
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .arg("serve");
        command
    }

    /// Starts `command`, whose log goes to `log`, and waits until its control socket answers.
    pub fn start(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        self.until("the daemon answers", |world| world.answers());
    }

    pub fn answers(&self) -> bool {
        let client = Client::new(&self.path("c.sock")).unwrap();
        client.status().is_ok()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn until(&mut self, what: &str, mut is: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !is(self) {
            if let Some(child) = &mut self.daemon
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("the daemon ended ({status}) before {what}:\n{}", self.log());
            }
            assert!(
                start.elapsed() < HANGS,
                "not within {HANGS:?}: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn until_logged(&mut self, text: &str) {
        self.until(&format!("the log says `{text}`"), |world| {
            world.log().contains(text)
        });
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.daemon.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// SIGTERM; the daemon must end well.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.daemon.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
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

/// Exit status, standard output and standard error.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Text of a path, for a command line.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
