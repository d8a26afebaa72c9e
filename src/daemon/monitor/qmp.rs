//! QEMU's monitor (QMP): JSON lines over a Unix socket.
//!
//! Every wait has a limit: the monitor belongs to another process, which may be stopped,
//! busy with another client, or not QEMU at all.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

/// How long the monitor may take for an answer. QEMU stops and resets a guest in
/// milliseconds, but its devices first complete their requests.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The same, once the daemon has been asked to stop.
const PATIENCE_LEFT: Duration = Duration::from_millis(200);
/// How often to check whether it has been asked.
const LOOK: Duration = Duration::from_millis(50);

/// The status of a guest that is suspended to RAM.
pub const ASLEEP: &str = "suspended";

/// Longest accepted line in bytes; QEMU's greeting has about 200.
const LINE_MAX: usize = 1 << 20;
/// Most lines that are read at a time.
const LINES_MAX: usize = 4096;

/// Why the monitor did not carry out a command.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error(
        "cannot connect to QEMU's monitor at {}: {source}; give QEMU a monitor for snapback: -qmp unix:{},server=on,wait=off",
        path.display(), path.display()
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error(
        "QEMU's monitor at {} sent no greeting within {} s: it serves one client at a time, so give snapback a monitor of its \
         own (a second -qmp unix:SOCKET,server=on,wait=off)",
        .0.display(), PATIENCE.as_secs()
    )]
    NoGreeting(PathBuf),
    #[error("the server at {} is not a QEMU monitor (QMP): {reason}", path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error("QEMU's monitor did not answer `{command}` within {} s", PATIENCE.as_secs())]
    Slow { command: &'static str },
    #[error("QEMU did not report {event} within {} s", PATIENCE.as_secs())]
    NoEvent { event: &'static str },
    #[error("QEMU refused `{command}`: {reason}")]
    Refused {
        command: &'static str,
        reason: String,
    },
    #[error(
        "the guest is suspended to RAM, and a reset would only wake it up, with the old disk in memory; wake it up \
         (`system_wakeup` in QEMU's monitor) and ask again, or terminate QEMU"
    )]
    Asleep,
    #[error("QEMU's monitor closed the connection")]
    Closed,
    #[error("the connection to QEMU's monitor was lost: {0}")]
    Broken(io::Error),
}

/// A connection that accepts commands.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    stream: UnixStream,
    /// Received data that is not a complete line yet.
    text: Vec<u8>,
    /// Names of the received events that nobody has asked for yet.
    events: Vec<String>,
    /// Number of the last command, so that a late answer is not taken for the next one.
    last: u64,
    /// The daemon has been asked to stop.
    hurry: Arc<AtomicBool>,
}

