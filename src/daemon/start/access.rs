//! Who may connect to the sockets of a volume: the groups of the options and the state file are
//! looked up, and it is tried whether files may be given to them, before a socket is touched.

use std::io;

use nix::unistd::Group;
use rustix::fs::{Gid, MemfdFlags, fchown, memfd_create};

use crate::daemon::state::{AccessRecord, VolumeState};
use crate::socket_access::SocketAccess;

/// The modes that a socket may have: permission bits, and the owner can connect, because a start
/// connects to a socket that it finds, to learn whether somebody listens there.
const BITS: u32 = 0o777;
const OWNER: u32 = 0o600;

/// The messages explain the variants. `option`: what names the value on the command line.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(
        "{option} {name}: the system has no such group: create it (groupadd {name}), or give {option} another group, \
         by name or number"
    )]
    Unknown { option: &'static str, name: String },
    #[error("{option} {name}: the group cannot be looked up: {source}; give its number instead")]
    LookUp {
        option: &'static str,
        name: String,
        source: io::Error,
    },
    #[error(
        "{option} {name}: this process may not give files to that group (number {number}): {source}; add its user to the \
         group (usermod -aG GROUP USER, then start it anew), start it as root, or give {option} a group of its user"
    )]
    NotPermitted {
        option: &'static str,
        name: String,
        number: u32,
        source: io::Error,
    },
    #[error("{option} {mode:o}: must be octal, from 600 to 777, with 6 or 7 for the owner")]
    Mode { option: &'static str, mode: u32 },
}

/// Who may connect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// To the views.
    pub views: SocketAccess,
    pub control: SocketAccess,
}

impl Access {
    /// As the state says, in which the options are recorded already. Changes nothing.
    ///
    /// # Errors
    /// There is no such group, files may not be given to it, or a mode makes no sense.
    pub fn resolve(state: &VolumeState) -> Result<Self, AccessError> {
        let views = resolve(&state.socket_access, ("--socket-group", "--socket-mode"))?;
        let control = resolve(&state.control_access, ("--control-group", "--control-mode"))?;
        Ok(Self { views, control })
    }
}

fn resolve(
    record: &AccessRecord,
    (of_group, of_mode): (&'static str, &'static str),
) -> Result<SocketAccess, AccessError> {
    let default = SocketAccess::default();
    let group = match &record.group {
        Some(name) => Some(permitted_group(name, of_group)?),
        None => default.group,
    };
    let mode = record.effective_mode();
    if mode & !BITS != 0 || mode & OWNER != OWNER {
        return Err(AccessError::Mode {
            option: of_mode,
            mode,
        });
    }
    Ok(SocketAccess { group, mode })
}

/// The number of a group that files of this process can have.
fn permitted_group(name: &str, option: &'static str) -> Result<u32, AccessError> {
    let number = look_up(name, option)?;
    // Only the kernel knows all of its rules, so a file in memory is given away.
    let attempt = || -> io::Result<()> {
        let file = memfd_create("snapback-group", MemfdFlags::CLOEXEC)?;
        Ok(fchown(file, None, Some(Gid::from_raw(number)))?)
    };
    attempt().map_err(|source| AccessError::NotPermitted {
        option,
        name: name.to_owned(),
        number,
        source,
    })?;
    Ok(number)
}

/// A name goes before a number, as in chown.
fn look_up(name: &str, option: &'static str) -> Result<u32, AccessError> {
    let number = name.parse().ok();
    // The largest number means "no change" to the system.
    let number = number.filter(|number| *number != u32::MAX);
    let found = Group::from_name(name);
    match (found, number) {
        (Ok(Some(group)), _) => Ok(group.gid.as_raw()),
        (_, Some(number)) => Ok(number),
        (Ok(None), None) => Err(AccessError::Unknown {
            option,
            name: name.to_owned(),
        }),
        (Err(errno), None) => Err(AccessError::LookUp {
            option,
            name: name.to_owned(),
            source: errno.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(group: Option<&str>, mode: Option<u32>) -> Result<SocketAccess, String> {
        let record = AccessRecord {
            group: group.map(str::to_owned),
            mode,
        };
        resolve(&record, ("--socket-group", "--socket-mode")).map_err(|e| e.to_string())
    }

    #[test]
    fn without_options_a_socket_is_for_its_owner_and_with_a_group_for_the_group_too() {
        assert_eq!(views(None, None).unwrap(), SocketAccess::default());
        let own = rustix::process::getegid().as_raw();
        let of_own = |mode| SocketAccess {
            group: Some(own),
            mode,
        };
        let number = own.to_string();
        assert_eq!(views(Some(&number), None).unwrap(), of_own(0o660));
        assert_eq!(views(Some(&number), Some(0o600)).unwrap(), of_own(0o600));
        assert_eq!(views(None, Some(0o666)).unwrap().group, None);
    }

    #[test]
    fn a_group_is_found_by_its_name() {
        // Number 0 has this name on every Linux.
        let found = look_up("root", "--socket-group").unwrap();
        assert_eq!(found, 0);
    }

    #[test]
    fn groups_and_modes_that_cannot_be_are_refused_by_their_options() {
        for (group, mode, words) in [
            (Some("no-such-group"), None, "groupadd no-such-group"),
            (Some(""), None, "no such group"),
            (Some("4294967295"), None, "no such group"),
            (None, Some(0o060), "--socket-mode 60: must be octal"),
            (None, Some(0o1777), "--socket-mode 1777"),
            (None, Some(0o440), "--socket-mode 440"),
        ] {
            let error = views(group, mode).unwrap_err();
            assert!(error.contains(words), "{group:?} {mode:?}: {error}");
        }
    }
}
