//! Notification, kept sockets and passed sockets, with a stand-in for systemd.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::guest::Guest;
use super::manager::{Manager, listening, passing};
use super::world::{World, run, text};

/// A front end asks for the features of the disk, and a client for the status.
fn ask(world: &World, socket: &str) -> UnixStream {
    let mut stream = UnixStream::connect(world.path(socket)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    if socket == "c.sock" {
        stream
            .write_all(b"GET /v1/status HTTP/1.1\r\nHost: d\r\n\r\n")
            .unwrap();
    } else {
        // GET_FEATURES, version 1, no payload.
        let words = [1u32, 1, 0].map(u32::to_ne_bytes);
        stream.write_all(&words.concat()).unwrap();
    }
    stream
}

/// The answer comes.
fn answered(mut stream: UnixStream) {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    let is_http = answer.starts_with(b"HTTP/1.1 200");
    assert!(is_http || answer[..4] == 1u32.to_ne_bytes(), "{answer:?}");
}

fn served(world: &World) -> Command {
    let mut command = world.serve();
    command
        .args(["--origin", text(&world.path("disk.img"))])
        .args(["--socket-path", text(&world.path("d.sock"))])
        .args(["--control", text(&world.path("c.sock"))]);
    command
}

fn verb(world: &World, arguments: &[&str]) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(arguments)
        .args(["--control", "c.sock"]);
    let (code, _, error) = run(&mut command);
    assert_eq!(code, Some(0), "{arguments:?}: {error}");
}

#[test]
fn front_ends_that_connect_during_a_restart_wait_for_the_next_daemon() {
    let mut world = World::new();
    let mut manager = Manager::new(world.folder.path());
    let mut command = served(&world);
    manager.notify(&mut command);
    let log = fs::File::create(world.path("log")).unwrap();
    world.daemon = Some(command.stderr(log).spawn().unwrap());
    manager.until("READY=1", |m| m.has("READY=1"));
    // From now on, not only from a later moment on.
    for socket in ["d.sock", "c.sock"] {
        answered(ask(&world, socket));
    }
    let disk = world.path("disk.img");
    assert!(manager.has(&format!(
        "STATUS=serving {} with 0 snapshots",
        disk.display()
    )));
    assert_eq!(manager.kept.len(), 2, "{:?}", manager.heard);

    // A snapshot's socket is kept until the snapshot is removed.
    verb(
        &world,
        &[
            "snapshot",
            "s",
            "--cow",
            "s.cow",
            "--size",
            "1M",
            "--socket-path",
            "s.sock",
        ],
    );
    manager.until("the third socket", |m| m.kept.len() == 3);
    manager.until("the state", |m| {
        m.has(&format!(
            "STATUS=serving {} with 1 snapshot",
            disk.display()
        ))
    });
    verb(
        &world,
        &[
            "snapshot",
            "t",
            "--cow",
            "t.cow",
            "--size",
            "1M",
            "--socket-path",
            "t.sock",
        ],
    );
    manager.until("the fourth socket", |m| m.kept.len() == 4);
    verb(&world, &["remove", "t"]);
    manager.until("it is forgotten", |m| m.kept.len() == 3);
    assert!(!world.path("t.sock").exists());

    world.stop();
    manager.listen();
    assert!(manager.has("STOPPING=1"), "{:?}", manager.heard);
    assert_eq!(manager.kept.len(), 3, "{:?}", manager.heard);
    // So does the link by which verbs find the control socket.
    assert!(world.path("snapback/disk.control.sock").is_symlink());
    let sockets = ["d.sock", "c.sock", "s.sock"];
    let inodes = |world: &World| {
        use std::os::unix::fs::MetadataExt;
        sockets.map(|name| fs::symlink_metadata(world.path(name)).unwrap().ino())
    };
    let before = inodes(&world);
    let waiting = sockets.map(|socket| ask(&world, socket));
    manager.clear();
    let mut command = served(&world);
    command.args(["--socket-mode", "666"]);
    let restart = manager.with_kept(&command);
    world.start(restart);
    for stream in waiting {
        answered(stream);
    }
    assert_eq!(inodes(&world), before);
    // Others may connect from now on.
    let modes = sockets.map(|name| {
        use std::os::unix::fs::PermissionsExt;
        let there = fs::symlink_metadata(world.path(name)).unwrap();
        there.permissions().mode() & 0o777
    });
    assert_eq!(modes, [0o666, 0o600, 0o666]);
    manager.until("READY=1", |m| m.has("READY=1"));
    // One that is not needed any more is forgotten, also if another daemon's is in its place.
    world.stop();
    manager.listen();
    fs::remove_file(world.path("d.sock")).unwrap();
    fs::remove_file(world.path("s.sock")).unwrap();
    drop(listening(&world.path("s.sock")));
    manager.clear();
    let kept: Vec<String> = manager.kept.iter().map(|(name, _)| name.clone()).collect();
    let restart = manager.with_kept(&served(&world));
    world.start(restart);
    manager.until("READY=1", |m| m.has("READY=1"));
    let now: Vec<String> = manager.kept.iter().map(|(name, _)| name.clone()).collect();
    assert_ne!(kept, now, "a new socket in the place of a lost one");
    for socket in sockets {
        answered(ask(&world, socket));
    }
    // Each of the three, also where the file system gave a new file the number of an old one.
    let names: BTreeSet<&String> = manager.kept.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 3, "{:?}", manager.heard);
    world.stop();
}

