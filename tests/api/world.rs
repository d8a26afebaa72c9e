//! A daemon on a disk of its own, and requests to it, byte by byte.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const BYTES: u64 = 4 << 20;
/// Nothing in here takes this long.
pub const LONG: Duration = Duration::from_secs(60);

pub struct World {
    folder: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl World {
    /// Serves a disk at `a.sock`.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = fs::File::create(folder.path().join("disk.img")).unwrap();
        image.set_len(BYTES).unwrap();
        let mut world = Self {
            folder,
            daemon: None,
        };
        let log = fs::File::create(world.path("log")).unwrap();
        let child = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .current_dir(world.folder.path())
            .env("XDG_RUNTIME_DIR", world.folder.path())
            .args(["serve", "--origin", "disk.img", "--socket-path", "a.sock"])
            .args(["--control", "c.sock"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        world.daemon = Some(child);
        world.until("the daemon answers", |w| {
            let status = w.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(status, None, "{}", w.log());
            UnixStream::connect(w.path("c.sock")).is_ok()
        });
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Other users can reach the folder and the control socket.
    pub fn open_to_others(&self) {
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set(self.folder.path(), 0o755).unwrap();
        set(&self.path("c.sock"), 0o666).unwrap();
    }

    /// What the daemon has written to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
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

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        let bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.send(bytes.as_bytes())
    }

    /// Sends bytes, and reads until the daemon closes.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(self.path("c.sock")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // The daemon may refuse and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::parse(&String::from_utf8(answer).unwrap())
    }

    pub fn status(&self) -> Value {
        self.ask("GET", "/v1/status", "").json()
    }

    /// The body that takes a snapshot whose COW has `bytes`.
    pub fn spec(&self, name: &str, bytes: u64) -> String {
        let cow = self.path(&format!("{name}.cow"));
        serde_json::json!({"cow": cow, "size": bytes}).to_string()
    }

    /// Ends the daemon as an operator does.
    pub fn terminate(&mut self) -> Duration {
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let start = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        start.elapsed()
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

/// An answer of the daemon.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn assert(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}
