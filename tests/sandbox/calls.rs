//! The system calls that are left to each kind of thread: tried inside, by the hook of debug builds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Stdio;

use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
use serde_json::{Value, json};
use snapback::control::api::{MergeRequest, RollbackRequest, RollbackWhen};

use crate::guest::{Guest, Kind};
use crate::world::{World, succeeds, threads};

const PROBE: &str = "SNAPBACK_PROBE";

/// What a thread found, by its name. Those before the main thread was limited have ended.
fn probed(log: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<_, BTreeSet<_>>::new();
    let log = log.get(log.find("probe main: ").unwrap()..).unwrap();
    for line in log.lines().filter_map(|line| line.strip_prefix("probe ")) {
        let (name, found) = line.split_once(": ").unwrap();
        all.entry(name.to_owned())
            .or_default()
            .insert(found.trim_end_matches(';').to_owned());
    }
    all
}

/// QEMU's monitor, which agrees to everything.
fn start_monitor(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let greeting = json!({ "QMP": { "version": {}, "capabilities": [] } });
            let _ = writeln!(&stream, "{greeting}");
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = json!({ "status": "running", "running": true });
                let answer = json!({ "return": answer, "id": command["id"] });
                let _ = writeln!(&stream, "{answer}");
            }
        }
    });
}

fn write_once(guest: &mut Guest) {
    assert!(succeeds(guest, Kind::Write, 8));
}

/// Every kind of thread is at work in it at one time or another.
fn live(world: &mut World) {
    start_monitor(&world.path("qmp.sock"));
    let mut command = world.command(&["--metrics", "127.0.0.1:0", "--on-event", "/bin/true"]);
    command.env(PROBE, "try").stdout(Stdio::piped());
    world.spawn(&mut command);
    let told = world.daemon.as_mut().unwrap().stdout.take().unwrap();
    let address = BufReader::new(told)
        .lines()
        .map(Result::unwrap)
        .find_map(|line| {
            let rest = line.strip_prefix("metrics at http://")?.to_owned();
            Some(rest.strip_suffix("/metrics")?.to_owned())
        });
    let mut port = TcpStream::connect(address.unwrap()).unwrap();
    port.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    port.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("process_open_fds "), "{answer}");
    let snapshot = world.spec("s1", world.path("s1.cow"));
    world.client().add_snapshot(&snapshot).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"), 1, 1);
    write_once(&mut guest);
    let qmp = world.path("qmp.sock").to_str().unwrap().to_owned();
    let rollback = RollbackRequest {
        snapshot: "s1".into(),
        when: RollbackWhen::AtReset,
        qmp: Some(qmp),
        ..RollbackRequest::default()
    };
    world.client().rollback(&rollback).unwrap();
    world.until("the monitor is watched", |w| {
        w.log().contains("probe qmp: ")
    });
    for facts in threads(world.pid()) {
        // The filters of the process, at least.
        assert_eq!(facts["Seccomp"], "2", "{}", facts["Name"]);
        let filters: u32 = facts["Seccomp_filters"].parse().unwrap();
        assert!(filters >= 3, "{}", facts["Name"]);
    }
    world.client().cancel_rollback().unwrap();
    let merge = MergeRequest {
        snapshot: "s1".into(),
        now: true,
        ..MergeRequest::default()
    };
    world.client().merge(&merge).unwrap();
    world.until("the snapshot is merged", |w| {
        w.client().status().unwrap().snapshots.is_empty()
    });
    drop(guest);
    world.terminate();
}