#[test]
fn a_client_of_the_control_socket_that_is_there_by_itself_waits_for_the_next_daemon() {
    let mut world = World::new();
    let mut manager = Manager::new(world.folder.path());
    let served = |world: &World| {
        let mut command = world.serve();
        let disk = world.path("disk.img");
        command.args(["--origin", text(&disk), "--control-name", "vm1"]);
        command
    };
    let mut command = served(&world);
    manager.notify(&mut command);
    world.daemon = Some(command.spawn().unwrap());
    manager.until("READY=1", |m| m.has("READY=1"));
    assert_eq!(manager.kept.len(), 1, "{:?}", manager.heard);
    world.stop();
    manager.listen();
    let mut waiting = UnixStream::connect(world.path("snapback/vm1.control.sock")).unwrap();
    let request = b"GET /v1/status HTTP/1.1\r\nHost: d\r\n\r\n";
    waiting.write_all(request).unwrap();
    manager.clear();
    let mut restart = manager.with_kept(&served(&world));
    world.daemon = Some(restart.spawn().unwrap());
    answered(waiting);
    manager.until("READY=1", |m| m.has("READY=1"));
    let entries = fs::read_dir(world.path("snapback")).unwrap();
    assert_eq!(entries.count(), 1);
    world.stop();
}

#[test]
fn without_a_manager_a_stop_removes_the_sockets() {
    let mut world = World::new();
    let command = served(&world);
    world.start(command);
    world.stop();
    for socket in ["d.sock", "c.sock"] {
        assert!(!world.path(socket).exists(), "{socket}");
    }
}

#[test]
fn sockets_of_socket_units_are_taken_by_name() {
    let mut world = World::new();
    let sockets = ["d.sock", "c.sock", "f.sock"];
    let listeners = sockets.map(|name| listening(&world.path(name)));
    // They wait already.
    let waiting = sockets.map(|socket| ask(&world, socket));
    let mut command = world.serve();
    let fork = format!("name=fork,cow={},size=1M", text(&world.path("f.cow")));
    command
        .args(["--origin", text(&world.path("disk.img"))])
        .args(["--snapshot", &fork]);
    let named: Vec<_> = ["origin", "control", "fork"]
        .into_iter()
        .zip(&listeners)
        .collect();
    world.start(passing(&command, &named));
    for stream in waiting {
        answered(stream);
    }
    world.stop();
    for socket in sockets {
        assert!(
            world.path(socket).exists(),
            "{socket} belongs to the manager"
        );
    }

    // The same path in the options means the same socket; the state file records it.
    world.start(passing(&served(&world), &named[..2]));
    let status = world.client().status().unwrap();
    let place = status.views[0].socket.clone().unwrap();
    assert_eq!(place, text(&world.path("d.sock")));
    world.stop();
    assert!(world.path("d.sock").exists());

    // Another path is a contradiction.
    let mut other = world.serve();
    other
        .args(["--origin", text(&world.path("disk.img"))])
        .args(["--socket-path", text(&world.path("other.sock"))]);
    let (code, _, error) = run(&mut passing(&other, &named[..2]));
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("give the same path, or leave one"),
        "{error}"
    );

    // What is passed to another process is not taken.
    let mut stranger = world.serve();
    let fresh = world.path("fresh.img");
    fs::write(&fresh, vec![0; 1 << 20]).unwrap();
    stranger.args(["--origin", text(&fresh)]);
    let shell = passing(&stranger, &named[..2]);
    let program = shell
        .get_args()
        .nth(2)
        .unwrap()
        .to_str()
        .unwrap()
        .replace("=$$", "=1");
    let arguments: Vec<_> = shell.get_args().skip(3).map(ToOwned::to_owned).collect();
    let mut wrong = Command::new("bash");
    wrong.args(["--norc", "-c", &program]).args(arguments);
    wrong
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "origin:control");
    let (code, _, error) = run(&mut wrong);
    assert_eq!(code, Some(2), "nothing is served: {error}");

    // A name of nothing is told, and is no reason to keep a guest without its disk.
    let mut command = served(&world);
    command.args(["--forget", "fork"]);
    world.write("log", "");
    let mut named = named;
    named[2].0 = "gone";
    world.start(passing(&command, &named));
    world.until_logged("nothing is served at the socket `gone`");
    world.stop();
}

