//! The user that the process becomes: `USER[:GROUP]`.

use std::io;

use nix::unistd::{Gid, Group, Uid, getegid, geteuid};

use super::SandboxError;

/// A user and a group that exist, or were given by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As it was given.
    text: String,
    uid: Uid,
    gid: Gid,
}

impl User {
    /// Looks `USER[:GROUP]` up: names or numbers; without a group, the user's own.
    ///
    /// # Errors
    /// There is no such user or group, or a user that only has a number has no group.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let known = found(user, "user", nix::unistd::User::from_name(user))?;
        let number = number(user);
        let known = match (known, number) {
            (None, Some(uid)) => found(user, "user", nix::unistd::User::from_uid(uid.into()))?,
            (known, _) => known,
        };
        let uid = known.as_ref().map(|user| user.uid);
        let uid = uid.or(number.map(Uid::from_raw)).ok_or_else(|| {
            format!("the system has no user `{user}`: create it (useradd --system {user}), or give another one, by name or number")
        })?;
        let gid = match (group, known) {
            (Some(group), _) => group_of(group)?,
            (None, Some(user)) => user.gid,
            (None, None) => {
                return Err(format!(
                    "the system has no user with the number {user}, so that its group is unknown: give {user}:GROUP"
                ));
            }
        };
        Ok(Self {
            text: text.to_owned(),
            uid,
            gid,
        })
    }

    /// # Errors
    /// The process cannot become this user.
    pub fn check(&self) -> Result<(), SandboxError> {
        match self.is_another() && !geteuid().is_root() {
            true => Err(SandboxError::NotRoot {
                user: self.text.clone(),
            }),
            false => Ok(()),
        }
    }

    /// The process is not this user, or not in its group.
    pub fn is_another(&self) -> bool {
        (geteuid(), getegid()) != (self.uid, self.gid)
    }

    pub const fn uid(&self) -> Uid {
        self.uid
    }

    pub const fn gid(&self) -> Gid {
        self.gid
    }
}

/// The largest number means "no change" to the system.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn group_of(text: &str) -> Result<Gid, String> {
    let known = found(text, "group", Group::from_name(text))?.map(|group| group.gid);
    known.or(number(text).map(Gid::from_raw)).ok_or_else(|| {
        format!("the system has no group `{text}`: create it (groupadd {text}), or give another one, by name or number")
    })
}

fn found<T>(name: &str, what: &str, found: nix::Result<Option<T>>) -> Result<Option<T>, String> {
    match (found, number(name)) {
        (Ok(found), _) => Ok(found),
        (Err(_), Some(_)) => Ok(None),
        (Err(errno), None) => Err(format!(
            "the {what} `{name}` cannot be looked up: {}; give its number instead",
            io::Error::from(errno)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        let raw = |text: &str| User::parse(text).map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        assert_eq!(raw("root"), Ok((0, 0)));
        assert_eq!(raw("0"), Ok((0, 0)));
        assert_eq!(raw("root:12345"), Ok((0, 12345)));
        assert_eq!(raw("54321:12345"), Ok((54321, 12345)));
        for (text, words) in [
            ("no-such-user", "useradd --system no-such-user"),
            ("root:no-such-group", "groupadd no-such-group"),
            ("54321", "give 54321:GROUP"),
            ("4294967295:0", "no user"),
            ("", "no user"),
            ("root:", "no group"),
        ] {
            let error = raw(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
