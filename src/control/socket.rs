//! A Unix socket that only its owner can connect to unless more is asked for, at a path that may still have the socket
//! of a daemon that was killed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::own_socket;
use crate::socket_access::{SocketAccess, SocketInode};
use crate::supervisor::{self, Kept, Passed};

/// Why no socket could be created at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("socket {}: a running daemon uses it: stop it or choose another path", .0.display())]
    Live(PathBuf),
    #[error("socket {}: this daemon itself uses it for something else: choose another path", .0.display())]
    Own(PathBuf),
    #[error("socket {}: the path is taken by a file that is not a socket: remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    #[error("socket {}: the path has {} bytes, and a Unix socket's path can have at most 107: choose a shorter one", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    #[error("it is not a listening Unix stream socket")]
    NotListening,
    #[error(
        "socket {}: cannot {step}: {source}; choose a path in an existing directory with write permission",
        path.display()
    )]
    Io {
        path: PathBuf,
        step: &'static str,
        source: io::Error,
    },
}

/// A listening socket; dropping it removes the path, if it still leads to this socket.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// `None`: the path is not ours. The next process may take the socket over.
    file: Option<(SocketInode, Kept)>,
}

/// Length of the queue of connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long to wait for another process that is binding in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

impl BoundSocket {
    /// Listens at `path` with mode 0600.
    ///
    /// # Errors
    /// See [`Self::bind_for`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_for(path, SocketAccess::default())
    }

    /// Listens at `path` for those whom `access` lets in. A stale socket is replaced; a live one,
    /// or another kind of file, is refused.
    ///
    /// Order: 1 the directory is locked, so that of two daemons that find the same stale
    /// socket only one replaces it → 2 the socket is probed → 3 it is removed if it is stale →
    /// 4 the new one is bound, and gets its group and mode → 5 it listens.
    ///
    /// A socket at this path that the service manager has passed is taken over.
    ///
    /// # Errors
    /// The socket is in use, or cannot be made; nothing of another process is touched.
    pub fn bind_for(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        // Where the manager passes a socket, its directory may be one that cannot be opened.
        match supervisor::take_at(path) {
            Some(passed) => Self::take_over(path, passed, access),
            None => Self::bind_locked(path, access, &lock_directory(path)?),
        }
    }

    /// As [`Self::bind_for`]; the caller has locked the directory.
    pub(super) fn bind_locked(
        path: &Path,
        access: SocketAccess,
        _lock: &OwnedFd,
    ) -> Result<Self, SocketError> {
        if let Some(passed) = supervisor::take_at(path) {
            return Self::take_over(path, passed, access);
        }
        let failed = |step| move |source: Errno| io_error(path, step, source.into());
        let address =
            SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        if is_stale(path, &address)? {
            std::fs::remove_file(path).map_err(|e| io_error(path, "remove the stale socket", e))?;
        }
        let socket = unix_socket(path)?;
        let made = access.bind(&socket, path, &address);
        let inode = made.map_err(|e| io_error(path, e.step, e.source))?;
        let mut bound = Self {
            listener: UnixListener::from(socket),
            path: path.to_owned(),
            file: Some((inode, Kept::default())),
        };
        rustix::net::listen(&bound.listener, BACKLOG).map_err(failed("listen"))?;
        bound.file = Some((inode, supervisor::keep(&bound.listener, path, inode)));
        Ok(bound)
    }

    /// A socket at `path` that listens already. One that an earlier daemon made is for those whom
    /// `access` lets in now.
    fn take_over(path: &Path, passed: Passed, access: SocketAccess) -> Result<Self, SocketError> {
        let Passed { listener, file } = passed;
        if let Some((inode, _)) = &file {
            let changed = access.change(path, *inode);
            changed.map_err(|e| io_error(path, e.step, e.source))?;
        }
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|e| io_error(path, "make it non-blocking", e))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file,
        })
    }

    /// Whether [`Self::bind`] would be refused, as far as can be told without it.
    pub fn look(path: &Path) -> Result<(), SocketError> {
        let address =
            SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        let may = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(CWD, folder_of(path), may, AtFlags::EACCESS)
            .map_err(|e| io_error(path, "write to its directory", e.into()))?;
        is_stale(path, &address).map(drop)
    }

    /// Takes a listening socket from the parent process. Its file, if it has one, stays.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let is_stream = sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
        let is_unix = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
        if !is_stream || !is_unix || sockopt::socket_acceptconn(&fd) != Ok(true) {
            return Err(SocketError::NotListening);
        }
        let listener = UnixListener::from(fd);
        let path = PathBuf::from("(given descriptor)");
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|e| io_error(&path, "make it non-blocking", e))?;
        Ok(Self {
            listener,
            path,
            file: None,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is, also if it was passed to this process; `None` if it has no file.
    pub fn place(&self) -> Option<PathBuf> {
        if self.path.is_absolute() {
            return Some(self.path.clone());
        }
        let address = self.listener.local_addr().ok()?;
        let path = address.as_pathname().filter(|path| path.is_absolute());
        path.map(Path::to_owned)
    }

    /// A second, non-blocking handle to accept from.
    pub fn listener(&self) -> Result<UnixListener, SocketError> {
        self.listener
            .try_clone()
            .map_err(|e| io_error(&self.path, "duplicate it", e))
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let Some((inode, _)) = self.file.as_ref().filter(|(_, kept)| !kept.stays()) else {
            return;
        };
        if inode_of(&self.path).is_ok_and(|there| there == *inode) {
            // This fails if the directory has been removed or is read-only, which is harmless.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether there is a stale socket; false if there is nothing. An error if the socket is live
/// or the file is not a socket.
fn is_stale(path: &Path, address: &SocketAddrUnix) -> Result<bool, SocketError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io_error(path, "examine the path", e)),
    }
    if own_socket::is_own(path) {
        return Err(SocketError::Own(path.to_owned()));
    }
    // Never blocks: a stopped listener with a full backlog counts as live, too.
    match rustix::net::connect(&unix_socket(path)?, address) {
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::Live(path.to_owned())),
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(e) => Err(io_error(path, "check whether it is in use", e.into())),
    }
}

