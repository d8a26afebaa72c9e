use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::process::Uid;

use super::*;
use crate::control::ControlSocket;
use crate::control::socket;
use crate::socket_access::SocketAccess;

struct World {
    folder: tempfile::TempDir,
    registry: Registry,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let places = Places::of(user, Some(folder.path().as_os_str()), Path::new("/run"));
        Self {
            folder,
            registry: Registry { places },
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("snapback").join(name)
    }

    fn bind(&self, wish: &Wish) -> Result<ControlSocket, RegistryError> {
        self.registry.bind(wish, SocketAccess::default())
    }

    fn names(&self) -> Vec<String> {
        let all = self.registry.daemons().into_iter();
        all.map(|(entry, _)| entry.name).collect()
    }
}

fn like(name: &str) -> Wish {
    Wish::Like(name.to_owned())
}

#[test]
fn daemons_with_disks_of_one_name_get_numbers_and_dead_ones_are_replaced() {
    let world = World::new();
    assert!(matches!(
        world.registry.only_one(),
        Err(ChoiceError::None(_))
    ));
    assert!(world.names().is_empty());
    let first = world.bind(&like("disk")).unwrap();
    assert_eq!(first.path(), world.path("disk.control.sock"));
    assert_eq!(world.registry.only_one().unwrap(), first.path());
    let second = world.bind(&like("disk")).unwrap();
    assert_eq!(second.path(), world.path("disk-2.control.sock"));
    assert_eq!(world.names(), ["disk", "disk-2"]);
    let several = world.registry.only_one().unwrap_err().to_string();
    assert!(several.contains("(disk, disk-2)"), "{several}");
    assert!(several.contains("--control NAME"), "{several}");
    drop(first);
    assert_eq!(world.registry.only_one().unwrap(), second.path());

    // As after a kill.
    drop(UnixListener::bind(world.path("disk.control.sock")).unwrap());
    symlink("/nonexistent/c.sock", world.path("gone.control.sock")).unwrap();
    assert_eq!(world.registry.only_one().unwrap(), second.path());
    assert_eq!(world.registry.named(OsStr::new("disk")), None);
    let third = world.bind(&like("disk")).unwrap();
    assert_eq!(third.path(), world.path("disk.control.sock"));
    assert_eq!(world.names(), ["disk", "disk-2"]);
    assert!(world.path("gone.control.sock").symlink_metadata().is_err());
    assert!(world.bind(&like("gone")).is_ok());
}

#[test]
fn a_name_that_was_asked_for_is_had_or_refused() {
    let world = World::new();
    let exactly = Wish::Exactly("vm1".to_owned());
    world.registry.look(&exactly).unwrap();
    let first = world.bind(&exactly).unwrap();
    for refused in [
        world.bind(&exactly).map(drop),
        world.registry.look(&exactly),
        world
            .registry
            .note(&exactly, &world.folder.path().join("c.sock"))
            .map(drop),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("called vm1"), "{refused}");
    }
    world.registry.look(&like("vm1")).unwrap();
    drop(first);
    world.bind(&exactly).unwrap();
}

#[test]
fn a_socket_of_its_own_is_found_by_a_link_that_goes_with_the_daemon() {
    let world = World::new();
    let own = world.folder.path().join("c.sock");
    let bound = ControlSocket::bind(&own).unwrap();
    let noted = world.registry.note(&like("disk"), &own).unwrap();
    assert_eq!(fs::read_link(world.path("disk.control.sock")).unwrap(), own);
    assert_eq!(world.registry.only_one().unwrap(), own);
    assert_eq!(world.registry.named(OsStr::new("disk")), Some(own.clone()));
    // A daemon that was killed and is started again finds its own link.
    let again = world.registry.note(&like("disk"), &own).unwrap();
    assert_eq!(world.names(), ["disk"]);
    // Twice the same daemon is one daemon.
    symlink(&own, world.path("other.control.sock")).unwrap();
    assert_eq!(world.names(), ["disk"]);
    assert_eq!(world.registry.only_one().unwrap(), own);
    // It is not removed once it is another's.
    fs::remove_file(world.path("disk.control.sock")).unwrap();
    symlink("/elsewhere", world.path("disk.control.sock")).unwrap();
    drop(noted);
    assert!(world.path("disk.control.sock").symlink_metadata().is_ok());
    fs::remove_file(world.path("disk.control.sock")).unwrap();
    symlink(&own, world.path("disk.control.sock")).unwrap();
    drop(again);
    assert!(world.path("disk.control.sock").symlink_metadata().is_err());
    drop(bound);
    assert!(matches!(
        world.registry.only_one(),
        Err(ChoiceError::None(_))
    ));
}

