//! Who may connect: the group and the mode of the sockets.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;

use super::*;

/// A user and a group that own nothing here.
const NOBODY: u32 = 65_534;

fn own_group() -> u32 {
    rustix::process::getegid().as_raw()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A group that sockets do not have by themselves, if this process may give them another.
fn other_group() -> u32 {
    match is_root() {
        true => 54_321,
        false => own_group(),
    }
}

/// Group and mode of a socket in the folder.
fn access(world: &World, name: &str) -> (u32, u32) {
    let there = fs::symlink_metadata(world.path(name)).unwrap();
    (there.gid(), there.permissions().mode() & 0o7777)
}

#[test]
fn all_views_have_the_group_and_mode_that_were_given_and_the_control_socket_its_own() {
    let (own, group) = (own_group(), other_group());
    let number = group.to_string();
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    assert_eq!(access(&world, "a.sock"), (own, 0o600));
    world.terminate();

    world.start(&["--socket-path", "a.sock", "--socket-group", &number]);
    world
        .client()
        .add_snapshot(&world.snapshot("later"))
        .unwrap();
    let views = |world: &World, expected: (u32, u32)| {
        for socket in ["a.sock", "later.sock"] {
            assert_eq!(access(world, socket), expected, "{socket}");
        }
    };
    views(&world, (group, 0o660));
    assert_eq!(access(&world, "c.sock"), (own, 0o600));

    // Both are recorded, also over a kill, after which the sockets are there.
    world.kill();
    world.start(&[]);
    views(&world, (group, 0o660));
    assert_eq!(access(&world, "c.sock"), (own, 0o600));
    world.terminate();

    // And can be given anew, each by itself.
    world.start(&["--socket-mode", "0666", "--control-group", &number]);
    views(&world, (group, 0o666));
    assert_eq!(access(&world, "c.sock"), (group, 0o660));
    let status = world.client().status().unwrap();
    let shown = [&status.access.sockets, &status.access.control].map(|shown| {
        let shown = shown.as_ref().unwrap();
        (shown.group.as_deref(), shown.mode.as_str())
    });
    assert_eq!(shown, [(Some(&*number), "666"), (Some(&*number), "660")]);
    let text = snapback::control::render::human(&status);
    assert!(text.contains(&format!("control socket: group {number}, mode 660\n")));
    world.terminate();
    let own_number = own.to_string();
    world.start(&[
        "--socket-group",
        &own_number,
        "--socket-mode",
        "600",
        "--control-mode",
        "600",
    ]);
    views(&world, (own, 0o600));
    assert_eq!(access(&world, "c.sock"), (group, 0o600));
    world.client().remove_snapshot("later").unwrap();
}

#[test]
fn a_daemon_that_waits_for_a_migrated_guest_knows_the_recorded_access() {
    let group = other_group();
    let mut world = World::new();
    let number = group.to_string();
    world.start(&["--socket-path", "a.sock", "--socket-group", &number]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let there = ["--socket-path", "there.sock", "--control", "there-c.sock"];
    let mut next = world.command(&[&there[..], &["--incoming", "c.sock"]].concat());
    let mut next = next.stdout(Stdio::null()).spawn().unwrap();
    world.until("the next daemon listens", |w| {
        UnixStream::connect(w.path("there.sock")).is_ok()
    });
    assert_eq!(access(&world, "there.sock"), (group, 0o660));
    next.kill().unwrap();
    next.wait().unwrap();
    world.terminate();
}

/// A start with access that cannot be leaves a socket of the last daemon as it is.
fn refused_untouched(world: &World, command: &mut Command, words: &[&str]) {
    let before = fs::symlink_metadata(world.path("a.sock")).unwrap();
    let Output { status, stderr, .. } = output(command);
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    let after = fs::symlink_metadata(world.path("a.sock")).unwrap();
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    assert!(!world.path("s.cow").exists());
}

#[test]
fn a_group_that_cannot_be_is_refused_before_anything_is_touched() {
    let world = World::new();
    drop(UnixListener::bind(world.path("a.sock")).unwrap());
    let snapshot = "name=s,cow=s.cow,size=1M";
    let start = |more: &[&str]| {
        let socket = ["--socket-path", "a.sock", "--snapshot", snapshot];
        world.command(&[&socket[..], more].concat())
    };
    let unknown = ["--socket-group", "no-such-group"];
    refused_untouched(
        &world,
        &mut start(&unknown),
        &["--socket-group no-such-group", "groupadd"],
    );
    let unknown = ["--control-group", "no-such-group"];
    refused_untouched(
        &world,
        &mut start(&unknown),
        &["--control-group no-such-group"],
    );

    // Not permitted: to a user who is not in that group. The program may be out of their reach.
    let program = world.path("program");
    fs::copy(assert_cmd::cargo::cargo_bin!("snapback"), &program).unwrap();
    let mut start = Command::new(&program);
    start
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(["serve", "--origin", "disk.img", "--socket-path", "a.sock"])
        .args(["--snapshot", snapshot, "--socket-group", "0"]);
    if is_root() {
        for path in [world.folder.path(), &world.path("disk.img")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        start.uid(NOBODY).gid(NOBODY);
    }
    if is_root() || own_group() != 0 {
        let words = ["--socket-group 0", "usermod -aG", "number 0"];
        refused_untouched(&world, &mut start, &words);
    }
}

/// The daemon's calls show that no socket can be connected to before its group and mode are set,
/// and that its mode is widened only after its group is right.
#[test]
fn a_socket_listens_only_once_it_has_its_group_and_mode() {
    let world = World::new();
    let trace = world.path("trace");
    let inner = world.command(&["--socket-path", "a.sock", "--socket-group"]);
    let mut strace = Command::new("strace");
    // -D: this child is the daemon, so that the signal that ends it reaches it.
    strace
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args([
            "-D",
            "-f",
            "-qq",
            "-e",
            "trace=bind,listen,fchownat,fchmod,fchmodat,/^l?chown$,/^chmod$",
        ])
        .arg("-o")
        .arg(&trace)
        .arg(inner.get_program())
        .args(inner.get_args())
        .args([&other_group().to_string(), "--control", "c.sock"])
        .stdout(Stdio::null());
    let Ok(child) = strace.spawn() else {
        eprintln!("skipped: strace is not installed");
        return;
    };
    let mut world = world;
    world.daemon = Some(child);
    world.until("the daemon answers", |w| w.client().status().is_ok());
    let said = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = said
        .lines()
        // The folder in which clients find the daemon, which is made last.
        .filter(|line| !line.contains("chmod(\"") || !line.contains("/snapback\""))
        .filter_map(|line| line.split_once(' ')?.1.trim().split('(').next())
        .collect();
    let of_a_view = ["fchmod", "bind", "fchownat", "fchmodat", "listen"];
    // The control socket has no group, and its mode is that of a new socket.
    let all = [&of_a_view[..], &["fchmod", "bind", "listen"]].concat();
    assert_eq!(calls, all, "{said}");
    UnixStream::connect(world.path("a.sock")).unwrap();
}
