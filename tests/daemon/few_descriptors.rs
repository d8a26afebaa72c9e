//! A daemon that may have few descriptors.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::raw::{PROTOCOL, Raw, VERSION_1};
use super::*;

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