#[test]
fn a_file_that_is_no_entry_is_left_alone_and_nothing_is_read_where_others_can_write() {
    let world = World::new();
    world.registry.places.own.make().unwrap();
    fs::create_dir(world.path("vm1")).unwrap();
    fs::write(world.path("disk.control.sock"), "precious").unwrap();
    fs::write(world.path("a.record"), "").unwrap();
    // Of a front end, which would be disturbed.
    let view = UnixListener::bind(world.path("vm1.disk.sock")).unwrap();
    view.set_nonblocking(true).unwrap();
    symlink("disk.control.sock", world.path("relative.control.sock")).unwrap();
    let bound = world.bind(&like("disk")).unwrap();
    assert_eq!(bound.path(), world.path("disk-2.control.sock"));
    let odd = UnixListener::bind(world.path("a\u{1b}b.control.sock")).unwrap();
    // No daemon has such a socket, so it is not one of a daemon that was killed.
    let other = world.path("datagrams.control.sock");
    let _other = UnixDatagram::bind(&other).unwrap();
    assert_eq!(world.names(), ["disk-2"]);
    assert!(other.symlink_metadata().is_ok());
    assert!(view.accept().is_err());
    assert_eq!(
        fs::read(world.path("disk.control.sock")).unwrap(),
        b"precious"
    );
    assert!(
        world
            .path("relative.control.sock")
            .symlink_metadata()
            .is_ok()
    );
    drop(odd);
    let folder = world.path("");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(world.names().is_empty());
    let refused = world.bind(&like("disk")).unwrap_err().to_string();
    assert!(refused.contains("others can write"), "{refused}");
}

/// Root lists the daemons of users, but does not talk to one that it did not name, and not to what
/// a user's link leads to elsewhere.
#[test]
fn daemons_of_users_are_listed_for_root_and_not_chosen() {
    let world = World::new();
    let bound = world.bind(&like("disk")).unwrap();
    let mut user = rustix::process::geteuid().as_raw();
    let elsewhere = world.folder.path().join("elsewhere.sock");
    let _elsewhere = UnixListener::bind(&elsewhere).unwrap();
    symlink(&elsewhere, world.path("trap.control.sock")).unwrap();
    let is_root = user == 0;
    if is_root {
        user = 4711;
        for path in [world.path(""), bound.path().to_owned()] {
            chown(path, Some(user), None).unwrap();
        }
    } else {
        fs::remove_file(world.path("trap.control.sock")).unwrap();
    }
    let mut registry = world.registry.clone();
    let nothing = Some(OsStr::new("/nonexistent"));
    registry.places = Places::of(user, nothing, Path::new("/run"));
    let other = places::Place::of_another(world.folder.path(), user);
    registry.places.others.push(other);
    assert_eq!(registry.daemons().len(), 1);
    assert_eq!(
        registry.named(OsStr::new("disk")),
        Some(bound.path().to_owned())
    );
    assert!(matches!(registry.only_one(), Err(ChoiceError::None(_))));
    symlink("/dev/null", world.path("null.control.sock")).unwrap();
    assert_eq!(registry.daemons().len(), 1);
}

/// The mode of a control socket lets nobody in but its user and, if that is wished, a group.
#[test]
fn a_daemon_that_does_not_let_this_user_in_is_listed_and_not_chosen() {
    let world = World::new();
    let bound = world.bind(&like("disk")).unwrap();
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set(world.folder.path(), 0o755);
    set(bound.path(), 0);
    let look = || {
        if rustix::process::geteuid().is_root() {
            // Of this thread only: root is let in whatever the mode is.
            rustix::thread::set_thread_uid(Uid::from_raw(65_534)).unwrap();
        }
        let found: Vec<Found> = world.registry.daemons().iter().map(|(_, f)| *f).collect();
        (found, world.registry.only_one())
    };
    let (found, chosen) = std::thread::scope(|scope| scope.spawn(look).join().unwrap());
    assert_eq!(found, [Found::Denied]);
    let refused = chosen.unwrap_err().to_string();
    assert!(refused.contains("(disk)"), "{refused}");
}

/// As one that is busy, or was stopped by SIGSTOP.
#[test]
fn a_daemon_that_accepts_nobody_now_is_running() {
    let world = World::new();
    world.registry.places.own.make().unwrap();
    let path = world.path("disk.control.sock");
    let busy = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    assert_eq!(socket::connect(&path), Some(Err(Errno::AGAIN)));
    assert_eq!(world.names(), ["disk"]);
    assert_eq!(world.registry.only_one().unwrap(), path);
}

#[test]
fn many_names_do_not_fill_the_screen() {
    let names: Vec<String> = (0..300).map(|n| format!("vm{n}")).collect();
    let text = ChoiceError::Several(names).to_string();
    assert!(
        text.contains("vm9 and 290 more)") && text.len() < 300,
        "{text}"
    );
}
