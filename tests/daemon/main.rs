//! The daemon as a process: what it remembers, what it refuses, how it ends.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod cancel;
mod discards;
mod events;
mod failing;
mod failures;
mod grow;
mod guest;
#[path = "../common/inject.rs"]
mod inject;
#[path = "../common/limited.rs"]
mod limited;
mod longer;
mod machine;
mod moments;
mod monitor;
#[allow(dead_code)]
#[path = "../view/raw.rs"]
mod raw;
mod read_only;
mod record_order;
mod resets;
mod unwritable_state;
mod vmm;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;
use snapback::control::api::{
    MergeRequest, RollbackOutcome, RollbackRequest, RollbackWhen, SnapshotSpec, State, StoreType,
};

use guest::Guest;
use limited::output;

const BYTES: usize = 16 << 20;

/// A folder with `disk.img`, and the daemon that serves it.
struct World {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self {
            folder,
            daemon: None,
        };
        let image: Vec<u8> = (0..BYTES).map(|i| (i / 512 * 13 + i) as u8).collect();
        fs::write(world.path("disk.img"), image).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .args(["serve", "--origin", "disk.img"])
            .args(arguments);
        command
    }

    /// Starts the daemon and waits until its control socket answers.
    fn start(&mut self, arguments: &[&str]) {
        assert!(self.daemon.is_none());
        let child = self
            .command(arguments)
            .args(["--control", "c.sock"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        self.until("the daemon answers", |w| w.client().status().is_ok());
    }

    fn refuse(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = output(&mut self.command(arguments));
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}: {text}");
        text
    }

    fn client(&self) -> Client {
        Client::new(&self.path("c.sock")).unwrap()
    }

    fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "not within 20 s: {what}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon as an operator does; returns how long it took.
    fn terminate(&mut self) -> Duration {
        let mut child = self.daemon.take().unwrap();
        let start = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        start.elapsed()
    }

    fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn state(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("disk.img.snapback")).unwrap()).unwrap()
    }

    fn origin(&self) -> Vec<u8> {
        fs::read(self.path("disk.img")).unwrap()
    }

    fn snapshot(&self, name: &str) -> SnapshotSpec {
        let at = |suffix: &str| {
            self.path(&format!("{name}.{suffix}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        SnapshotSpec {
            name: name.into(),
            cow: at("cow"),
            store_type: StoreType::P,
            chunk_size: Some(4096),
            size: Some(32 << 20),
            socket: Some(at("sock")),
            discard_zeroes_cow: None,
            discard_passdown_origin: None,
            read_only: None,
        }
    }

    fn rollback(&self, name: &str, when: RollbackWhen) -> RollbackOutcome {
        let request = RollbackRequest {
            snapshot: name.into(),
            when,
            keep: None,
            rate: None,
            ..Default::default()
        };
        self.client().rollback(&request).unwrap().outcome
    }

    /// The disk is not the first one any more; the snapshot `before` is.
    fn spoilt(&mut self, arguments: &[&str]) -> Vec<u8> {
        self.start(&[&["--socket-path", "a.sock"], arguments].concat());
        let before = self.origin()[..512].to_vec();
        self.client()
            .add_snapshot(&self.snapshot("before"))
            .unwrap();
        let mut guest = Guest::connect(&self.path("a.sock"));
        assert_eq!(guest.write(0, &[0xee; 4096]), 0);
        drop(guest);
        self.until("the guest has left", |w| !w.attached());
        before
    }

    /// A machine starts on the disk, and is switched off again.
    fn boot(&self) {
        drop(machine::Machine::power_on(
            &self.path("a.sock"),
            machine::FIRMWARE,
        ));
        self.until("the machine has left", |w| !w.attached());
    }

    fn attached(&self) -> bool {
        let views = self.client().status().unwrap().views;
        views.iter().any(|v| v.attached)
    }

    fn merged(&self) {
        self.until("the merge ends", |w| {
            w.client().status().unwrap().merge.is_none()
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Overwrites a part of every megabyte.
fn wreck(guest: &mut Guest, seed: u8) {
    for at in (0..BYTES).step_by(1 << 20) {
        let data = vec![seed; 3 * 4096 + 512 * usize::from(seed % 7 + 1)];
        assert_eq!(guest.write(at as u64 / 512 + u64::from(seed), &data), 0);
    }
    assert_eq!(guest.flush(), 0);
}

fn assert_same(left: &[u8], right: &[u8], what: &str) {
    let differing = left
        .chunks(512)
        .zip(right.chunks(512))
        .position(|(l, r)| l != r);
    assert_eq!(
        (differing, left.len()),
        (None, right.len()),
        "first differing sector: {what}"
    );
}

#[test]
fn killed_and_started_from_the_state_file_alone_every_snapshot_is_still_exact() {
    let mut world = World::new();
    let first = world.origin();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M,chunk-size=4K,socket=s1.sock",
    ]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    world.client().add_snapshot(&world.snapshot("s2")).unwrap();
    let second = guest.read_all(BYTES);
    wreck(&mut guest, 2);
    let third = guest.read_all(BYTES);
    world.kill();
    drop(guest);

    world.start(&[]);
    for (socket, expected) in [
        ("s1.sock", &first),
        ("s2.sock", &second),
        ("a.sock", &third),
    ] {
        assert_same(
            &Guest::connect(&world.path(socket)).read_all(BYTES),
            expected,
            socket,
        );
    }
    // And they go on to be kept.
    wreck(&mut Guest::connect(&world.path("a.sock")), 3);
    for (socket, expected) in [("s1.sock", &first), ("s2.sock", &second)] {
        assert_same(
            &Guest::connect(&world.path(socket)).read_all(BYTES),
            expected,
            socket,
        );
    }
}

#[test]
fn a_rollback_waits_for_the_guests_reset_and_the_next_guest_finds_the_old_disk() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    world
        .client()
        .add_snapshot(&world.snapshot("before"))
        .unwrap();
    wreck(&mut guest, 1);
    let wrecked = guest.read_all(BYTES);
    assert_eq!(
        world.rollback("before", RollbackWhen::Auto),
        RollbackOutcome::AtNextReset
    );
    assert_eq!(
        world
            .client()
            .status()
            .unwrap()
            .rollback_at_reset
            .as_deref(),
        Some("before")
    );
    assert_same(
        &guest.read_all(BYTES),
        &wrecked,
        "the guest has not been reset yet",
    );

    // It stays pending over a restart of the daemon.
    drop(guest);
    world.terminate();
    world.start(&[]);
    world.boot();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_same(&guest.read_all(BYTES), &before, "after the reset");
    world.merged();
    assert_same(&guest.read_all(BYTES), &before, "after the merge");
    assert_eq!(guest.flush(), 0);
    assert_same(&world.origin(), &before, "the origin itself");
    let status = world.client().status().unwrap();
    assert!(status.snapshots.is_empty() && status.rollback_at_reset.is_none());
    assert_eq!(status.last_merge.unwrap().error, None);
    assert_eq!(world.state()["snapshots"].as_array().unwrap().len(), 0);
    assert!(!world.path("before.sock").exists());
}

#[test]
fn a_deferred_rollback_keeps_what_the_guest_wrote_until_its_reset() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    world
        .client()
        .add_snapshot(&world.snapshot("before"))
        .unwrap();
    wreck(&mut guest, 1);
    let mut request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::AtReset,
        keep: Some(world.snapshot("before")),
        rate: None,
        ..Default::default()
    };
    assert!(world.client().rollback(&request).is_err(), "itself");
    request.keep = Some(world.snapshot("undo"));
    assert_eq!(
        world.client().rollback(&request).unwrap().outcome,
        RollbackOutcome::AtNextReset
    );
    assert!(!world.path("undo.cow").exists(), "taken before the reset");
    wreck(&mut guest, 2);
    let wrecked = guest.read_all(BYTES);
    drop(guest);
    world.boot();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_same(&guest.read_all(BYTES), &before, "after the reset");
    assert_same(
        &Guest::connect(&world.path("undo.sock")).read_all(BYTES),
        &wrecked,
        "what was kept",
    );
    world.merged();
}

#[test]
fn a_rollback_with_no_guest_happens_now_and_can_itself_be_rolled_back() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("before"))
        .unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    let wrecked = guest.read_all(BYTES);
    drop(guest);
    world.until("the guest is gone", |w| {
        w.client()
            .status()
            .unwrap()
            .views
            .iter()
            .all(|v| !v.attached)
    });
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Auto,
        keep: Some(world.snapshot("undo")),
        rate: None,
        ..Default::default()
    };
    assert_eq!(
        world.client().rollback(&request).unwrap().outcome,
        RollbackOutcome::Started
    );
    world.merged();
    assert_same(
        &Guest::connect(&world.path("a.sock")).read_all(BYTES),
        &before,
        "rolled back",
    );
    world.until("the guest is gone", |w| {
        w.client()
            .status()
            .unwrap()
            .views
            .iter()
            .all(|v| !v.attached)
    });
    world.rollback("undo", RollbackWhen::Now);
    world.merged();
    assert_same(&world.origin(), &wrecked, "the rollback rolled back");
}