#[test]
fn a_reload_and_the_progress_of_a_merge_are_told() {
    let mut world = World::new();
    world.write(
        "d.toml",
        "origin = \"disk.img\"\nsocket-path = \"d.sock\"\ncontrol = \"c.sock\"\n",
    );
    let mut manager = Manager::new(world.folder.path());
    let mut command = world.serve();
    command.args(["--config", text(&world.path("d.toml"))]);
    manager.notify(&mut command);
    world.start(command);
    manager.until("READY=1", |m| m.has("READY=1"));
    manager.clear();
    world.signal(Signal::HUP);
    manager.until("READY=1 again", |m| m.has("READY=1"));
    let first = &manager.heard[0];
    assert!(first.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{first}");

    verb(&world, &["snapshot", "s", "--cow", "s.cow", "--size", "8M"]);
    let mut guest = Guest::connect(&world.path("d.sock"));
    for chunk in 0..64 {
        assert_eq!(guest.write(chunk * 8, &[1; 4096]), 0);
    }
    drop(guest);
    verb(&world, &["merge", "s", "--rate", "4K"]);
    manager.until("progress", |m| {
        m.heard.iter().any(|text| text.contains(", merging s: "))
    });
    verb(&world, &["merge", "--pause"]);
    manager.until("a pause", |m| {
        m.heard
            .iter()
            .any(|text| text.contains("%, which is paused"))
    });
    world.stop();
}

#[test]
fn the_watchdog_gets_its_proof() {
    let mut world = World::new();
    let mut manager = Manager::new(world.folder.path());
    let mut command = served(&world);
    manager.notify(&mut command);
    command.env("WATCHDOG_USEC", "200000");
    world.start(command);
    let count = |m: &Manager| {
        m.heard
            .iter()
            .filter(|text| text.contains("WATCHDOG=1"))
            .count()
    };
    manager.until("five proofs", |m| count(m) >= 5);
    // A process that does nothing gives none.
    world.signal(Signal::STOP);
    // The signal is on its way until each thread has stopped.
    let process = world.daemon.as_ref().unwrap().id();
    manager.until("all threads have stopped", |_| {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
    });
    manager.listen();
    manager.clear();
    std::thread::sleep(Duration::from_millis(600));
    manager.listen();
    assert_eq!(count(&manager), 0);
    world.signal(Signal::CONT);
    manager.until("one more", |m| count(m) >= 1);
    world.stop();
}

/// What a service starts itself must not speak for it.
#[test]
fn programs_and_disks_that_snapback_starts_do_not_know_the_manager() {
    let mut world = World::new();
    let mut manager = Manager::new(world.folder.path());
    let list = world.path("variables");
    let mut command = served(&world);
    command
        .args(["--on-event", "/bin/sh", "--on-event-arg", "-c"])
        .arg(format!("--on-event-arg=env >>{}", text(&list)))
        .env("WATCHDOG_USEC", "60000000");
    manager.notify(&mut command);
    world.start(command);
    verb(&world, &["snapshot", "s", "--cow", "s.cow", "--size", "1M"]);
    world.stop();
    let variables = fs::read_to_string(list).unwrap();
    assert!(variables.contains("\nSNAPBACK_CONTROL="), "{variables}");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!variables.contains(name), "{variables}");
    }

    manager.listen();
    manager.clear();
    fs::write(world.path("golden.img"), vec![0; 1 << 20]).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(["run", "--image", "golden.img", "--", "true"]);
    manager.notify(&mut command);
    let (code, _, error) = run(&mut command);
    assert_eq!(code, Some(0), "{error}");
    manager.listen();
    assert!(manager.heard.is_empty(), "{:?}", manager.heard);
}
