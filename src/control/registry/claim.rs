//! What a daemon does in the folder.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::Registry;
use super::entry::{Entry, Found, path_of};
use crate::control::socket::{BoundSocket, SocketError, lock_directory};
use crate::socket_access::SocketAccess;
use crate::supervisor;

/// Daemons that serve disks of the same name.
const SAME_NAME_MAX: usize = 999;

/// The name that a daemon wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// This one.
    Exactly(String),
    /// This one, with a number if another daemon has it.
    Like(String),
}

impl Wish {
    fn candidates(&self) -> impl Iterator<Item = String> {
        let (name, most) = match self {
            Self::Exactly(name) => (name.clone(), 1),
            Self::Like(name) => (name.clone(), SAME_NAME_MAX),
        };
        (1..=most).map(move |number| match number {
            1 => name.clone(),
            _ => format!("{name}-{number}"),
        })
    }

    fn taken(&self) -> RegistryError {
        match self {
            Self::Exactly(name) | Self::Like(name) => RegistryError::Taken(name.clone()),
        }
    }
}

/// Why a daemon has no entry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("a running daemon is called {0}: choose another name")]
    Taken(String),
    #[error("{0}")]
    Socket(#[from] SocketError),
    #[error("{}: the link to the control socket cannot be made: {source}", path.display())]
    Link { path: PathBuf, source: io::Error },
}

/// A link to a control socket. Dropping it removes it, unless it leads to another one now, or the
/// socket stays for the next process of the service.
#[derive(Debug)]
pub struct Noted {
    path: PathBuf,
    socket: PathBuf,
}

impl Noted {
    /// Where the link is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !supervisor::sockets_stay()
            && fs::read_link(&self.path).is_ok_and(|to| to == self.socket)
        {
            // This fails if the folder has been removed, which is harmless.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Registry {
    /// Listens in the folder, for those whom `access` lets in.
    ///
    /// # Errors
    /// The folder cannot be made or others can write to it, the name is taken, or the socket
    /// cannot be made.
    pub fn bind(&self, wish: &Wish, access: SocketAccess) -> Result<BoundSocket, RegistryError> {
        let folder = self.folder()?;
        let lock = lock_directory(&path_of(folder, ""))?;
        for name in wish.candidates() {
            let path = path_of(folder, &name);
            if let Some(link) = Entry::at(&name, &path).filter(|entry| entry.socket != path)
                && link.look() == Some(Found::Stale)
            {
                let removed = fs::remove_file(&path);
                removed.map_err(|source| RegistryError::Link {
                    path: path.clone(),
                    source,
                })?;
            }
            match BoundSocket::bind_locked(&path, access, &lock) {
                Err(SocketError::Live(_) | SocketError::Own(_) | SocketError::NotASocket(_)) => {}
                bound => return Ok(bound?),
            }
        }
        Err(wish.taken())
    }

    /// Makes a link to `socket`, which is at a place of its own.
    ///
    /// # Errors
    /// As for [`Self::bind`].
    pub fn note(&self, wish: &Wish, socket: &Path) -> Result<Noted, RegistryError> {
        let folder = self.folder()?;
        let _lock = lock_directory(&path_of(folder, ""))?;
        for name in wish.candidates() {
            let path = path_of(folder, &name);
            let noted = || Noted {
                path: path.clone(),
                socket: socket.to_owned(),
            };
            match Entry::at(&name, &path) {
                Some(own) if own.socket == socket && own.socket != path => return Ok(noted()),
                Some(other) if other.look() == Some(Found::Stale) => {
                    // If this fails, the link cannot be made, which says why.
                    let _ = fs::remove_file(&path);
                }
                Some(_) => continue,
                None if path.symlink_metadata().is_ok() => continue,
                None => {}
            }
            let made = symlink(socket, &path);
            let noted = noted();
            return match made {
                Ok(()) => Ok(noted),
                Err(source) => Err(RegistryError::Link { path, source }),
            };
        }
        Err(wish.taken())
    }

    /// Whether [`Self::bind`] would be refused because of the name, as far as can be told without
    /// it.
    ///
    /// # Errors
    /// A running daemon has that name.
    pub fn look(&self, wish: &Wish) -> Result<(), RegistryError> {
        let mut candidates = wish.candidates();
        let is_free = candidates.any(|name| {
            let path = path_of(&self.places.own.path, &name);
            Entry::at(&name, &path).is_none_or(|entry| entry.look() == Some(Found::Stale))
        });
        match is_free {
            true => Ok(()),
            false => Err(wish.taken()),
        }
    }

    fn folder(&self) -> Result<&Path, RegistryError> {
        let path = &self.places.own.path;
        let made = self.places.own.make();
        made.map_err(|source| RegistryError::Folder {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}