#[test]
fn a_merge_goes_on_after_a_stop_and_after_a_kill_as_paused_as_it_was() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("before"))
        .unwrap();
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: Some(64 << 10),
        ..Default::default()
    };
    world.client().rollback(&request).unwrap();
    world.client().pause_merge().unwrap();
    let taken = world
        .client()
        .add_snapshot(&world.snapshot("late"))
        .unwrap_err()
        .to_string();
    assert!(taken.contains("merge of before is running"), "{taken}");
    let took = world.terminate();
    assert!(took < Duration::from_secs(1), "the stop took {took:?}");

    world.start(&[]);
    let status = world.client().status().unwrap();
    assert!(
        status
            .merge
            .as_ref()
            .is_some_and(|m| m.paused && m.chunks_left > 0),
        "{status:?}"
    );
    assert_eq!(status.snapshots[0].state, State::MergePaused);
    let left = status.merge.unwrap().chunks_left;
    assert_same(
        &Guest::connect(&world.path("a.sock")).read_all(BYTES),
        &before,
        "in the middle",
    );
    world.client().resume_merge().unwrap();
    world.until("it goes on", |w| {
        w.client()
            .status()
            .unwrap()
            .merge
            .is_none_or(|m| m.chunks_left < left)
    });
    world.kill();
    world.start(&[]);
    world.client().set_merge_rate(0).ok();
    world.merged();
    assert_same(&world.origin(), &before, "merged over three daemons");
}

