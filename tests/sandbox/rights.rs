//! Users, groups, capabilities, and what no process that serves has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use crate::guest::{Guest, Kind};
use crate::world::{Facts, USER, World, succeeds, threads};

/// Bits of the sets in `/proc/PID/status`.
const CHOWN: u64 = 1;
const DAC_OVERRIDE: u64 = 1 << 1;
const IPC_LOCK: u64 = 1 << 14;

fn set(facts: &Facts, name: &str) -> u64 {
    u64::from_str_radix(&facts[name], 16).unwrap()
}

/// Every set of every thread.
#[track_caller]
fn assert_capabilities(pid: u32, left: u64) {
    let all = threads(pid);
    assert!(all.len() > 3, "{all:?}");
    for facts in all {
        for name in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(set(&facts, name), left, "{name} of {}", facts["Name"]);
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(set(&facts, name), 0, "{name} of {}", facts["Name"]);
        }
        assert_eq!(facts["NoNewPrivs"], "1", "{}", facts["Name"]);
    }
}

/// Rings may be locked memory. Where root cannot lift the limit, as in some containers, the daemon keeps
/// the capability, if root has it.
fn rings(pid: u32) -> u64 {
    let locked = limit_of(&pid.to_string(), "Max locked memory");
    match locked.contains("unlimited") {
        true => 0,
        false => set(&threads(std::process::id())[0], "CapEff") & IPC_LOCK,
    }
}

fn core_limit(pid: &str) -> String {
    limit_of(pid, "Max core")
}

fn limit_of(pid: &str, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with(name));
    line.unwrap().to_owned()
}

fn write_and_read(world: &World, socket: &str) {
    let mut guest = Guest::connect(&world.path(socket), 1, 1);
    for kind in [Kind::Write, Kind::Read, Kind::Flush] {
        let done = succeeds(&mut guest, kind, 8);
        assert!(done, "{kind:?}: {}", world.log());
    }
}

#[test]
fn a_daemon_of_root_keeps_one_capability_and_dumps_nothing() {
    let mut world = World::new();
    world.start(&[]);
    let _guest = Guest::connect(&world.path("a.sock"), 1, 1);
    let snapshot = world.spec("s1", world.path("s1.cow"));
    world.client().add_snapshot(&snapshot).unwrap();
    let pid = world.pid();
    assert_capabilities(pid, DAC_OVERRIDE | rings(pid));
    let limit = core_limit(&pid.to_string());
    let words: Vec<&str> = limit.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limit}");
    for facts in threads(pid) {
        assert_eq!(facts["Umask"], "0077");
    }
    let log = world.log();
    assert!(
        log.contains("sandbox: user root (0), capabilities CAP_DAC_OVERRIDE"),
        "{log}"
    );
    world.terminate();
    assert!(!world.path("a.sock").exists() && !world.path("s1.sock").exists());
}

#[test]
fn a_group_of_sockets_takes_one_more_capability() {
    let mut world = World::new();
    let group = USER.1.to_string();
    world.start(&["--socket-group", &group]);
    let pid = world.pid();
    assert_capabilities(pid, DAC_OVERRIDE | CHOWN | rings(pid));
    // It is for the sockets of later snapshots.
    let snapshot = world.spec("s1", world.path("s1.cow"));
    world.client().add_snapshot(&snapshot).unwrap();
    for socket in ["a.sock", "s1.sock"] {
        let found = fs::metadata(world.path(socket)).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o777), (USER.1, 0o660));
    }
}

