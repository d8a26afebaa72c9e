//! Who outlives a daemon keeps none of its locks; and a file system without locks.

use std::fs;
use std::time::{Duration, Instant};

use crate::alone;
use crate::world::World;

fn is_alive(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find(|line| line.starts_with("State:"));
    state.is_some_and(|state| !state.contains('Z'))
}

#[test]
fn a_program_for_events_that_outlives_its_daemon_keeps_no_lock() {
    let _alone = alone();
    let world = World::new();
    let script = "#!/bin/sh\necho $$ > pid.new\nmv pid.new pid\nexec sleep 600\n";
    fs::write(world.path("on-event"), script).unwrap();
    world.succeed("chmod", &["+x", "on-event"]);
    let program = world.path("on-event");
    let options = [
        "--origin",
        "disk.img",
        "--snapshot",
        "name=s,cow=s.cow,size=1M",
    ];
    let more = ["--on-event", program.to_str().unwrap()];
    let daemon = world.serve("a", &[&options[..], &more].concat());
    world.we_do(&[
        "snapshot",
        "t",
        "--control",
        "a.control",
        "--cow",
        "t.cow",
        "--size",
        "1M",
    ]);
    let start = Instant::now();
    while !world.path("pid").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no program runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.kill();
    let pid = fs::read_to_string(world.path("pid")).unwrap();
    assert!(is_alive(pid.trim()));
    for file in ["disk.img", "s.cow", "t.cow"] {
        world.succeed("qemu-io", &["-f", "raw", "-c", "write -P 7 512K 512", file]);
    }
    world.succeed("kill", &[pid.trim()]);
}

#[test]
fn a_file_system_without_locks_is_used_with_a_warning() {
    let _alone = alone();
    let world = World::new();
    let path = world.path("disk.img");
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    // The first call of this kind on the disk is the one that takes the lock.
    let inject = "inject=fcntl:error=ENOLCK:when=1";
    let strace = [
        "-f",
        "-o",
        "trace",
        "-P",
        path.to_str().unwrap(),
        "-e",
        "trace=fcntl",
        "-e",
        inject,
    ];
    let check = [program.to_str().unwrap(), "check", "disk.img"];
    let output =
        crate::limited::output(&mut world.command("strace", &[&strace[..], &check].concat()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        fs::read_to_string(world.path("trace"))
            .unwrap()
            .contains("ENOLCK")
    );
    assert!(text.contains("its file system has no locks"), "{text}");
}
