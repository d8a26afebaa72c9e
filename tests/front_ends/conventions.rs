//! The conventions for back-end programs in the vhost-user specification, and sockets
//! that come from elsewhere: descriptors, and front ends that listen.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{MIB, Memory};
use super::ring::{begin, judge};
use super::{PROTOCOL, SYSTEM, eventually, negotiate, rings, set_up};

const SNAPSHOT: &str = "name=s,cow=s.cow,size=32M";

/// A guest that does something on this connection.
fn visit(stream: UnixStream, round: u64) -> Frontend {
    let frontend = Frontend::from_stream(stream, 2);
    let mut frontend = negotiate(frontend, Protocol::MQ | Protocol::CONFIG);
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    let memory = Memory::flat(MIB);
    frontend.set_mem_table(&memory.regions()).unwrap();
    let mut rings = rings(&memory, 0, &[64, 32]);
    for ring in &rings {
        set_up(&mut frontend, &memory, ring, 0);
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
    begin(&memory, &mut rings, round);
    judge(&memory, &mut rings, round);
    for ring in &rings {
        frontend.get_vring_base(ring.index).unwrap();
    }
    frontend
}

/// A program that gets these as descriptors 3, 4 and 5; its messages go to `log`.
fn with_descriptors(daemon: &Daemon, given: [Option<OwnedFd>; 3], arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.current_dir(daemon.path(""));
    command.env("XDG_RUNTIME_DIR", daemon.path(""));
    let script = "exec \"$0\" \"$@\" 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>log";
    command.args(["-c", script]);
    command.arg(assert_cmd::cargo::cargo_bin!("snapback"));
    command.args(arguments);
    let [third, fourth, fifth] = given.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
    command.stdin(third).stdout(fourth).stderr(fifth);
    command
}

fn listener(daemon: &Daemon, name: &str) -> Option<OwnedFd> {
    Some(UnixListener::bind(daemon.path(name)).unwrap().into())
}

fn control_answers(daemon: &Daemon) {
    eventually("the daemon answers", || {
        snapback::control::Client::new(&daemon.path("c.sock")).is_ok_and(|c| c.status().is_ok())
    });
}

#[test]
fn every_socket_can_be_a_listening_descriptor() {
    let mut daemon = Daemon::with_disk();
    let given = ["a.sock", "s.sock", "c.sock"].map(|name| listener(&daemon, name));
    let snapshot = format!("{SNAPSHOT},fd=4");
    let arguments = [
        "serve",
        "--origin",
        "disk.img",
        "--fd",
        "3",
        "--control-fd",
        "5",
    ];
    let arguments = [&arguments[..], &["--snapshot", &snapshot]].concat();
    let child = with_descriptors(&daemon, given, &arguments)
        .spawn()
        .unwrap();
    daemon.adopt(child);
    control_answers(&daemon);
    for round in 0..2 {
        let connect = |name: &str| UnixStream::connect(daemon.path(name)).unwrap();
        drop(visit(connect("a.sock"), round));
        drop(visit(connect("s.sock"), 7 + round));
    }
    let views = daemon.status().views;
    assert_eq!(views.len(), 2);
    assert!(views.iter().all(|v| v.socket.is_none()));
    // It does not daemonize: the process that was started is the one that serves.
    let control = UnixStream::connect(daemon.path("c.sock")).unwrap();
    drop(control);
    assert!(daemon.ended().is_none());
    daemon.terminate();
    for name in ["a.sock", "s.sock", "c.sock"] {
        assert!(daemon.path(name).exists(), "{name} belongs to its maker");
        std::fs::remove_file(daemon.path(name)).unwrap();
    }
    // Nothing of the descriptors is recorded; the snapshot is.
    daemon.serve(&["--socket-path", "a.sock"]);
    let status = daemon.status();
    assert_eq!((status.views.len(), status.snapshots.len()), (1, 1));
    daemon.end(0..2, 1);
}

#[test]
fn a_connected_descriptor_is_a_front_end_and_the_daemon_ends_with_it() {
    let mut daemon = Daemon::with_disk();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let arguments = ["serve", "--origin", "disk.img", "--fd", "3"];
    let given = [Some(theirs.into()), None, None];
    let child = with_descriptors(&daemon, given, &arguments)
        .spawn()
        .unwrap();
    daemon.adopt(child);
    let frontend = visit(ours, 4);
    assert!(daemon.ended().is_none());
    drop(frontend);
    eventually("it ends", || daemon.ended().is_some());
    assert_eq!(daemon.ended().unwrap().code(), Some(0), "{}", daemon.log());
    // Beside something else that is served it goes on.
    let ((ours, theirs), (mine, its)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let snapshot = format!("{SNAPSHOT},fd=4");
    let arguments = [
        "serve",
        "--origin",
        "disk.img",
        "--fd",
        "3",
        "--control",
        "c.sock",
    ];
    let arguments = [&arguments[..], &["--snapshot", &snapshot]].concat();
    let given = [Some(theirs.into()), Some(its.into()), None];
    let child = with_descriptors(&daemon, given, &arguments)
        .spawn()
        .unwrap();
    daemon.adopt(child);
    drop(visit(ours, 5));
    control_answers(&daemon);
    drop(visit(mine, 6));
    let attached = |d: &Daemon| d.status().views.iter().any(|v| v.attached);
    eventually("both have left", || !attached(&daemon));
    daemon.end(0..2, 5);
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused_with_the_option() {
    let daemon = Daemon::with_disk();
    for (option, word) in [("--fd", "--fd"), ("--control-fd", "--control-fd 3")] {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let arguments = ["serve", "--origin", "disk.img", option, "3"];
        let given = [Some(file), None, None];
        let status = with_descriptors(&daemon, given, &arguments)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(2));
        assert!(daemon.log().contains(word), "{}", daemon.log());
    }
    // A control interface has to be a listener.
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let arguments = ["serve", "--origin", "disk.img", "--control-fd", "3"];
    let given = [Some(theirs.into()), None, None];
    let status = with_descriptors(&daemon, given, &arguments)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
    let log = daemon.log();
    assert!(log.contains("not a listening Unix stream socket"), "{log}");
}

/// Client mode: QEMU's chardevs with `server=on`.
#[test]
fn a_front_end_that_listens_is_found_whenever_it_does() {
    let mut daemon = Daemon::with_disk();
    let snapshot = format!("{SNAPSHOT},connect=snap.sock");
    daemon.serve(&["--connect", "front.sock", "--snapshot", &snapshot]);
    let path = daemon.path("front.sock");
    let view = daemon.status().views[0].clone();
    assert_eq!((view.socket.as_deref(), view.attached), (None, false));
    assert_eq!(view.connects.as_deref(), path.to_str());
    let shown = snapback::control::render::human(&daemon.status());
    assert!(shown.contains("connects to"), "{shown}");
    let missing = "no front end listens at";
    eventually("it says so", || daemon.log().matches(missing).count() == 2);
    for round in 0..3 {
        let front = UnixListener::bind(&path).unwrap();
        let snap = UnixListener::bind(daemon.path("snap.sock")).unwrap();
        for again in 0..2 {
            let frontend = visit(front.accept().unwrap().0, 10 * round + again);
            assert!(daemon.status().views[0].attached);
            drop(frontend);
            drop(visit(snap.accept().unwrap().0, 3));
        }
        drop((front, snap));
        eventually("both have left", || {
            daemon.status().views.iter().all(|v| !v.attached)
        });
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(daemon.path("snap.sock")).unwrap();
    }
    // Whoever hangs up at once is not called without a pause.
    let front = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    for _ in 0..8 {
        drop(front.accept().unwrap());
    }
    assert!(begun.elapsed() > Duration::from_millis(600));
    drop(front);
    let lines = daemon.log().lines().count();
    assert!(lines < 100, "{lines} lines:\n{}", daemon.log());
    daemon.end(0..2, 21);
}

/// As with a socket of the daemon's own: a guest whose daemon was restarted is not gone.
#[test]
fn a_guest_that_has_not_been_found_again_keeps_its_disk_as_it_is() {
    use snapback::control::api::{RollbackOutcome, RollbackRequest};
    let mut daemon = Daemon::with_disk();
    let arguments = ["--connect", "front.sock", "--snapshot", SNAPSHOT];
    daemon.serve(&arguments);
    let front = UnixListener::bind(daemon.path("front.sock")).unwrap();
    let frontend = visit(front.accept().unwrap().0, 1);
    daemon.terminate();
    drop((frontend, front));
    daemon.serve(&arguments);
    let request = RollbackRequest {
        snapshot: "s".into(),
        ..Default::default()
    };
    let reply = daemon.client().rollback(&request).unwrap();
    assert_eq!(
        reply.outcome,
        RollbackOutcome::AtNextReset,
        "{:?}",
        reply.notes
    );
    daemon.end(0..2, 1);
}

#[test]
fn standard_descriptors_exist_even_if_they_were_closed() {
    let mut daemon = Daemon::with_disk();
    let mut command = Command::new("sh");
    command.current_dir(daemon.path(""));
    command.env("XDG_RUNTIME_DIR", daemon.path(""));
    command.args(["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"]);
    command.arg(assert_cmd::cargo::cargo_bin!("snapback"));
    command.args(["serve", "--origin", "disk.img", "--socket-path", "a.sock"]);
    command.args(["--control", "c.sock"]);
    daemon.run(&mut command);
    control_answers(&daemon);
    for number in 0..=2 {
        let link = format!("/proc/{}/fd/{number}", daemon.pid());
        assert!(std::fs::read_link(&link).is_ok(), "{link}");
    }
    drop(visit(UnixStream::connect(daemon.socket()).unwrap(), 1));
    daemon.end(0..2, 1);
}

/// By the schema of `docs/interop/vhost-user.json`.
#[test]
fn the_descriptor_file_and_the_capabilities_fit_the_schema() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/50-snapback.json");
    let text = std::fs::read_to_string(file).unwrap();
    let descriptor: Value = serde_json::from_str(&text).unwrap();
    let keys = descriptor.as_object().unwrap();
    for key in ["description", "type", "binary"] {
        assert!(keys[key].as_str().is_some_and(|text| !text.is_empty()));
    }
    assert_eq!((keys.len(), &keys["type"]), (3, &Value::from("block")));
    let binary = std::path::Path::new(keys["binary"].as_str().unwrap());
    assert!(binary.is_absolute() && binary.file_name().unwrap() == "snapback");

    let mut program = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    let ignored = ["--socket-path=/nonexistent/a.sock", "--fd=999"];
    let output = program.arg("--print-capabilities").args(ignored);
    let output = output.output().unwrap();
    assert!(output.status.success());
    let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = capabilities.as_object().unwrap();
    assert_eq!((keys.len(), &keys["type"]), (2, &Value::from("block")));
    let known = ["read-only", "blk-file"].map(Value::from);
    assert_eq!(keys["features"].as_array().unwrap(), &known);
}
