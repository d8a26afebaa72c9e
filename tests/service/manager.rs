//! A small stand-in for systemd: it receives notifications and keeps descriptors.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// After this something hangs.
const HANGS: Duration = Duration::from_secs(60);

pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// All messages.
    pub heard: Vec<String>,
    /// The store: names and descriptors.
    pub kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            path,
            heard: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Takes all messages that are there.
    pub fn listen(&mut self) {
        loop {
            let mut text = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let Ok(message) = recvmsg(&self.socket, &mut parts, &mut control, flags) else {
                return;
            };
            let text = String::from_utf8(text[..message.bytes].to_vec()).unwrap();
            let value = |key: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| Some(line.strip_prefix(key)?.to_owned()))
            };
            let name = value("FDNAME=");
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    assert_eq!(value("FDSTORE=").as_deref(), Some("1"), "{text}");
                    // As systemd, which has each socket once.
                    let has = self
                        .kept
                        .iter()
                        .any(|(kept, _)| Some(kept) == name.as_ref());
                    let named = descriptors.map(|fd| (name.clone().unwrap(), fd));
                    self.kept.extend(named.filter(|_| !has));
                }
            }
            if text.contains("FDSTOREREMOVE=1") {
                self.kept.retain(|(kept, _)| Some(kept) != name.as_ref());
            }
            self.heard.push(text);
        }
    }

    /// Whether a message with this line was heard.
    pub fn has(&self, line: &str) -> bool {
        self.heard.iter().any(|m| m.lines().any(|l| l == line))
    }

    pub fn until(&mut self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        loop {
            self.listen();
            if is(self) {
                return;
            }
            assert!(
                start.elapsed() < HANGS,
                "not within {HANGS:?}: {what}\n{:?}",
                self.heard
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Forgets what was heard.
    pub fn clear(&mut self) {
        self.heard.clear();
    }

    /// `command`, notified of this manager.
    pub fn notify(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path);
    }

    /// `command` with the sockets that are kept, as a start after the one that stored them.
    pub fn with_kept(&self, command: &Command) -> Command {
        let kept = self.kept.iter().map(|(name, fd)| (name.as_str(), fd));
        let mut command = passing(command, &kept.collect::<Vec<_>>());
        self.notify(&mut command);
        command
    }
}

/// `command` with sockets passed as systemd passes them: from descriptor 3 on, with names, for the
/// process itself.
pub fn passing<T: AsFd>(command: &Command, sockets: &[(&str, T)]) -> Command {
    let mut program = String::from("export LISTEN_PID=$$; exec \"$@\"");
    for (at, (_, socket)) in sockets.iter().enumerate() {
        let fd = socket.as_fd();
        // Inherited; the program gets it under another number only.
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
        program += &format!(" {}<&{1} {1}<&-", 200 + at, fd.as_raw_fd());
    }
    for at in 0..sockets.len() {
        program += &format!(" {}<&{} {}<&-", 3 + at, 200 + at, 200 + at);
    }
    let names = sockets.iter().map(|(name, _)| *name);
    let mut shell = Command::new("bash");
    shell
        .args(["--norc", "-c", &program, "bash"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.collect::<Vec<_>>().join(":"))
        .current_dir("/");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// A socket of a socket unit.
pub fn listening(path: &Path) -> UnixListener {
    UnixListener::bind(path).unwrap()
}