#[test]
fn a_live_commit_is_not_noticed_and_its_socket_lasts() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("work"))
        .unwrap();
    let mut guest = Guest::connect(&world.path("work.sock"));
    wreck(&mut guest, 5);
    let work = guest.read_all(BYTES);
    let request = MergeRequest {
        snapshot: "work".into(),
        follow: true,
        rate: None,
        now: true,
    };
    world.client().merge(&request).unwrap();
    assert_same(&guest.read_all(BYTES), &work, "during the merge");
    world.merged();
    assert_eq!(guest.write(7, &[9; 512]), 0);
    assert_eq!(guest.read(7, 512).unwrap(), [9; 512]);
    drop(guest);
    world.terminate();
    assert_eq!(&world.origin()[7 * 512..8 * 512], [9; 512]);
    world.start(&[]);
    assert_eq!(
        Guest::connect(&world.path("work.sock"))
            .read(7, 512)
            .unwrap(),
        [9; 512]
    );
}

#[test]
fn a_clean_stop_takes_less_than_a_second_with_guests_attached() {
    let mut world = World::new();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M,socket=s1.sock",
    ]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    let _idle = Guest::connect(&world.path("s1.sock"));
    wreck(&mut guest, 1);
    let took = world.terminate();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(world.state()["running"], false);
    for socket in ["a.sock", "s1.sock", "c.sock"] {
        assert!(!world.path(socket).exists(), "{socket}");
    }
}

#[test]
fn an_origin_written_while_nobody_served_it_is_refused_until_accepted() {
    let mut world = World::new();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M",
    ]);
    world.terminate();
    world.start(&[]);
    world.terminate();
    let mut image = world.origin();
    image[0] ^= 1;
    fs::write(world.path("disk.img"), image).unwrap();
    let text = world.refuse(&[]);
    assert!(
        text.contains("was changed") && text.contains("--accept-changes"),
        "{text}"
    );
    world.start(&["--accept-changes"]);
    assert_eq!(
        world.client().status().unwrap().snapshots[0].state,
        State::Active
    );
}

