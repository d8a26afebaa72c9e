//! Client mode: the front end listens, and the view connects to it (QEMU's chardevs with
//! `server=on`).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::handler::ViewContext;
use crate::event_flag::EventFlag;
use crate::wait_set::{Interest, WaitSet};

/// Pause before the next attempt, and after a front end has left. It doubles with each
/// attempt that fails.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connects to one front end after the other at the same path.
pub struct Caller<'a> {
    path: &'a Path,
    for_a_stop: WaitSet,
    /// Before the next attempt; `None`: at once.
    pause: Option<Duration>,
    /// Why the last attempt failed, so that each reason is logged once.
    failed: Option<Errno>,
}

impl<'a> Caller<'a> {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(path: &'a Path, stop: &EventFlag) -> io::Result<Self> {
        let for_a_stop = WaitSet::new()?;
        for_a_stop.add(0, stop, Interest::Readable)?;
        Ok(Self {
            path,
            for_a_stop,
            pause: None,
            failed: None,
        })
    }

    /// Tries until there is a connection; `None` when stopped.
    pub fn next(&mut self, stop: &EventFlag, view: &ViewContext) -> Option<UnixStream> {
        loop {
            if let Some(pause) = self.pause {
                let _ = self.for_a_stop.wait(Some(pause));
            }
            if stop.is_set() {
                return None;
            }
            match connect(self.path) {
                Ok(stream) => {
                    self.pause = Some(PAUSE);
                    self.failed = None;
                    return Some(stream);
                }
                Err(error) => {
                    let pause = self.pause.map_or(PAUSE, |pause| pause.saturating_mul(2));
                    self.pause = Some(pause.min(LONGEST_PAUSE));
                    self.note(error, view);
                }
            }
        }
    }

    fn note(&mut self, error: Errno, view: &ViewContext) {
        if self.failed.replace(error) == Some(error) {
            return;
        }
        let (name, path) = (&view.config.name, self.path.display());
        let why: io::Error = error.into();
        view.log.warn(format_args!(
            "view {name}: no front end listens at {path} yet ({why}); snapback tries again until one does"
        ));
    }
}

/// Connects without waiting for a listener that is busy.
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

/// Refuses a path that no socket can have.
pub fn check(path: &Path) -> Result<PathBuf, io::Error> {
    SocketAddrUnix::new(path)?;
    Ok(path.to_owned())
}
