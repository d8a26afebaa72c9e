//! A daemon that may have few descriptors.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::raw::{PROTOCOL, Raw, VERSION_1};
use super::*;
use std::collections::BTreeSet;

const QUEUES: usize = 64;

/// Sets up queues until one is refused; returns how many run.
fn take_all(raw: &mut Raw) -> usize {
    for index in 0..QUEUES {
        let ring = raw.ring(index);
        let addresses = raw.addresses(&ring);
        let f = &mut raw.frontend;
        let done = f
            .set_vring_num(index, super::raw::SIZE)
            .and_then(|()| f.set_vring_base(index, 0))
            .and_then(|()| f.set_vring_addr(index, &addresses))
            .and_then(|()| f.set_vring_call(index, &ring.call))
            .and_then(|()| f.set_vring_kick(index, &ring.kick))
            .and_then(|()| f.set_vring_enable(index, true));
        if done.is_err() {
            return index;
        }
    }
    QUEUES
}

#[test]
fn front_ends_that_take_all_descriptors_leave_those_that_the_daemon_needs() {
    let mut world = World::new();
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    let child = Command::new("sh")
        .arg("-c")
        .arg("ulimit -Sn 100 && ulimit -Hn 400 && exec \"$0\" \"$@\"")
        .arg(program)
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
        .args(["--socket-path", "a.sock"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let limits = format!("/proc/{}/limits", child.id());
    world.daemon = Some(child);
    world.until("the daemon answers", |w| w.client().status().is_ok());
    let limits = fs::read_to_string(limits).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let numbers: Vec<&str> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["400", "400"], "the soft limit is raised");

    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let features = VERSION_1 | PROTOCOL;
    let mut first = Raw::connect(&world.path("a.sock"), features);
    let mut second = Raw::connect(&world.path("s.sock"), features);
    let running = take_all(&mut first) + take_all(&mut second);
    println!("{running} queues run");
    assert!(running > 0 && running < 2 * QUEUES);
    // Control, COWs and the state file have what they need.
    for n in 0..8 {
        let spec = world.snapshot(&format!("more{n}"));
        world.client().add_snapshot(&spec).unwrap();
    }
    assert_eq!(world.client().status().unwrap().snapshots.len(), 9);
    world.client().remove_snapshot("more0").unwrap();
}

fn descriptors(world: &World) -> BTreeSet<usize> {
    let folder = format!("/proc/{}/fd", world.daemon.as_ref().unwrap().id());
    let all = fs::read_dir(folder).unwrap();
    all.map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

/// Lets the daemon open so many more descriptors.
fn allow(world: &World, more: usize) {
    let taken = descriptors(world);
    let first_refused = (0..).filter(|n| !taken.contains(n)).nth(more).unwrap();
    let pid = rustix::process::Pid::from_child(world.daemon.as_ref().unwrap());
    let limit = rustix::process::Rlimit {
        current: Some(first_refused as u64),
        maximum: Some(1024),
    };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).unwrap();
}

/// Requests that need descriptors of their own, each with more of them than the last time, until
/// all have what they need.
#[test]
fn at_the_edge_of_its_descriptors_every_request_is_refused_in_words_or_carried_out() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    let guest = Guest::connect(&world.path("a.sock"));
    client.add_snapshot(&world.snapshot("first")).unwrap();
    client.remove_snapshot("first").unwrap();
    fs::remove_file(world.path("first.cow")).unwrap();
    allow(&world, 500);
    let before = descriptors(&world).len();
    let settled = |world: &World| {
        world.until("all descriptors are closed", |w| {
            descriptors(w).len() <= before
        });
    };
    settled(&world);
    let mut refused = 0;
    let mut clean =
        |world: &World, what: &str, result: Result<(), snapback::control::ClientError>| {
            let failed = result.is_err();
            if let Err(error) = result {
                let text = error.to_string();
                println!("{what}: {text}");
                assert!(text.contains("Too many open files"), "{what}: {text}");
                refused += 1;
            }
            allow(world, 500);
            world.client().status().unwrap();
            failed
        };
    for more in 1..=14 {
        let spec = world.snapshot("s");
        allow(&world, more);
        let failed = clean(&world, "add", client.add_snapshot(&spec));
        if failed {
            assert!(!world.path("s.cow").exists() && !world.path("s.sock").exists());
            settled(&world);
            client.add_snapshot(&spec).unwrap();
        }
        allow(&world, more);
        clean(&world, "grow", client.grow_snapshot("s", (32 << 20) + 4096));
        allow(&world, more);
        let merge = MergeRequest {
            snapshot: "s".into(),
            now: true,
            ..Default::default()
        };
        if clean(&world, "merge", client.merge(&merge)) {
            allow(&world, more);
            if clean(&world, "remove", client.remove_snapshot("s")) {
                client.remove_snapshot("s").unwrap();
            }
        }
        world.merged();
        world.until("the snapshot is gone", |w| {
            w.client().status().unwrap().snapshots.is_empty()
        });
        let _ = fs::remove_file(world.path("s.cow"));
        settled(&world);
    }
    assert!(refused > 0);

    // Nobody is turned away who comes when there is none: he waits.
    allow(&world, 0);
    let waiting = std::thread::spawn(move || client.status().map(drop));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    allow(&world, 500);
    waiting.join().unwrap().unwrap();
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    world.terminate();
}
