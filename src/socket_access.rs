//! Who may connect to a Unix socket at a path: its group and its mode.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, chownat, fchmod, fstat, open};
use rustix::net::SocketAddrUnix;

/// The mode of a socket that only its owner can connect to.
const OWNER_ONLY: u32 = 0o600;

/// Group and mode of a socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Number of the group; `None`: the one that a new file has.
    pub group: Option<u32>,
    /// Permission bits. The umask does not apply to them.
    pub mode: u32,
}

/// For its owner only.
impl Default for SocketAccess {
    fn default() -> Self {
        Self {
            group: None,
            mode: OWNER_ONLY,
        }
    }
}

/// The file of a socket that was bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketInode {
    pub device: u64,
    pub inode: u64,
}

/// Why a socket does not exist at its path, or not with this access.
#[derive(Debug)]
pub struct BindError {
    /// What could not be done, such as `bind`.
    pub step: &'static str,
    pub source: io::Error,
    /// The group or the mode could not be set, whereas binding was possible.
    pub is_access: bool,
}

impl SocketAccess {
    /// Binds `socket`, which must not listen yet, at `address`, the address of `path`.
    ///
    /// Order: 1 the file is made, for its owner only: it takes its mode from the socket → 2 it
    /// gets its group → 3 it gets its mode → 4 the caller listens. So nobody can connect before
    /// the file has the group and the mode that were asked for, and at no moment has a group the
    /// permissions that are meant for another one.
    ///
    /// # Errors
    /// A step failed; there is no file then.
    pub fn bind(
        self,
        socket: impl AsFd,
        path: &Path,
        address: &SocketAddrUnix,
    ) -> Result<SocketInode, BindError> {
        let failed = |step, is_access| {
            move |source: rustix::io::Errno| BindError {
                step,
                source: source.into(),
                is_access,
            }
        };
        let own = Mode::from_raw_mode(OWNER_ONLY);
        fchmod(&socket, own).map_err(failed("set its mode", false))?;
        rustix::net::bind(&socket, address).map_err(failed("bind", false))?;
        // From here on by descriptor: in a folder of somebody else the name may lead elsewhere.
        let (file, inode) = open_socket(path).map_err(|source| {
            if source != rustix::io::Errno::NOTSOCK {
                // For instance no descriptor is left: nobody listens there.
                let _ = std::fs::remove_file(path);
            }
            failed("look it up", false)(source)
        })?;
        self.apply(&file).map_err(|(step, source)| {
            let _ = std::fs::remove_file(path);
            failed(step, true)(source)
        })?;
        Ok(inode)
    }

    /// Gives the socket `made` at `path`, which was bound for others, this access. Nobody can
    /// connect while it changes; if it has this access already, nothing happens.
    ///
    /// # Errors
    /// The path leads elsewhere, or a step failed.
    pub fn change(self, path: &Path, made: SocketInode) -> Result<(), BindError> {
        let failed = |step, is_access| {
            move |source: rustix::io::Errno| BindError {
                step,
                source: source.into(),
                is_access,
            }
        };
        let look_up = failed("look it up", false);
        let (file, inode) = open_socket(path).map_err(look_up)?;
        if inode != made {
            return Err(look_up(rustix::io::Errno::STALE));
        }
        let found = fstat(&file).map_err(look_up)?;
        let has_group = self.group.is_none_or(|group| group == found.st_gid);
        if has_group && Mode::from_raw_mode(found.st_mode).bits() == self.mode {
            return Ok(());
        }
        set_mode(&file, OWNER_ONLY).map_err(failed("set its mode", true))?;
        self.apply(&file)
            .map_err(|(step, source)| failed(step, true)(source))
    }

    fn apply(self, file: &OwnedFd) -> Result<(), (&'static str, rustix::io::Errno)> {
        if let Some(group) = self.group {
            let group = Some(Gid::from_raw(group));
            chownat(file, "", None, group, AtFlags::EMPTY_PATH)
                .map_err(|e| ("set its group", e))?;
        }
        if self.mode != OWNER_ONLY {
            set_mode(file, self.mode).map_err(|e| ("set its mode", e))?;
        }
        Ok(())
    }
}

fn set_mode(file: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    // No system call changes the mode by such a descriptor on all supported kernels.
    let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmod(by_descriptor, Mode::from_raw_mode(mode))
}

/// A descriptor of the socket's file that gives no access to its content.
fn open_socket(path: &Path) -> Result<(OwnedFd, SocketInode), rustix::io::Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        // It was replaced in this instant.
        return Err(rustix::io::Errno::NOTSOCK);
    }
    let inode = SocketInode {
        device: found.st_dev,
        inode: found.st_ino,
    };
    Ok((file, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn bound(path: &Path, access: SocketAccess) -> Result<OwnedFd, BindError> {
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let address = SocketAddrUnix::new(path).unwrap();
        access.bind(&socket, path, &address).map(|_| socket)
    }

    #[test]
    fn a_socket_has_exactly_the_group_and_mode_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::getegid().as_raw();
        // Under a usual umask these modes are not those of a new file.
        for (number, mode) in [0o600, 0o660, 0o666, 0o777].into_iter().enumerate() {
            let path = folder.path().join(format!("{number}.sock"));
            let group = (mode == 0o660).then_some(own);
            let _socket = bound(&path, SocketAccess { group, mode }).unwrap();
            let there = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(there.permissions().mode() & 0o7777, mode);
            assert_eq!(there.gid(), own);
            // It does not listen yet.
            std::os::unix::net::UnixStream::connect(&path).unwrap_err();
        }
    }

    #[test]
    fn the_access_of_a_socket_can_change_and_that_of_another_one_cannot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let _socket = bound(&path, SocketAccess::default()).unwrap();
        let (_, made) = open_socket(&path).unwrap();
        let group = Some(rustix::process::getegid().as_raw());
        for mode in [0o660, 0o660, 0o666, 0o600] {
            SocketAccess { group, mode }.change(&path, made).unwrap();
            let there = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(there.permissions().mode() & 0o7777, mode);
        }
        let other = folder.path().join("b.sock");
        let _other = bound(&other, SocketAccess::default()).unwrap();
        let open = SocketAccess { group, mode: 0o666 };
        assert!(!open.change(&other, made).unwrap_err().is_access);
        let there = std::fs::symlink_metadata(&other).unwrap();
        assert_eq!(there.permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_socket_that_cannot_have_its_group_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let access = SocketAccess {
            // This process is in no such group.
            group: Some(u32::MAX - 1),
            mode: 0o660,
        };
        if let Err(error) = bound(&path, access) {
            assert!(
                error.is_access && error.step == "set its group",
                "{error:?}"
            );
            assert!(!path.exists());
        } else {
            // The superuser may use any number.
            assert!(rustix::process::geteuid().is_root());
        }
    }
}