#[test]
fn a_user_serves_what_only_root_may_open() {
    let mut world = World::of_user();
    let user = format!("{}:{}", USER.0, USER.1);
    let of_sockets = (USER.1 + 1).to_string();
    world.start(&[
        "--user",
        &user,
        "--socket-group",
        &of_sockets,
        "--snapshot",
        "name=s1,cow=s1.cow,size=1M,socket=s1.sock",
    ]);
    let pid = world.pid();
    assert_capabilities(pid, 0);
    for facts in threads(pid) {
        let all_four = |id: u32| vec![id.to_string(); 4].join("\t");
        assert_eq!(facts["Uid"], all_four(USER.0));
        assert_eq!(facts["Gid"], all_four(USER.1));
        assert_eq!(facts["Groups"], of_sockets);
    }
    // Of a process that can be dumped, this belongs to its user.
    assert_eq!(fs::metadata(format!("/proc/{pid}/fd")).unwrap().uid(), 0);
    let snapshot = world.spec("s2", world.path("s2.cow"));
    world.client().add_snapshot(&snapshot).unwrap();
    for made in ["disk.img.snapback", "s1.cow", "s2.cow", "c.sock"] {
        let found = fs::metadata(world.path(made)).unwrap();
        assert_eq!((found.uid(), found.gid()), USER, "{made}");
    }
    for socket in ["a.sock", "s1.sock", "s2.sock"] {
        let found = fs::metadata(world.path(socket)).unwrap();
        assert_eq!((found.uid(), found.gid()), (USER.0, USER.1 + 1));
        write_and_read(&world, socket);
    }
    world.terminate();
    assert!(!world.path("a.sock").exists() && !world.path("c.sock").exists());
    // What it has made, it finds again.
    world.start(&["--user", &user]);
    assert_eq!(world.client().status().unwrap().snapshots.len(), 2);
    world.terminate();
}

#[test]
fn without_a_sandbox_nothing_is_given_up() {
    let mut world = World::new();
    world.start(&["--sandbox", "off"]);
    let own = &threads(std::process::id())[0];
    for facts in threads(world.pid()) {
        for name in [
            "CapEff",
            "CapPrm",
            "CapBnd",
            "CapInh",
            "CapAmb",
            "NoNewPrivs",
            "Seccomp",
            "Umask",
            "Uid",
            "Groups",
        ] {
            assert_eq!(facts[name], own[name], "{name} of {}", facts["Name"]);
        }
    }
    assert_eq!(core_limit(&world.pid().to_string()), core_limit("self"));
}

#[test]
fn users_that_cannot_be_are_refused_before_anything_is_changed() {
    let user = format!("{}:{}", USER.0, USER.1);
    let world = World::new();
    let told = world.refuse(&mut world.command(&["--user", "no-such-user"]));
    assert!(told.contains("useradd --system no-such-user"), "{told}");
    let told = world.refuse(&mut world.command(&["--user", &user, "--sandbox", "off"]));
    assert!(told.contains("leave --sandbox off out"), "{told}");
    let mut check = world.command(&["--user", &user, "--sandbox", "off", "--check"]);
    assert_eq!(check.status().unwrap().code(), Some(1));
    // Its folder belongs to root.
    let told = world.refuse(&mut world.command(&["--user", &user]));
    assert!(told.contains("the user cannot write in"), "{told}");
    assert!(told.contains("disk.img.snapback"), "{told}");
    let world = World::of_user();
    let deferring = "name=s1,cow=s1.cow,size=1M,defer-entries";
    let told = world.refuse(&mut world.command(&["--user", &user, "--snapshot", deferring]));
    assert!(told.contains("snapshot s1: its deferred entries"), "{told}");
    std::os::unix::fs::chown(world.path("disk.img"), Some(USER.0), None).unwrap();
    let mut command = world.command(&["--user", "0:0"]);
    let told = world.refuse(command.uid(USER.0).gid(USER.1));
    assert!(told.contains("only root can become another user"), "{told}");
    let files = fs::read_dir(world.folder.path()).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["disk.img", "log"]);
}

#[test]
fn the_same_user_need_not_be_root() {
    let mut world = World::of_user();
    std::os::unix::fs::chown(world.path("disk.img"), Some(USER.0), None).unwrap();
    let user = format!("{}:{}", USER.0, USER.1);
    let mut command = world.command(&["--user", &user]);
    world.spawn(command.uid(USER.0).gid(USER.1));
    let all = threads(world.pid());
    assert!(all.iter().all(|facts| set(facts, "CapPrm") == 0), "{all:?}");
}
