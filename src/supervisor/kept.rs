//! Listening sockets that the service manager keeps from one process of the service to the next.
//! A front end that connects between the two waits in the queue of the socket instead of failing.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::notify::{is_notified, send_with};
use crate::socket_access::SocketInode;

/// The process ends, and its sockets are for the next one.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Before what identifies the socket's file, in the name by which the manager passes
/// the socket back. They show whether the path still leads to it. A `/` is not in the name of
/// any snapshot.
const PREFIX: &str = "kept/";

/// A listening socket and its file. The manager forgets the socket when this is dropped, unless it
/// stays for the next process.
#[derive(Debug, Default)]
pub struct Kept {
    /// `None`: there is no manager.
    name: Option<String>,
}

impl Kept {
    /// The socket and its file are for the next process.
    pub fn stays(&self) -> bool {
        self.name.is_some() && ENDING.load(Ordering::Acquire)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(name) = self.name.as_deref().filter(|_| !self.stays()) {
            forget(name);
        }
    }
}

/// The name for a socket that has the file at `path`, and that file. A file system may use the number
/// of a file again, so the time at which it was made is in the name as well.
fn name_of(path: &Path) -> Option<(String, SocketInode)> {
    let there = std::fs::symlink_metadata(path).ok()?;
    let file = SocketInode {
        device: there.dev(),
        inode: there.ino(),
    };
    let (seconds, nanoseconds) = (there.mtime(), there.mtime_nsec());
    let SocketInode { device, inode } = file;
    let name = format!("{PREFIX}{device}-{inode}-{seconds}.{nanoseconds:09}");
    Some((name, file))
}

/// Asks the manager to keep `socket`, which has the file `made` at `path`.
pub fn keep(socket: &impl AsFd, path: &Path, made: SocketInode) -> Kept {
    if !is_notified() {
        return Kept { name: None };
    }
    let Some((name, _)) = name_of(path).filter(|(_, file)| *file == made) else {
        return Kept { name: None };
    };
    match send_with(&format!("FDSTORE=1\nFDNAME={name}\n"), socket.as_fd()) {
        Ok(()) => Kept { name: Some(name) },
        Err(error) => {
            tracing::debug!(%error, "the service manager cannot be given a socket to keep");
            Kept { name: None }
        }
    }
}

/// From now on sockets that are closed stay for the next process.
pub fn stays_for_the_next() {
    ENDING.store(true, Ordering::Release);
}

/// The process ends, and sockets that the manager keeps, or has passed, are for the next one.
pub fn sockets_stay() -> bool {
    ENDING.load(Ordering::Acquire) && is_notified()
}

/// Asks the manager to close a socket that it keeps.
pub fn forget(name: &str) {
    let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Custom(&message)]) {
        tracing::debug!(%error, "the service manager cannot be told of a closed socket");
    }
}

/// Whether a passed socket has the name of a kept one.
pub fn is_kept(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether `name` is that of the socket to which the file at `path` leads.
pub fn is_of(name: &str, path: &Path) -> bool {
    name_of(path).is_some_and(|(its, _)| its == name)
}

/// The file at `path`.
pub fn file_of(path: &Path) -> Option<SocketInode> {
    name_of(path).map(|(_, file)| file)
}
