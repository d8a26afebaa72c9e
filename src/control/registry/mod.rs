//! The folder in which the daemons of a user are found: `NAME.control.sock` is a daemon's control
//! socket, or a symbolic link to it if it is at a place of its own.
//!
//! `places` says which folders those are, `name` what a daemon is called, `entry` reads a folder,
//! and `claim` is what a daemon does there.

mod claim;
mod entry;
mod name;
mod places;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use claim::{Noted, RegistryError, Wish};
pub use entry::{Entry, Found};
pub use name::{check_name, name_of};
use places::Places;

/// Names in a message, at most.
const SHOWN: usize = 10;

/// Why there is not one daemon to talk to; the messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    #[error(
        "no daemon of this user is running (none is in {}): start one with `snapback serve --origin FILE --socket-path SOCK`, \
         or name the control socket of another one by --control SOCK or SNAPBACK_CONTROL=SOCK", .0.display()
    )]
    None(PathBuf),
    #[error(
        "no daemon of this user is running, and those of root need root's rights ({}): run this as root", .0.join(", ")
    )]
    Denied(Vec<String>),
    #[error("{}; `snapback list` shows what each of them serves", several(.0))]
    Several(Vec<String>),
}

fn several(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "several daemons are running ({}{more}): name one by --control NAME or SNAPBACK_CONTROL=NAME",
        shown.join(", ")
    )
}

/// The daemons that a user can find.
#[derive(Clone, Debug)]
pub struct Registry {
    places: Places,
}

impl Registry {
    /// Of the user of this process.
    pub fn of_this_user() -> Self {
        Self {
            places: Places::of_this_user(),
        }
    }

    /// All daemons that may be running: this user's, then those of the others that this user can
    /// know of. What killed daemons of this user have left is removed.
    pub fn daemons(&self) -> Vec<(Entry, Found)> {
        let own = entry::all(&self.places.own);
        for (entry, found) in &own {
            if *found == Found::Stale {
                entry.remove_if_stale();
            }
        }
        let others = self.places.others.iter().flat_map(entry::all);
        let mut seen: Vec<PathBuf> = Vec::new();
        own.into_iter()
            .chain(others)
            .filter(|(entry, found)| {
                let is_new = *found != Found::Stale && !seen.contains(&entry.socket);
                seen.extend(is_new.then(|| entry.socket.clone()));
                is_new
            })
            .collect()
    }

    /// The control socket of the only daemon of this user. A user who has none gets the only one of
    /// root that lets them in; root does not get those of users, who could put anything there.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn only_one(&self) -> Result<PathBuf, ChoiceError> {
        let mut denied = Vec::new();
        let places = std::iter::once(&self.places.own);
        for place in places.chain(self.places.others.iter().filter(|place| place.is_trusted())) {
            let mut living: Vec<Entry> = Vec::new();
            for (entry, found) in entry::all(place) {
                let is_new = living.iter().all(|other| other.socket != entry.socket);
                match found {
                    Found::Living if is_new => living.push(entry),
                    Found::Denied => denied.push(entry.name),
                    Found::Living | Found::Stale => {}
                }
            }
            match living.as_slice() {
                [] => {}
                [one] => return Ok(one.socket.clone()),
                more => {
                    let names = more.iter().map(|entry| entry.name.clone()).collect();
                    return Err(ChoiceError::Several(names));
                }
            }
        }
        Err(match denied.is_empty() {
            true => ChoiceError::None(self.places.own.path.clone()),
            false => ChoiceError::Denied(denied),
        })
    }

    /// The control socket of the daemon `name`, which may be an arbitrary text. A file of that
    /// name in the working directory goes before, as it did before daemons had names.
    pub fn named(&self, name: &OsStr) -> Option<PathBuf> {
        let name = name.to_str().filter(|name| check_name(name).is_ok())?;
        if Path::new(name).symlink_metadata().is_ok() {
            return None;
        }
        let places = std::iter::once(&self.places.own).chain(&self.places.others);
        places
            .flat_map(entry::all)
            .find(|(entry, found)| entry.name == name && *found != Found::Stale)
            .map(|(entry, _)| entry.socket)
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