impl Qmp {
    /// Connects, reads the greeting and ends the negotiation of capabilities. While `hurry`
    /// is set, waits are short.
    pub fn connect(path: &Path, hurry: &Arc<AtomicBool>) -> Result<Self, QmpError> {
        let stream = connect(path).map_err(|source| QmpError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let mut qmp = Self {
            path: path.to_owned(),
            stream,
            text: Vec::new(),
            events: Vec::new(),
            last: 0,
            hurry: Arc::clone(hurry),
        };
        let deadline = Instant::now() + PATIENCE;
        // Events may precede the greeting.
        loop {
            match qmp.next(deadline)? {
                None => return Err(QmpError::NoGreeting(path.to_owned())),
                Some(line) if line.get("QMP").is_some() => break,
                Some(line) if qmp.take_event(&line) => {}
                Some(_) => return Err(qmp.foreign("its first message is not a greeting")),
            }
        }
        qmp.run("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments.
    pub fn run(&mut self, command: &'static str) -> Result<Value, QmpError> {
        self.last += 1;
        let mut line = json!({ "execute": command, "id": self.last }).to_string();
        line.push('\n');
        self.stream
            .write_all(line.as_bytes())
            .map_err(QmpError::Broken)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(mut line) = self.next(deadline)? else {
                return Err(QmpError::Slow { command });
            };
            // An error without a number answers a command that QEMU could not read.
            let late = line.get("id").is_some_and(|id| *id != self.last);
            if self.take_event(&line) || late {
                continue;
            }
            if let Some(error) = line.get("error") {
                let reason = error.get("desc").and_then(Value::as_str);
                let reason = reason.unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command, reason });
            }
            return match line.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(self.foreign("an answer without `return`")),
            };
        }
    }

    /// Connects, and asks whether the guest is suspended to RAM. (If this changes at the same
    /// moment, there is an event, too, which says the same.)
    pub fn connect_and_look(
        path: &Path,
        hurry: &Arc<AtomicBool>,
    ) -> Result<(Self, bool), QmpError> {
        let mut qmp = Self::connect(path, hurry)?;
        let answer = qmp.run("query-status")?;
        let status = answer.get("status").and_then(Value::as_str);
        Ok((qmp, status == Some(ASLEEP)))
    }

    /// Waits for one of these events and returns it; it may have been received before.
    pub fn event(&mut self, wanted: &[&'static str]) -> Result<&'static str, QmpError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for event in std::mem::take(&mut self.events) {
                if let Some(found) = wanted.iter().find(|w| **w == event) {
                    return Ok(found);
                }
            }
            match self.next(deadline)? {
                Some(line) => {
                    self.take_event(&line);
                }
                None => {
                    let event = wanted.first().copied().unwrap_or("an event");
                    return Err(QmpError::NoEvent { event });
                }
            }
        }
    }

    /// Drops the events that were received so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// The events that were received so far, oldest first, and the error if the connection
    /// is lost. Does not block.
    pub fn take_events(&mut self) -> (Vec<String>, Result<(), QmpError>) {
        let mut more = Ok(());
        for _ in 0..LINES_MAX {
            match self.line(Instant::now()) {
                Ok(Some(line)) => {
                    self.take_event(&line);
                }
                Ok(None) => break,
                Err(error) => {
                    more = Err(error);
                    break;
                }
            }
        }
        (std::mem::take(&mut self.events), more)
    }

    /// For waiting until data arrives.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn take_event(&mut self, line: &Value) -> bool {
        let event = line.get("event").and_then(Value::as_str);
        if let Some(name) = event
            && self.events.len() < LINES_MAX
        {
            self.events.push(name.to_owned());
        }
        event.is_some()
    }

    /// As [`Self::line`], but always `None` after `deadline`, even if the monitor sends line
    /// after line.
    fn next(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        self.line(deadline)
    }

    /// The next line; `None` if none is complete at `deadline`.
    fn line(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(end) = self.text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let value: Value = serde_json::from_slice(&line).map_err(|e| {
                    self.foreign(&format!("it sent something that is not JSON ({e})"))
                })?;
                if !value.is_object() {
                    return Err(self.foreign("it sent JSON that is not an object"));
                }
                return Ok(Some(value));
            }
            if self.text.len() > LINE_MAX {
                return Err(self.foreign("it sent a line that is too long"));
            }
            let mut part = [0_u8; 4096];
            let flags = RecvFlags::DONTWAIT;
            match rustix::net::recv(&self.stream, &mut part, flags).map(|(_, len)| len) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(len) => self.text.extend_from_slice(part.get(..len).unwrap_or(&[])),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !self.wait_until(deadline) {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(QmpError::Broken(e.into())),
            }
        }
    }

    /// Waits for data; false at `deadline`.
    fn wait_until(&self, mut deadline: Instant) -> bool {
        let mut hurried = false;
        loop {
            let now = Instant::now();
            if !hurried && self.hurry.load(Ordering::Acquire) {
                hurried = true;
                deadline = deadline.min(now + PATIENCE_LEFT);
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return false;
            }
            let timeout = Timespec::try_from(left.min(LOOK)).unwrap_or_default();
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            // After an interrupted poll the caller finds no data and waits again.
            if !matches!(poll(&mut fds, Some(&timeout)), Ok(0)) {
                return true;
            }
        }
    }

    fn foreign(&self, reason: &str) -> QmpError {
        QmpError::Foreign {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// A connection on which no write blocks for longer than [`PATIENCE`]. A listener whose
/// backlog is full refuses at once.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
pub mod tests;
