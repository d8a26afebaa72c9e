//! Listening sockets that the service manager has opened for this process, or kept since the last
//! one.

use std::env;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;

use super::kept::{self, Kept, keep};
use crate::socket_access::SocketInode;

/// Those that nobody has taken yet.
static PASSED: Mutex<Vec<(String, UnixListener)>> = Mutex::new(Vec::new());

/// A socket that listens at a path already.
pub struct Passed {
    pub listener: UnixListener,
    /// `None`: the manager made its file, and removes it.
    pub file: Option<(SocketInode, Kept)>,
}

fn passed() -> MutexGuard<'static, Vec<(String, UnixListener)>> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes over what was passed to this process. To be called once, before any thread is started.
pub fn take_over() {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut sockets = ListenFd::from_env();
    for index in 0..sockets.len() {
        let name = names.next().filter(|name| !name.is_empty());
        let name = name.unwrap_or("unknown").to_owned();
        match sockets.take_unix_listener(index) {
            Ok(Some(listener)) => passed().push((name, listener)),
            Ok(None) => {}
            Err(error) => tracing::warn!(
                "the service manager passes `{}`, which is not used: {error}; it should pass Unix stream sockets",
                name.escape_debug()
            ),
        }
    }
}

/// Names of the sockets that the manager has opened, without those that it kept.
pub fn names() -> Vec<String> {
    let passed = passed();
    let names = passed.iter().map(|(name, _)| name);
    names.filter(|name| !kept::is_kept(name)).cloned().collect()
}

/// Whether the manager has opened a socket of this name that nobody has taken.
pub fn is_passed(name: &str) -> bool {
    names().iter().any(|passed| passed == name)
}

/// The socket of this name.
pub fn take(name: &str) -> Option<UnixListener> {
    let mut passed = passed();
    let at = passed.iter().position(|(n, _)| n == name)?;
    Some(passed.remove(at).1)
}

/// The socket to which the file at `path` leads. A kept one that was made there, and whose file
/// another one has replaced, is closed: as long as it is open, the path counts as in use.
pub fn take_at(path: &Path) -> Option<Passed> {
    let file = kept::file_of(path)?;
    let mut passed = passed();
    passed.retain(|(name, listener)| {
        let is_replaced = kept::is_kept(name)
            && !kept::is_of(name, path)
            && path_of(listener).as_deref() == Some(path);
        if is_replaced {
            kept::forget(name);
        }
        !is_replaced
    });
    let is_it = |(name, listener): &(String, UnixListener)| match kept::is_kept(name) {
        true => kept::is_of(name, path),
        false => path_of(listener).is_some_and(|at| kept::file_of(&at) == Some(file)),
    };
    let at = passed.iter().position(is_it)?;
    let (name, listener) = passed.remove(at);
    drop(passed);
    let file = kept::is_kept(&name).then(|| (file, keep(&listener, path, file)));
    Some(Passed { listener, file })
}

/// Sockets that were kept and that nobody has taken are closed.
pub fn drop_kept() {
    passed().retain(|(name, _)| {
        if kept::is_kept(name) {
            kept::forget(name);
        }
        !kept::is_kept(name)
    });
}

/// Closes what nobody has taken, and returns the names with the paths.
pub fn left_over() -> Vec<(String, Option<PathBuf>)> {
    let left = std::mem::take(&mut *passed()).into_iter();
    left.map(|(name, listener)| (name, path_of(&listener)))
        .collect()
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    let address = listener.local_addr().ok()?;
    address.as_pathname().map(Path::to_owned)
}