#[test]
fn no_thread_makes_calls_that_its_kind_does_not_need() {
    let mut world = World::new();
    live(&mut world);
    let found = probed(&world.log());
    let changes = "unlisted=EPERM read=done write=done ring=done tcp=EPERM process=EPERM";
    // The main thread tries before files are limited; `/dev/null` is not of the volume.
    let later = "unlisted=EPERM read=done write=another-error ring=done tcp=EPERM process=EPERM";
    let reads = "unlisted=EPERM read=done write=EPERM ring=EPERM tcp=EPERM process=EPERM";
    let nothing = "unlisted=EPERM read=EPERM write=EPERM ring=EPERM tcp=EPERM process=EPERM";
    let mut expected = BTreeMap::new();
    for (kind, names) in [
        (changes, &["main"][..]),
        (
            later,
            &[
                "view origin",
                "view s1",
                "control",
                "tokio-rt-worker",
                "merge end",
                "stop",
            ],
        ),
        (reads, &["metrics", "metrics call"]),
        (
            nothing,
            &[
                "queue",
                "merger",
                "snapback-io",
                "watcher",
                "on-event",
                "qmp",
            ],
        ),
    ] {
        for name in names {
            expected.insert((*name).to_owned(), BTreeSet::from([kind.to_owned()]));
        }
    }
    let mut others = found.clone();
    others.retain(|name, _| !expected.contains_key(name));
    // These need more than this test does.
    others.remove("look at COW");
    others.remove("waiting");
    assert_eq!(others, BTreeMap::new());
    for (name, answers) in expected {
        assert_eq!(found.get(&name), Some(&answers), "{name}\n{}", world.log());
    }
}

/// How the daemon ends when a thread does as it is told.
fn end_of(order: &str) -> (Option<i32>, String) {
    let mut world = World::new();
    let mut command = world.command(&[]);
    command.env(PROBE, order).env("RUST_BACKTRACE", "1");
    if order.ends_with(" queue") {
        world.spawn(&mut command);
        let path = world.path("a.sock");
        // It is cut off.
        let _ = std::thread::spawn(move || Guest::connect(&path, 1, 1)).join();
    } else {
        world.daemon = Some(command.spawn().unwrap());
    }
    let mut status = None;
    world.until("the daemon ends", |w| {
        status = w.daemon.as_mut().unwrap().try_wait().unwrap();
        status.is_some()
    });
    (status.unwrap().signal(), world.log())
}

#[test]
fn a_thread_that_executes_a_program_ends_the_process() {
    for thread in ["main", "queue"] {
        let (signal, log) = end_of(&format!("execute {thread}"));
        assert_eq!(signal, Some(libc::SIGSYS), "{thread}: {log}");
    }
}

#[test]
fn a_panic_is_reported_and_aborts_under_every_list() {
    for thread in ["control", "queue", "merger", "snapback-io"] {
        let (signal, log) = end_of(&format!("panic {thread}"));
        assert_eq!(signal, Some(libc::SIGABRT), "{thread}: {log}");
        assert!(log.contains("asked for"), "{thread}: {log}");
        assert!(
            log.contains("a thread panicked; aborting"),
            "{thread}: {log}"
        );
    }
}

#[test]
fn a_system_that_forbids_filters_is_told_of() {
    let mut world = World::new();
    let rules = [(libc::SYS_seccomp, Vec::new())].into();
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, machine).unwrap();
    let filter: seccompiler::BpfProgram = filter.try_into().unwrap();
    let forbidding = |world: &World, arguments: &[&str]| {
        let mut command = world.command(arguments);
        let filter = filter.clone();
        let forbid = move || apply_filter(&filter).map_err(|_| std::io::ErrorKind::Other.into());
        // SAFETY: it makes system calls only.
        unsafe { command.pre_exec(forbid) };
        command
    };
    let told = world.refuse(&mut forbidding(&world, &["--sandbox", "require"]));
    assert!(
        told.contains("--sandbox require: the system calls cannot be limited"),
        "{told}"
    );
    assert!(!world.path("disk.img.snapback").exists());
    let mut command = forbidding(&world, &["--sandbox", "on"]);
    world.spawn(&mut command);
    let told = world.client().status().unwrap().sandbox.unwrap();
    assert!(told.contains("system calls not limited ("), "{told}");
}
