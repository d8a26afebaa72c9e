//! The socket of a view: made at a path, taken over from the service manager or the parent process,
//! or the front end's own.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::client;
use crate::own_socket;
use crate::socket_access::{BindError, SocketAccess, SocketInode};
use crate::supervisor::{self, Kept, Passed};

/// Front ends that may connect before the view's thread gets to it.
const BACKLOG: i32 = 16;

/// Why a view's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "{path} is in use: another process listens on it; stop that process or choose another path"
    )]
    InUse { path: PathBuf },
    #[error("{path} is in use by this daemon itself; choose another path")]
    Own { path: PathBuf },
    #[error("{path} exists and is not a socket; it is left alone, choose another path")]
    NotASocket { path: PathBuf },
    #[error(
        "{path}: cannot listen there: {source}; choose a path in a directory that exists and that you may write to"
    )]
    Listen { path: PathBuf, source: io::Error },
    #[error(
        "{path}: cannot {step}: {source}; its folder must be on a file system that keeps groups and modes: choose a path \
         on another one"
    )]
    Access {
        path: PathBuf,
        step: &'static str,
        source: io::Error,
    },
    #[error("{path}: cannot connect there: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("file descriptor {fd} is not a Unix stream socket: {reason}")]
    Descriptor { fd: i32, reason: String },
}

/// A socket at which front ends connect to a view.
#[derive(Debug)]
pub struct ViewSocket(Socket);

/// How front ends come to a view.
#[derive(Debug)]
pub enum Socket {
    Listening {
        listener: UnixListener,
        file: Option<SocketFile>,
    },
    Connected(UnixStream),
    /// The front end listens at this path.
    Connecting(PathBuf),
}

/// The file of a socket that a daemon has made. It is removed with the socket, unless another file
/// has replaced it, or the next process may take the socket over.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    made: SocketInode,
    kept: Kept,
}

impl ViewSocket {
    /// Listens at `path`, for this user only. A socket without a listener is replaced;
    /// anything else that exists is not touched.
    ///
    /// The folder is locked meanwhile, so that one of two processes is refused. A socket at this path
    /// that the service manager has passed is taken over.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_for(path, SocketAccess::default())
    }

    /// [`Self::bind`] for those whom `access` lets in.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind_for(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        if let Some(passed) = supervisor::take_at(path) {
            return Self::take_over(path, passed, access);
        }
        let failed = |source: io::Error| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder_of(path), flags, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        remove_stale(path)?;
        let (listener, file) = listen(path, access)?;
        Ok(Self(Socket::Listening {
            listener,
            file: Some(file),
        }))
    }

    /// A socket at `path` that listens already, for an earlier process or by the service manager.
    /// One that an earlier process made is for those whom `access` lets in now.
    fn take_over(path: &Path, passed: Passed, access: SocketAccess) -> Result<Self, SocketError> {
        let Passed { listener, file } = passed;
        let file = file.map(|(made, kept)| SocketFile {
            path: path.to_owned(),
            made,
            kept,
        });
        if let Some(file) = &file {
            let changed = access.change(path, file.made);
            changed.map_err(|e| refused(path, e))?;
        }
        Ok(Self(Socket::Listening { listener, file }))
    }

    /// Whether [`Self::bind`] would be refused, as far as can be told without it.
    pub fn look(path: &Path) -> Result<(), SocketError> {
        let failed = |source: io::Error| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        address(path).map_err(failed)?;
        let may = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(CWD, folder_of(path), may, AtFlags::EACCESS)
            .map_err(|e| failed(e.into()))?;
        is_stale(path).map(drop)
    }

    /// Connects to the front end, which listens at `path`, once the view is served.
    ///
    /// # Errors
    /// No socket can have this path.
    pub fn connecting(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Connect {
            path: path.to_owned(),
            source,
        };
        Ok(Self(Socket::Connecting(
            client::check(path).map_err(failed)?,
        )))
    }

    pub(super) fn into_inner(self) -> Socket {
        self.0
    }

    /// Where the front end listens, if the view connects to it.
    pub fn connects_to(&self) -> Option<&Path> {
        match &self.0 {
            Socket::Connecting(path) => Some(path),
            Socket::Listening { .. } | Socket::Connected(_) => None,
        }
    }

    /// Takes a socket from the parent process, listening or connected.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        use std::os::fd::AsRawFd;
        let number = fd.as_raw_fd();
        let refuse = |reason: String| SocketError::Descriptor { fd: number, reason };
        let failed = |e: rustix::io::Errno| refuse(e.to_string());
        if sockopt::socket_domain(&fd).map_err(failed)? != AddressFamily::UNIX {
            return Err(refuse("it belongs to another address family".into()));
        }
        if sockopt::socket_type(&fd).map_err(failed)? != SocketType::STREAM {
            return Err(refuse("it is not a stream".into()));
        }
        if sockopt::socket_acceptconn(&fd).map_err(failed)? {
            Ok(Self(Socket::Listening {
                listener: fd.into(),
                file: None,
            }))
        } else {
            Ok(Self(Socket::Connected(fd.into())))
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes a socket without a listener, and nothing else.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    if !is_stale(path)? {
        return Ok(());
    }
    fs::remove_file(path).map_err(|source| SocketError::Listen {
        path: path.to_owned(),
        source,
    })
}

/// Whether there is a socket without a listener; false if there is nothing. An error if there is
/// anything else.
fn is_stale(path: &Path) -> Result<bool, SocketError> {
    let failed = |source: io::Error| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    if !there.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    // Not by connecting, which would be a front end to the own view.
    if own_socket::is_own(path) {
        return Err(SocketError::Own {
            path: path.to_owned(),
        });
    }
    match connect(path) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(true),
        Err(e) => Err(failed(e.into())),
    }
}

/// Tries to reach a listener; one with a full backlog answers EAGAIN.
fn connect(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&probe, &SocketAddrUnix::new(path)?)
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "its name is too long, a socket's path has at most 107 bytes",
        )
    })
}

fn listen(path: &Path, access: SocketAccess) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source: io::Error| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    let address = address(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|e| failed(e.into()))?;
    let made = access.bind(&socket, path, &address);
    let made = made.map_err(|e| refused(path, e))?;
    let mut file = SocketFile {
        path: path.to_owned(),
        made,
        kept: Kept::default(),
    };
    rustix::net::listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
    let listener = UnixListener::from(socket);
    file.kept = supervisor::keep(&listener, path, made);
    Ok((listener, file))
}

/// Why there is no socket at `path`, or not for those whom it was asked for.
fn refused(path: &Path, error: BindError) -> SocketError {
    let BindError {
        step,
        source,
        is_access,
    } = error;
    let path = path.to_owned();
    match source.kind() {
        _ if is_access => SocketError::Access { path, step, source },
        io::ErrorKind::AddrInUse => SocketError::InUse { path },
        _ => SocketError::Listen { path, source },
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.kept.stays() {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|m| m.dev() == self.made.device && m.ino() == self.made.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}