/// Connects to the socket at `path` for a moment, without blocking. `None`: it has no address, or
/// the system has no descriptors.
pub(super) fn connect(path: &Path) -> Option<Result<(), Errno>> {
    let address = SocketAddrUnix::new(path).ok()?;
    Some(rustix::net::connect(&unix_socket(path).ok()?, &address))
}

fn unix_socket(path: &Path) -> Result<OwnedFd, SocketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|e| io_error(path, "create a socket", e.into()))
}

/// Locks the directory as long as the result exists. Another process that holds the lock for
/// long only delays this, because the lock only makes a race less likely.
pub(super) fn lock_directory(path: &Path) -> Result<OwnedFd, SocketError> {
    let directory = rustix::fs::open(
        folder_of(path),
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| io_error(path, "open its directory", e.into()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err()
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(directory)
}

fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn inode_of(path: &Path) -> io::Result<SocketInode> {
    std::fs::symlink_metadata(path).map(|found| SocketInode {
        device: found.dev(),
        inode: found.ino(),
    })
}

fn io_error(path: &Path, step: &'static str, source: io::Error) -> SocketError {
    SocketError::Io {
        path: path.to_owned(),
        step,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_bound_socket_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let _bound = BoundSocket::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_live_socket_is_refused_by_name_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let _bound = BoundSocket::bind(&path).unwrap();
        let error = BoundSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::Own(_)));
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _bound = BoundSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_listener_that_never_accepts_is_live_and_does_not_hang_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let bound = BoundSocket::bind(&path).unwrap();
        rustix::net::listen(&bound.listener, 0).unwrap();
        let _fills_the_backlog = UnixStream::connect(&path).unwrap();
        // As another process would see it.
        let address = SocketAddrUnix::new(&path).unwrap();
        let probe = unix_socket(&path).unwrap();
        assert_eq!(rustix::net::connect(&probe, &address), Err(Errno::AGAIN));
        assert!(matches!(BoundSocket::bind(&path), Err(SocketError::Own(_))));
    }

    #[test]
    fn a_file_in_the_way_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            BoundSocket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn dropping_removes_the_path_unless_it_is_somebody_elses_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        drop(BoundSocket::bind(&path).unwrap());
        assert!(!path.exists());
        let bound = BoundSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_fits_no_socket_address_is_refused_with_the_limit() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = BoundSocket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = BoundSocket::bind(Path::new("/nonexistent/c.sock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/c.sock"), "{error}");
    }
}
