//! Watching QEMU's monitor for resets while a rollback waits for one.
//!
//! QEMU reports a reset after it has stopped the rings and before the guest runs again,
//! so when a driver starts, the event of its reset is already in the socket.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::qmp::{Qmp, QmpError};
use crate::sandbox::{self, Kind};

/// Pause before the next attempt to connect.
const RETRY: Duration = Duration::from_secs(1);

/// What the monitor has reported since the last question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReport {
    /// The machine was reset.
    Reset,
    /// It was not reset.
    NoReset,
    /// The monitor was not connected all the time.
    Unknown,
}

/// A watched monitor; dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    received: Mutex<Received>,
    /// The daemon has been asked to stop.
    hurry: Arc<AtomicBool>,
    stop: OwnedFd,
}

#[derive(Debug)]
struct Received {
    qmp: Option<Qmp>,
    reset: bool,
    /// The guest is suspended to RAM.
    asleep: bool,
    /// There was no connection for some time.
    gap: bool,
}

impl Watch {
    /// Watches the monitor at `path`: from now on if there is a connection in `known`
    /// (with whether the guest is suspended), otherwise once it can be connected to.
    ///
    /// # Errors
    /// The system has no resources for it.
    pub fn start(
        path: &Path,
        known: Option<(Qmp, bool)>,
        hurry: &Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let (qmp, asleep) = known.unzip();
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            received: Mutex::new(Received {
                gap: qmp.is_none(),
                qmp,
                reset: false,
                asleep: asleep.unwrap_or(false),
            }),
            hurry: Arc::clone(hurry),
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || {
                sandbox::thread(Kind::Monitor);
                theirs.watch();
            })?;
        Ok(Self { shared })
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What was reported since the last call, or since the start. Does not block.
    pub fn take_report(&self) -> ResetReport {
        let mut received = self.shared.received();
        received.receive();
        let report = match (received.reset, received.gap) {
            (true, _) => ResetReport::Reset,
            (false, true) => ResetReport::Unknown,
            (false, false) => ResetReport::NoReset,
        };
        received.reset = false;
        received.gap = received.qmp.is_none();
        report
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is not joined, because it may be waiting for a greeting.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        // QEMU serves one client at a time, and the daemon may connect again.
        self.shared.received().qmp = None;
    }
}

impl Received {
    /// Processes the events that were received.
    fn receive(&mut self) {
        let Some(qmp) = &mut self.qmp else { return };
        let (events, more) = qmp.take_events();
        for event in events {
            match event.as_str() {
                "SUSPEND" => self.asleep = true,
                "WAKEUP" => self.asleep = false,
                // The firmware of a suspended machine treats a reset as the wake-up.
                "RESET" if self.asleep => self.asleep = false,
                "RESET" => self.reset = true,
                _ => {}
            }
        }
        if let Err(error) = more {
            tracing::warn!(%error, "resets are not reported until QEMU's monitor is connected again");
            self.qmp = None;
            self.gap = true;
            self.asleep = false;
        }
    }
}

impl Shared {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all events at once, so that they do not accumulate in QEMU.
    fn watch(&self) {
        loop {
            let stream = {
                let mut received = self.received();
                received.receive();
                received.qmp.as_ref().map(|qmp| qmp.stream().try_clone())
            };
            let ended = match stream {
                Some(Ok(stream)) => self.wait(Some(&stream), None),
                Some(Err(_)) => self.wait(None, Some(RETRY)),
                None => match Qmp::connect_and_look(&self.path, &self.hurry) {
                    Ok((qmp, asleep)) => {
                        let mut received = self.received();
                        // Checked under the lock, so that a watch that was ended never has a
                        // connection.
                        if self.ended() {
                            return;
                        }
                        received.qmp = Some(qmp);
                        received.asleep = asleep;
                        continue;
                    }
                    Err(error @ (QmpError::Connect { .. } | QmpError::Closed)) => {
                        tracing::debug!(%error, "QEMU's monitor cannot be connected to yet");
                        self.wait(None, Some(RETRY))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "resets are not reported");
                        self.wait(None, Some(RETRY))
                    }
                },
            };
            if ended {
                return;
            }
        }
    }

    fn ended(&self) -> bool {
        self.wait(None, Some(Duration::ZERO))
    }

    /// Waits for data or the timeout; true if the watch was ended.
    fn wait(
        &self,
        stream: Option<&std::os::unix::net::UnixStream>,
        timeout: Option<Duration>,
    ) -> bool {
        let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or_default());
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(stream.map(|stream| PollFd::new(stream, PollFlags::IN)));
        let _ = poll(&mut fds, timeout.as_ref());
        fds.first().is_some_and(|stop| !stop.revents().is_empty())
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
