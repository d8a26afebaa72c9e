//! The entries of a folder.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::name::check_name;
use super::places::Place;
use crate::control::socket::{self, lock_directory};

/// The ending of the entries. Sockets for front ends may be in the same folder, as that of the package's
/// socket unit is, and must not be connected to.
const ENDING: &str = ".control.sock";
/// Entries of a folder that are looked at, at most.
const ENTRIES_MAX: usize = 4096;

/// A daemon's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Its control socket.
    pub socket: PathBuf,
    /// The entry itself: the same, or a link to it.
    path: PathBuf,
}

/// What was found at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Somebody listens there.
    Living,
    /// The daemon was killed.
    Stale,
    /// This user may not connect.
    Denied,
}

/// The path of the entry `name`.
pub fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{ENDING}"))
}

/// The entries of a folder with what was found, by name. None if others can write to the folder.
pub fn all(place: &Place) -> Vec<(Entry, Found)> {
    if !place.is_sound() {
        return Vec::new();
    }
    let files = fs::read_dir(&place.path).into_iter().flatten().flatten();
    let names = files.filter_map(|file| {
        let name = file.file_name();
        let name = name.to_str()?.strip_suffix(ENDING)?;
        check_name(name).ok().map(|()| name.to_owned())
    });
    let mut names: Vec<String> = names.take(ENTRIES_MAX).collect();
    names.sort_unstable();
    names
        .into_iter()
        .filter_map(|name| {
            let path = path_of(&place.path, &name);
            let socket = target(&path)?;
            if !place.is_trusted() && !belongs_to(&socket, place.owner) {
                return None;
            }
            let entry = Entry { name, socket, path };
            let found = entry.look()?;
            Some((entry, found))
        })
        .collect()
}

/// Where the entry at `path` leads, if it is one.
fn target(path: &Path) -> Option<PathBuf> {
    let found = fs::symlink_metadata(path).ok()?;
    if found.file_type().is_symlink() {
        return fs::read_link(path).ok().filter(|to| to.is_absolute());
    }
    found.file_type().is_socket().then(|| path.to_owned())
}

/// A link of another user leads to a socket of that user, and not to one that listens to this one.
fn belongs_to(socket: &Path, owner: u32) -> bool {
    fs::metadata(socket).is_ok_and(|found| found.file_type().is_socket() && found.uid() == owner)
}

impl Entry {
    /// The entry at `path`, if there is one.
    pub fn at(name: &str, path: &Path) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            socket: target(path)?,
            path: path.to_owned(),
        })
    }

    /// `None`: it cannot be told, or what is there is no socket.
    pub fn look(&self) -> Option<Found> {
        match socket::connect(&self.socket)? {
            // A full backlog is that of a daemon that is busy or was stopped.
            Ok(()) | Err(Errno::AGAIN) => Some(Found::Living),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Some(Found::Stale),
            Err(Errno::ACCESS | Errno::PERM) => Some(Found::Denied),
            Err(_) => None,
        }
    }

    /// Removes what a killed daemon has left. A daemon that begins to listen holds the lock of the
    /// folder meanwhile.
    pub fn remove_if_stale(&self) {
        let lock = lock_directory(&self.path);
        if lock.is_ok() && self.look() == Some(Found::Stale) {
            // Another one may have removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
