//! The folders in which daemons are found.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The name of the folders.
const NAME: &str = "snapback";
/// Folders of users that root looks at, at most.
const USERS_MAX: usize = 4096;

/// A folder, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// Who must own it.
    pub owner: u32,
    /// The user of this process.
    user: u32,
}

impl Place {
    /// What is there was put there by root or by the user of this process.
    pub const fn is_trusted(&self) -> bool {
        self.owner == 0 || self.owner == self.user
    }

    /// A folder of `owner` below `folder`, as another user sees it.
    #[cfg(test)]
    pub fn of_another(folder: &Path, owner: u32) -> Self {
        Self {
            path: folder.join(NAME),
            owner,
            user: owner + 1,
        }
    }

    /// It exists, and nobody but its owner can have put anything there.
    pub fn is_sound(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| {
            found.is_dir() && found.uid() == self.owner && found.mode() & 0o022 == 0
        })
    }

    /// Makes the folder if it does not exist. Others can look into root's, which is for all users
    /// of the system; the modes of the sockets decide who can connect.
    ///
    /// # Errors
    /// It cannot be made, or others could put something there.
    pub fn make(&self) -> io::Result<()> {
        let mode = if self.owner == 0 { 0o755 } else { 0o700 };
        match DirBuilder::new().mode(mode).create(&self.path) {
            // The umask does not decide.
            Ok(()) if fs::metadata(&self.path)?.mode() & 0o777 != mode => {
                fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))?;
            }
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        match self.is_sound() {
            true => Ok(()),
            false => Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "others can write to it",
            )),
        }
    }
}

/// The folders of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where the user's own daemons are.
    pub own: Place,
    /// Where those of others are that the user can know of.
    pub others: Vec<Place>,
}

impl Places {
    pub fn of_this_user() -> Self {
        let user = rustix::process::geteuid().as_raw();
        let variable = std::env::var_os("XDG_RUNTIME_DIR");
        Self::of(user, variable.as_deref(), Path::new("/run"))
    }

    /// Of `user`, with XDG_RUNTIME_DIR as given, on a system whose `/run` is `run`.
    ///
    /// A variable that does not name the folder of a login was set on purpose, as in a container
    /// or a test: only that folder counts. One that belongs to another user is what `sudo` has left;
    /// it does not count. Root's daemons are the system's: they must outlive root's login.
    pub fn of(user: u32, variable: Option<&OsStr>, run: &Path) -> Self {
        let place = |folder: PathBuf, owner| Place {
            path: folder.join(NAME),
            owner,
            user,
        };
        let users = run.join("user");
        let chosen = variable.map(PathBuf::from).filter(|folder| {
            let owner = fs::metadata(folder).map(|found| found.uid());
            folder.is_absolute() && owner.map_or(true, |owner| owner == user)
        });
        if let Some(folder) = chosen.filter(|folder| !folder.starts_with(&users)) {
            return Self {
                own: place(folder, user),
                others: Vec::new(),
            };
        }
        let system = place(run.to_owned(), 0);
        if user == 0 {
            let logins = fs::read_dir(&users).into_iter().flatten().flatten();
            let numbers = logins.filter_map(|login| login.file_name().to_str()?.parse().ok());
            let mut numbers: Vec<u32> = numbers.take(USERS_MAX).filter(|n| *n != 0).collect();
            numbers.sort_unstable();
            let of = |number: u32| place(users.join(number.to_string()), number);
            return Self {
                own: system,
                others: numbers.into_iter().map(of).collect(),
            };
        }
        Self {
            own: place(users.join(user.to_string()), user),
            others: vec![system],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(places: &Places) -> (String, Vec<String>) {
        let text = |place: &Place| place.path.to_str().unwrap().to_owned();
        (
            text(&places.own),
            places.others.iter().map(text).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn users_see_their_own_daemons_and_roots_and_root_sees_all() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        for login in ["user/0", "user/1000", "user/77", "user/what"] {
            fs::create_dir_all(run.join(login)).unwrap();
        }
        let at = |place: &str| run.join(place).to_str().unwrap().to_owned();
        let of = |user, variable: Option<&str>| {
            let variable = variable.map(|v| run.join(v));
            paths(&Places::of(user, variable.as_deref().map(OsStr::new), run))
        };
        let root = (
            at("snapback"),
            vec![at("user/77/snapback"), at("user/1000/snapback")],
        );
        assert_eq!(of(0, None), root);
        assert_eq!(of(0, Some("user/0")), root);
        let me = rustix::process::geteuid().as_raw();
        let alone = (at("elsewhere/snapback"), Vec::new());
        assert_eq!(of(me, Some("elsewhere")), alone);
        if me != 0 {
            fs::create_dir_all(run.join(format!("user/{me}"))).unwrap();
        }
        let user = (at("user/4711/snapback"), vec![at("snapback")]);
        assert_eq!(of(4711, None), user);
        // Of somebody else (this test's user), as with `sudo -E`.
        fs::create_dir(run.join("elsewhere")).unwrap();
        assert_eq!(of(me + 4711, Some("elsewhere")).1, vec![at("snapback")]);
    }

    #[test]
    fn a_folder_is_made_for_its_owner_and_one_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let places = Places::of(user, Some(folder.path().as_os_str()), Path::new("/run"));
        assert!(!places.own.is_sound());
        places.own.make().unwrap();
        assert!(places.own.is_sound() && places.own.is_trusted());
        places.own.make().unwrap();
        let mode = |mode| fs::set_permissions(&places.own.path, fs::Permissions::from_mode(mode));
        mode(0o777).unwrap();
        let refused = places.own.make().unwrap_err().to_string();
        assert!(refused.contains("others can write"), "{refused}");
        mode(0o700).unwrap();
        fs::remove_dir(&places.own.path).unwrap();
        std::os::unix::fs::symlink(folder.path(), &places.own.path).unwrap();
        assert!(places.own.make().is_err());
    }
}