#[test]
fn a_missing_cow_stops_the_start_and_can_be_forgotten() {
    let mut world = World::new();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M",
    ]);
    world.terminate();
    fs::rename(world.path("s1.cow"), world.path("away")).unwrap();
    let text = world.refuse(&[]);
    assert!(
        text.contains("s1.cow is not there") && text.contains("--forget s1"),
        "{text}"
    );
    assert!(!world.path("a.sock").exists() && !world.path("s1.cow").exists());
    fs::rename(world.path("away"), world.path("s1.cow")).unwrap();
    world.start(&["--forget", "s1"]);
    assert!(world.client().status().unwrap().snapshots.is_empty());
    world.terminate();
    // Nobody takes the forgotten store for a snapshot again.
    let text = world.refuse(&["--snapshot", "name=s1,cow=s1.cow"]);
    assert!(text.contains("invalidated"), "{text}");
}

#[test]
fn a_removed_snapshot_is_never_taken_for_one_again() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    world.client().remove_snapshot("s1").unwrap();
    assert!(!world.path("s1.sock").exists());
    let text = world
        .client()
        .add_snapshot(&world.snapshot("s1"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("invalidated"), "{text}");
    fs::remove_file(world.path("s1.cow")).unwrap();
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
}

/// Names, sizes and bytes of everything in the folder.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files
        .filter(|p| p.is_file())
        .map(|p| (p.clone(), fs::read(&p).unwrap()))
        .collect()
}

#[test]
fn bad_input_is_refused_by_name_and_nothing_is_touched() {
    let mut world = World::new();
    fs::write(world.path("full.cow"), vec![7; 1 << 20]).unwrap();
    fs::write(world.path("zero.cow"), vec![0; 1 << 20]).unwrap();
    fs::write(
        world.path("superblock.cow"),
        [vec![0; 1024], vec![7; 1 << 20]].concat(),
    )
    .unwrap();
    fs::create_dir(world.path("dir")).unwrap();
    let before = everything(world.folder.path());
    let socket = ["--socket-path", "a.sock"];
    for (arguments, word) in [
        (
            ["--snapshot", "name=s,cow=disk.img"].as_slice(),
            "is the origin itself",
        ),
        (&["--snapshot", "name=s,cow=dir"], "directory"),
        (&["--snapshot", "name=s,cow=none.cow"], "size="),
        (
            &["--snapshot", "name=s,cow=no/dir.cow,size=8M"],
            "not a directory",
        ),
        (&["--snapshot", "name=s,cow=new.cow,size=8K"], "too small"),
        (
            &["--snapshot", "name=s,cow=full.cow"],
            "not a dm-snapshot COW store",
        ),
        (&["--snapshot", "name=s,cow=superblock.cow"], "not empty"),
        (&["--snapshot", "name=s,cow=full.cow,type=N"], "not empty"),
        (
            &[
                "--snapshot",
                "name=a,cow=new.cow,size=8M",
                "--snapshot",
                "name=b,cow=new.cow,size=8M",
            ],
            "the same COW",
        ),
        (
            &[
                "--snapshot",
                "name=a,cow=zero.cow",
                "--snapshot",
                "name=b,cow=dir/../zero.cow",
            ],
            "used by snapshot a",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M", "--merge", "b"],
            "no such snapshot",
        ),
        (
            &[
                "--snapshot",
                "name=a,cow=new.cow,size=8M,type=N",
                "--merge",
                "a",
            ],
            "transient",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M,socket=a.sock"],
            "would serve both",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M,socket=full.cow"],
            "not a socket",
        ),
        (&["--forget", "a"], "no such snapshot"),
        (&["--fd", "77"], "--fd 77"),
    ] {
        let arguments: Vec<&str> = match arguments.first() {
            Some(&"--fd") => arguments.to_vec(),
            _ => socket.iter().chain(arguments).copied().collect(),
        };
        let text = world.refuse(&arguments);
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert_eq!(everything(world.folder.path()), before, "{arguments:?}");
        assert!(!world.path("a.sock").exists(), "{arguments:?}");
    }
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M",
    ]);
    let text = world.refuse(&["--socket-path", "b.sock"]);
    assert!(
        text.contains("disk.img") && text.contains("in use"),
        "{text}"
    );
    fs::write(world.path("other.img"), vec![0; BYTES]).unwrap();
    for (arguments, word) in [
        (["--socket-path", "a.sock"].as_slice(), "a.sock"),
        (
            &["--socket-path", "b.sock", "--snapshot", "name=x,cow=s1.cow"],
            "in use",
        ),
    ] {
        let output = output(
            Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
                .current_dir(world.folder.path())
                .args(["serve", "--origin", "other.img"])
                .args(arguments),
        );
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(2) && text.contains(word),
            "{text}"
        );
    }
}
