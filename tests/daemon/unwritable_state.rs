//! While the state file cannot be written, every verb is refused and changes nothing,
//! also after a kill; afterwards every verb works.

use snapback::control::ClientError;
use snapback::control::api::VolumeStatus;

use super::failing::Failing;
use super::inject::{Call, Rule};
use super::*;

/// The folder in which the state file is replaced: a folder in the place of the new
/// file, which no replacement can remove.
const OBSTACLE: &str = "disk.img.snapback.new";

fn obstruct(world: &World) {
    fs::create_dir(world.path(OBSTACLE)).unwrap();
}

fn clear(world: &World) {
    fs::remove_dir(world.path(OBSTACLE)).unwrap();
}

type Verb = (&'static str, fn(&World) -> Result<(), ClientError>);

fn rolled_back(
    world: &World,
    snapshot: &str,
    when: RollbackWhen,
    keep: Option<&str>,
) -> Result<(), ClientError> {
    let request = RollbackRequest {
        snapshot: snapshot.into(),
        when,
        keep: keep.map(|name| world.snapshot(name)),
        ..Default::default()
    };
    world.client().rollback(&request).map(drop)
}

fn merged(world: &World, snapshot: &str, follow: bool, rate: u64) -> Result<(), ClientError> {
    world.client().merge(&MergeRequest {
        snapshot: snapshot.into(),
        follow,
        rate: Some(rate),
        now: true,
    })
}

/// Verbs for a volume with the snapshots `s1` and `s2`, whether a rollback waits or not.
const VERBS: [Verb; 9] = [
    ("snapshot", |w| w.client().add_snapshot(&w.snapshot("s3"))),
    ("remove", |w| w.client().remove_snapshot("s1")),
    ("rollback", |w| {
        rolled_back(w, "s1", RollbackWhen::Now, None)
    }),
    ("rollback, kept", |w| {
        rolled_back(w, "s1", RollbackWhen::Now, Some("kept"))
    }),
    ("rollback of another", |w| {
        rolled_back(w, "s2", RollbackWhen::Now, None)
    }),
    ("rollback at reset", |w| {
        rolled_back(w, "s2", RollbackWhen::AtReset, None)
    }),
    ("rollback at reset, kept", |w| {
        rolled_back(w, "s2", RollbackWhen::AtReset, Some("kept"))
    }),
    ("merge", |w| merged(w, "s1", false, 0)),
    ("merge, followed", |w| merged(w, "s2", true, 0)),
];

/// What a verb could have changed.
#[derive(Debug, PartialEq)]
struct Seen {
    status: VolumeStatus,
    table: String,
    /// All names in the folder.
    names: Vec<std::ffi::OsString>,
}

fn seen(world: &World) -> Seen {
    let mut status = world.client().status().unwrap();
    status.pid = None;
    for view in &mut status.views {
        view.attached = false;
        // Counted by each daemon anew.
        view.io = Default::default();
    }
    if let Some(merge) = &mut status.merge {
        // Counted and measured by each daemon anew.
        merge.chunks_done = 0;
        merge.bytes_per_second = 0;
        merge.seconds_left = None;
    }
    let entries = fs::read_dir(world.folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    names.retain(|name| name != OBSTACLE);
    names.sort();
    let table = world.client().table().unwrap();
    Seen {
        status,
        table,
        names,
    }
}

/// The bytes of the files, without the state file.
fn stored(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = everything(world.folder.path());
    files.remove(&world.path("disk.img.snapback"));
    files.remove(&world.path("log"));
    files
}

/// The state file without what each start changes.
fn remembered(world: &World) -> serde_json::Value {
    let mut state = world.state();
    for each_start in [
        "generation",
        "marked",
        "running",
        "guest_attached",
        "origin",
    ] {
        state.as_object_mut().unwrap().remove(each_start);
    }
    for snapshot in state["snapshots"].as_array_mut().unwrap() {
        snapshot.as_object_mut().unwrap().remove("store");
    }
    state
}

/// Every verb is refused, and nothing is different afterwards.
#[track_caller]
fn assert_refused(world: &World, verbs: &[Verb]) {
    let state = || fs::read(world.path("disk.img.snapback")).unwrap();
    let before = (seen(world), stored(world), state());
    for (name, verb) in verbs {
        let refusal = match verb(world) {
            Ok(()) => panic!("{name}: it was not refused"),
            Err(error) => error.to_string(),
        };
        assert!(
            refusal.contains("nothing was changed") && refusal.contains(OBSTACLE),
            "{name}: {refusal}"
        );
        assert_eq!(seen(world), before.0, "{name}");
        assert!(stored(world) == before.1, "{name}: other bytes");
        assert!(state() == before.2, "{name}: another state file");
    }
}

#[track_caller]
fn assert_views(world: &World, views: &[(&str, &[u8])]) {
    for (socket, expected) in views {
        let shown = Guest::connect(&world.path(socket)).read_all(BYTES);
        assert_same(&shown, expected, socket);
        world.until("the reader has left", |w| {
            let views = w.client().status().unwrap().views;
            let path = w.path(socket);
            let view = views.iter().find(|v| v.socket.as_deref() == path.to_str());
            view.is_none_or(|v| !v.attached)
        });
    }
}

/// A volume with `s1`, which shows the first content, and `s2`, which shows the
/// second; the third is the origin's.
fn two_snapshots() -> (World, Guest, [Vec<u8>; 3]) {
    let mut world = World::new();
    let first = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
    wreck(&mut guest, 1);
    let second = guest.read_all(BYTES);
    world.client().add_snapshot(&world.snapshot("s2")).unwrap();
    wreck(&mut guest, 2);
    let third = guest.read_all(BYTES);
    (world, guest, [first, second, third])
}

/// Kills the daemon, lets the state file be written again, and starts the next.
/// It must find everything as it was.
fn kill_and_start(world: &mut World) {
    let before = (seen(world), stored(world), remembered(world));
    world.kill();
    let refusal = world.refuse(&["--control", "c.sock"]);
    assert!(refusal.contains(OBSTACLE), "{refusal}");
    assert!(stored(world) == before.1, "a refused start changes nothing");
    clear(world);
    world.start(&[]);
    assert_eq!(seen(world), before.0);
    assert!(stored(world) == before.1, "other bytes after the start");
    assert_eq!(remembered(world), before.2);
}

#[test]
fn without_a_state_file_to_write_every_verb_is_refused_and_nothing_changes() {
    let (mut world, mut guest, [first, second, third]) = two_snapshots();
    obstruct(&world);
    assert_refused(&world, &VERBS);
    assert_same(&guest.read_all(BYTES), &third, "the origin");
    // Copies on write go on as before.
    wreck(&mut guest, 3);
    let fourth = guest.read_all(BYTES);
    let snapshots: [(&str, &[u8]); 2] = [("s1.sock", &first), ("s2.sock", &second)];
    assert_views(&world, &snapshots);
    drop(guest);
    world.until("the guest has left", |w| !w.attached());

    kill_and_start(&mut world);
    assert_views(&world, &snapshots);
    assert_views(&world, &[("a.sock", &fourth)]);
    let client = world.client();
    client.add_snapshot(&world.snapshot("s3")).unwrap();
    client.grow_snapshot("s1", 64 << 20).unwrap();
    client.remove_snapshot("s3").unwrap();
    rolled_back(&world, "s2", RollbackWhen::AtReset, None).unwrap();
    client.cancel_rollback().unwrap();
    rolled_back(&world, "s2", RollbackWhen::Now, Some("kept")).unwrap();
    world.merged();
    assert_views(&world, &[("a.sock", &second), ("kept.sock", &fourth)]);
    merged(&world, "s1", false, 0).unwrap();
    world.merged();
    assert_views(&world, &[("a.sock", &first), ("kept.sock", &fourth)]);
}

/// With and without a kill before the state file can be written again.
#[test]
fn a_rollback_that_waits_goes_on_waiting_while_nothing_can_be_recorded() {
    for killed in [false, true] {
        let (mut world, guest, [first, second, third]) = two_snapshots();
        rolled_back(&world, "s1", RollbackWhen::AtReset, Some("undo")).unwrap();
        obstruct(&world);
        assert_refused(&world, &VERBS);
        let cancel: Verb = ("cancel", |w| w.client().cancel_rollback());
        assert_refused(&world, &[cancel]);
        assert_views(&world, &[("s1.sock", &first), ("s2.sock", &second)]);

        // The reset comes: the rollback fails, is reported, and waits for the next.
        drop(guest);
        world.until("the guest has left", |w| !w.attached());
        world.boot();
        let events = world.client().events(0, None).unwrap().events;
        let failed: Vec<_> = events
            .iter()
            .filter(|e| e["kind"] == "rollback-failed")
            .collect();
        assert_eq!(failed.len(), 1, "{events:?}");
        let error = failed[0]["error"].as_str().unwrap();
        assert!(error.contains(OBSTACLE), "{error}");
        assert_same(&world.origin(), &third, "not rolled back");
        assert!(!world.path("undo.cow").exists());
        let status = world.client().status().unwrap();
        assert_eq!(status.rollback_at_reset.as_deref(), Some("s1"));
        assert_eq!(status.merge, None);

        if killed {
            world.kill();
            clear(&world);
            world.start(&[]);
            let status = world.client().status().unwrap();
            assert_eq!(status.rollback_at_reset.as_deref(), Some("s1"));
        } else {
            clear(&world);
        }
        world.boot();
        world.merged();
        assert_same(&world.origin(), &first, "rolled back at the next reset");
        assert_views(&world, &[("undo.sock", &third), ("s2.sock", &second)]);
    }
}

#[test]
fn a_merge_that_runs_takes_no_orders_that_cannot_be_recorded() {
    let (mut world, guest, [first, second, _]) = two_snapshots();
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    // A batch, and then it waits.
    merged(&world, "s1", false, 1).unwrap();
    world.until("the first batch is merged", |w| {
        w.client().status().unwrap().merge.unwrap().chunks_done > 0
    });
    obstruct(&world);
    // A batch may be under way at any time, so that bytes and counts may change.
    let assert_refused = |world: &World, orders: &[Verb], paused| {
        let recorded = world.state();
        for (name, order) in orders {
            let refused = order(world).unwrap_err().to_string();
            assert!(refused.contains("nothing was changed"), "{name}: {refused}");
            assert_eq!(world.state(), recorded, "{name}");
            let merge = world.client().status().unwrap().merge.unwrap();
            assert!(merge.chunks_left > 0, "{name}: {merge:?}");
            assert_eq!(merge.paused, paused, "{name}");
        }
    };
    let unlimited: Verb = ("rate", |w| w.client().set_merge_rate(0));
    let pause: Verb = ("pause", |w| w.client().pause_merge());
    let remove: Verb = ("remove", |w| w.client().remove_snapshot("s2"));
    assert_refused(&world, &[unlimited, pause, remove], false);
    clear(&world);
    world.client().pause_merge().unwrap();
    obstruct(&world);
    let resume: Verb = ("resume", |w| w.client().resume_merge());
    assert_refused(&world, &[unlimited, resume, remove], true);
    let recorded = remembered(&world);
    world.kill();
    clear(&world);
    world.start(&[]);
    assert_eq!(remembered(&world), recorded);
    let merge = world.client().status().unwrap().merge.unwrap();
    assert!(merge.paused && merge.chunks_left > 0, "{merge:?}");
    assert_views(&world, &[("a.sock", &first), ("s2.sock", &second)]);
    world.client().set_merge_rate(0).unwrap();
    world.client().resume_merge().unwrap();
    world.merged();
    assert_same(&world.origin(), &first, "merged");
}

/// The file is larger then, as the refusal says, and its new room is not used.
#[test]
fn a_growth_that_cannot_be_recorded_takes_no_effect_until_it_is_asked_for_again() {
    const LARGER: u64 = 64 << 20;
    let (mut world, guest, [first, second, _]) = two_snapshots();
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    obstruct(&world);
    let before = (seen(&world), remembered(&world));
    let refused = world.client().grow_snapshot("s1", LARGER).unwrap_err();
    let refused = refused.to_string();
    assert!(!refused.contains("nothing was changed"), "{refused}");
    for part in [
        OBSTACLE,
        "s1.cow is larger now",
        "ask for the same size again",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!((seen(&world), remembered(&world)), before);
    world.kill();
    clear(&world);
    world.start(&[]);
    assert_views(&world, &[("s1.sock", &first), ("s2.sock", &second)]);
    world.client().grow_snapshot("s1", LARGER).unwrap();
    assert_eq!(world.state()["snapshots"][0]["spec"]["size"], LARGER);
    let snapshots = world.client().status().unwrap().snapshots;
    assert_eq!(snapshots[0].total_sectors, LARGER / 512);
}

const ANYWHERE: std::ops::Range<u64> = 0..u64::MAX;

/// A daemon with faults on the volume of [`two_snapshots`].
fn failing() -> (Failing, [Vec<u8>; 3]) {
    let (mut world, guest, contents) = two_snapshots();
    drop(guest);
    world.terminate();
    (Failing::start(world), contents)
}

#[test]
fn a_merge_is_not_over_before_its_end_is_recorded() {
    for killed in [false, true] {
        let (mut failing, [first, second, _]) = failing();
        failing.faults.hold(Call::Write, "/disk.img", ANYWHERE);
        merged(&failing.world, "s1", false, 0).unwrap();
        failing.faults.until_held();
        obstruct(&failing.world);
        failing.faults.release();
        let unrecorded = "the merge has ended, but the state file could not be written";
        failing
            .world
            .until(unrecorded, |_| failing.log().contains(unrecorded));
        let status = failing.world.client().status().unwrap();
        assert!(status.merge.is_some_and(|m| m.snapshot == "s1"));
        assert_eq!(failing.world.state()["merge"]["snapshot"], "s1");
        if killed {
            failing.world.kill();
            clear(&failing.world);
            failing.world.start(&[]);
        } else {
            clear(&failing.world);
        }
        failing.world.merged();
        assert_eq!(failing.world.state()["merge"], serde_json::Value::Null);
        let status = failing.world.client().status().unwrap();
        let left: Vec<_> = status.snapshots.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(left, ["s2"]);
        assert_same(&failing.world.origin(), &first, "merged");
        assert_views(&failing.world, &[("s2.sock", &second)]);
    }
}

/// A snapshot that missed a copy must not come back as valid: what would spoil it
/// waits until its end is in its header or in the state file.
#[test]
fn an_origin_write_waits_while_the_end_of_a_snapshot_is_recorded_nowhere() {
    for killed in [false, true] {
        let (mut failing, [first, second, third]) = failing();
        obstruct(&failing.world);
        failing.faults.fail(Rule {
            call: Call::Write,
            file: "/s2.cow",
            bytes: ANYWHERE,
            errno: libc::EIO,
        });
        let socket = failing.world.path("a.sock");
        // Chunks that `s2` does not have yet.
        let (at, data) = (8 << 20, vec![0x77; 64 << 10]);
        let mut expected = third.clone();
        expected[at + (512 << 10)..][..data.len()].copy_from_slice(&data);
        let sector = (at + (512 << 10)) as u64 / 512;
        let mut guest = Guest::connect(&socket);
        guest.begin_write(sector, &data);
        // Tried a second time, so that whatever the first try set off has happened.
        let unrecorded = "the snapshot is invalid, but the state file could not be written";
        failing.world.until(unrecorded, |_| {
            failing.log().matches(unrecorded).count() >= 2
        });
        assert_same(&failing.world.origin(), &third, "the write waits");
        assert!(!guest.has_ended(), "the write waits");
        assert_eq!(failing.world.state()["snapshots"][1]["valid"], true);
        if killed {
            failing.world.kill();
            drop(guest);
            clear(&failing.world);
            failing.world.start(&[]);
            let snapshots = failing.world.client().status().unwrap().snapshots;
            assert_eq!(snapshots[1].state, State::Active);
            let views: [(&str, &[u8]); 3] = [
                ("s1.sock", &first),
                ("s2.sock", &second),
                ("a.sock", &third),
            ];
            assert_views(&failing.world, &views);
        } else {
            clear(&failing.world);
            assert_eq!(guest.wait(), 0);
            assert_eq!(failing.world.state()["snapshots"][1]["valid"], false);
            failing.world.kill();
            drop(guest);
            failing.world.start(&[]);
            let snapshots = failing.world.client().status().unwrap().snapshots;
            assert_eq!(snapshots[1].state, State::Invalid);
            assert_views(
                &failing.world,
                &[("s1.sock", &first), ("a.sock", &expected)],
            );
        }
    }
}

#[test]
fn a_stop_that_cannot_be_recorded_is_reported_and_the_next_start_is_as_after_a_kill() {
    let (mut world, guest, [first, second, third]) = two_snapshots();
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    obstruct(&world);
    let mut child = world.daemon.take().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert_eq!(world.state()["running"], true);
    clear(&world);
    world.start(&[]);
    assert_views(
        &world,
        &[
            ("s1.sock", &first),
            ("s2.sock", &second),
            ("a.sock", &third),
        ],
    );
}
