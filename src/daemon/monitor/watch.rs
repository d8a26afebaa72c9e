//! Listening to QEMU's monitor for resets while a rollback waits for one.
//!
//! QEMU tells of a reset after it has stopped the rings and before the guest runs
//! again, so when a driver begins, the reset that it belongs to is in the socket.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::qmp::{Qmp, QmpError};

/// Pause before a monitor that is not there is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the monitor told since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The machine was reset.
    Reset,
    /// It was not.
    NoReset,
    /// Nobody listened all the time.
    Unknown,
}

/// A monitor that is listened to; dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    heard: Mutex<Heard>,
    /// The daemon is told to stop.
    hurry: Arc<AtomicBool>,
    stop: OwnedFd,
}

#[derive(Debug)]
struct Heard {
    qmp: Option<Qmp>,
    reset: bool,
    /// The guest was suspended to RAM and not woken up yet.
    asleep: bool,
    /// There was no connection at some time.
    gap: bool,
}

impl Watch {
    /// Listens to the monitor at `path`; with `known`, a connection to it and whether
    /// its guest sleeps, from now on, else as soon as it can be reached.
    ///
    /// # Errors
    /// What the system refused.
    pub fn start(
        path: &Path,
        known: Option<(Qmp, bool)>,
        hurry: &Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let (qmp, asleep) = known.unzip();
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            heard: Mutex::new(Heard {
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
            .spawn(move || theirs.listen())?;
        Ok(Self { shared })
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What was told since the last call, or since it began. Waits for nothing.
    pub fn told(&self) -> Told {
        let mut heard = self.shared.heard();
        heard.hear();
        let told = match (heard.reset, heard.gap) {
            (true, _) => Told::Reset,
            (false, true) => Told::Unknown,
            (false, false) => Told::NoReset,
        };
        heard.reset = false;
        heard.gap = heard.qmp.is_none();
        told
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread ends by itself: it may be waiting for a greeting.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        // QEMU talks to one client at a time, and the next may be us.
        self.shared.heard().qmp = None;
    }
}

impl Heard {
    /// Takes what has come.
    fn hear(&mut self) {
        let Some(qmp) = &mut self.qmp else { return };
        let (events, more) = qmp.take_events();
        for event in events {
            match event.as_str() {
                "SUSPEND" => self.asleep = true,
                "WAKEUP" => self.asleep = false,
                // The firmware of a machine that sleeps takes it for the wake-up.
                "RESET" if self.asleep => self.asleep = false,
                "RESET" => self.reset = true,
                _ => {}
            }
        }
        if let Err(error) = more {
            tracing::warn!(%error, "resets are not heard of until QEMU's monitor can be reached again");
            self.qmp = None;
            self.gap = true;
            self.asleep = false;
        }
    }
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what comes, so that QEMU need not keep it for us.
    fn listen(&self) {
        loop {
            let stream = {
                let mut heard = self.heard();
                heard.hear();
                heard.qmp.as_ref().map(|qmp| qmp.stream().try_clone())
            };
            let ended = match stream {
                Some(Ok(stream)) => self.wait(Some(&stream), None),
                Some(Err(_)) => self.wait(None, Some(RETRY)),
                None => match Qmp::connect_and_look(&self.path, &self.hurry) {
                    Ok((qmp, asleep)) => {
                        let mut heard = self.heard();
                        // Under the lock: who ends it finds no connection afterwards.
                        if self.ended() {
                            return;
                        }
                        heard.qmp = Some(qmp);
                        heard.asleep = asleep;
                        continue;
                    }
                    Err(error @ (QmpError::Connect { .. } | QmpError::Closed)) => {
                        tracing::debug!(%error, "QEMU's monitor is not there yet");
                        self.wait(None, Some(RETRY))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "resets are not heard of");
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

    /// Until something has come or the time is over; true if it is to end.
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
