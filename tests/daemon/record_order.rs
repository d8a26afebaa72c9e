//! A change is in the state file, durably, before the engine makes it: killed between
//! the two, the daemon leaves a record that the next start carries out.

use std::thread::ScopedJoinHandle;

use snapback::control::ClientError;

use super::failing::Failing;
use super::inject::{Call, Rule};
use super::*;

const STATE: &str = "disk.img.snapback";
const ANYWHERE: std::ops::Range<u64> = 0..u64::MAX;
/// Where the raw header of a COW is.
const HEADER: std::ops::Range<u64> = 0..512;

/// A daemon whose origin holds the second content; the snapshot `s` shows the first.
fn served() -> (Failing, Guest, [Vec<u8>; 2]) {
    let mut world = World::new();
    let first = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    let second = guest.read_all(BYTES);
    drop(guest);
    world.terminate();
    let failing = Failing::start(world);
    let guest = Guest::connect(&failing.world.path("a.sock"));
    (failing, guest, [first, second])
}

fn rollback(world: &World, when: RollbackWhen, keep: Option<&str>) -> Result<(), ClientError> {
    let request = RollbackRequest {
        snapshot: "s".into(),
        when,
        keep: keep.map(|name| world.snapshot(name)),
        ..Default::default()
    };
    world.client().rollback(&request).map(drop)
}

type Verb = fn(&World) -> Result<(), ClientError>;

/// Has `verb` held at its first call of this kind, calls `meanwhile`, kills the
/// daemon there, and starts the next.
fn killed_at(
    mut failing: Failing,
    (call, file, bytes): (Call, &'static str, std::ops::Range<u64>),
    verb: Verb,
    meanwhile: impl FnOnce(&Failing),
) -> World {
    failing.faults.hold(call, file, bytes);
    let mut daemon = failing.world.daemon.take();
    std::thread::scope(|scope| {
        let (world, daemon) = (&failing.world, &mut daemon);
        let asked: ScopedJoinHandle<'_, _> = scope.spawn(move || verb(world));
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            failing.faults.until_held();
            meanwhile(&failing);
        }));
        let child = daemon.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(asked.join().unwrap().is_err(), "answered before its end");
        judged.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let Failing { mut world, faults } = failing;
    drop(faults);
    world.start(&["--socket-path", "a.sock"]);
    world
}

#[track_caller]
fn assert_shown(world: &World, socket: &str, expected: &[u8]) {
    let shown = Guest::connect(&world.path(socket)).read_all(BYTES);
    assert_same(&shown, expected, socket);
}

#[track_caller]
fn states(world: &World) -> Vec<(String, State)> {
    let snapshots = world.client().status().unwrap().snapshots;
    snapshots.into_iter().map(|s| (s.name, s.state)).collect()
}

const RENAMED: (Call, &str, std::ops::Range<u64>) = (Call::Rename, STATE, ANYWHERE);
/// After the renaming of the state file.
const FOLDER: (Call, &str, std::ops::Range<u64>) = (Call::SyncFolder, "", ANYWHERE);

#[test]
fn a_handover_happens_after_its_record_and_whenever_it_is_recorded() {
    let verb: Verb = |w| rollback(w, RollbackWhen::Now, None);
    for (place, recorded) in [(RENAMED, false), (FOLDER, true)] {
        let (failing, mut guest, [first, second]) = served();
        let world = killed_at(failing, place, verb, |failing| {
            let merge = &failing.world.state()["merge"];
            assert_eq!(merge.is_null(), !recorded);
            let shown = guest.read_all(BYTES);
            assert_same(&shown, &second, "not handed over yet");
        });
        world.merged();
        let expected = if recorded { &first } else { &second };
        assert_shown(&world, "a.sock", expected);
        let left = if recorded { 0 } else { 1 };
        assert_eq!(states(&world).len(), left);
    }
}

#[test]
fn a_snapshot_is_taken_after_its_record() {
    let verb: Verb = |w| w.client().add_snapshot(&w.snapshot("new"));
    let cut = (Call::Flush, "/disk.img", ANYWHERE);
    for (place, recorded) in [(RENAMED, false), (cut, true)] {
        let (failing, mut guest, [first, second]) = served();
        let world = killed_at(failing, place, verb, |failing| {
            let listed = failing.world.state()["snapshots"].as_array().unwrap().len();
            assert_eq!(listed, if recorded { 2 } else { 1 });
            if !recorded {
                let cow = || fs::read(failing.world.path("new.cow")).unwrap();
                let before = cow();
                assert_eq!(guest.write(0, &[0; 512]), 0);
                assert_eq!(guest.write(0, &second[..512]), 0);
                assert!(cow() == before, "it keeps what a guest overwrites");
            }
        });
        let mut expected = vec![("s".to_owned(), State::Active)];
        if recorded {
            expected.push(("new".to_owned(), State::Active));
            assert_shown(&world, "new.sock", &second);
        }
        assert_eq!(states(&world), expected);
        assert_shown(&world, "a.sock", &second);
        assert_shown(&world, "s.sock", &first);
    }
}

#[test]
fn a_removal_is_recorded_before_the_store_is_marked() {
    let verb: Verb = |w| w.client().remove_snapshot("s");
    let header = (Call::Write, "/s.cow", HEADER);
    for (place, recorded) in [(RENAMED, false), (header, true)] {
        let (failing, guest, [first, second]) = served();
        let before = fs::read(failing.world.path("s.cow")).unwrap();
        let world = killed_at(failing, place, verb, |failing| {
            let valid = &failing.world.state()["snapshots"][0]["valid"];
            assert_eq!(*valid, !recorded);
            let cow = fs::read(failing.world.path("s.cow")).unwrap();
            assert!(cow == before, "the store is marked first");
        });
        drop(guest);
        let state = if recorded {
            State::Invalid
        } else {
            assert_shown(&world, "s.sock", &first);
            State::Active
        };
        assert_eq!(states(&world), [("s".to_owned(), state)]);
        assert_shown(&world, "a.sock", &second);
        world.client().remove_snapshot("s").unwrap();
    }
}

#[test]
fn a_rollback_is_called_off_when_that_is_recorded() {
    let verb: Verb = |w| w.client().cancel_rollback();
    for (place, recorded) in [(RENAMED, false), (FOLDER, true)] {
        let (failing, guest, [first, second]) = served();
        rollback(&failing.world, RollbackWhen::AtReset, None).unwrap();
        let world = killed_at(failing, place, verb, |failing| {
            let pending = &failing.world.state()["rollback_at_reset"];
            assert_eq!(pending.is_null(), recorded);
        });
        drop(guest);
        let pending = world.client().status().unwrap().rollback_at_reset;
        assert_eq!(pending.is_none(), recorded);
        world.boot();
        world.merged();
        assert_shown(&world, "a.sock", if recorded { &second } else { &first });
    }
}

/// The snapshot becomes invalid between the record and the handover.
#[test]
fn a_refused_handover_does_not_stay_recorded() {
    let (mut failing, mut guest, [_, mut expected]) = served();
    let fault = |bytes| Rule {
        call: Call::Write,
        file: "/s.cow",
        bytes,
        errno: libc::EIO,
    };
    failing.faults.hold(Call::SyncFolder, "", ANYWHERE);
    let refused = std::thread::scope(|scope| {
        let asked = scope.spawn(|| rollback(&failing.world, RollbackWhen::Now, None));
        failing.faults.until_held();
        assert_eq!(failing.world.state()["merge"]["snapshot"], "s");
        failing.faults.fail(fault(8192..u64::MAX));
        let sector = 700; // of a chunk that the snapshot does not have
        assert_eq!(guest.write(sector, &[0x33; 512]), 0);
        expected[700 * 512..][..512].fill(0x33);
        failing.faults.mend();
        failing.faults.release();
        asked.join().unwrap().unwrap_err().to_string()
    });
    assert!(refused.contains("snapshot s is invalid"), "{refused}");
    let state = failing.world.state();
    assert_eq!(state["merge"], serde_json::Value::Null);
    assert_eq!(failing.world.client().status().unwrap().merge, None);
    drop(guest);
    failing.world.kill();
    failing.world.start(&[]);
    assert_eq!(states(&failing.world), [("s".to_owned(), State::Invalid)]);
    assert_eq!(failing.world.client().status().unwrap().merge, None);
    assert_shown(&failing.world, "a.sock", &expected);
}

/// The snapshot that the rollback was to keep cannot be taken.
#[test]
fn a_rollback_whose_snapshot_fails_does_not_stay_recorded() {
    let (mut failing, guest, [first, second]) = served();
    failing.faults.fail(Rule {
        call: Call::Flush,
        file: "/disk.img",
        bytes: ANYWHERE,
        errno: libc::EIO,
    });
    let refused = rollback(&failing.world, RollbackWhen::Now, Some("undo")).unwrap_err();
    assert!(refused.to_string().contains("undo"), "{refused}");
    failing.faults.mend();
    let state = failing.world.state();
    assert_eq!(state["merge"], serde_json::Value::Null);
    assert_eq!(state["snapshots"].as_array().unwrap().len(), 1);
    drop(guest);
    failing.world.kill();
    failing.world.start(&[]);
    assert_eq!(states(&failing.world), [("s".to_owned(), State::Active)]);
    assert_shown(&failing.world, "a.sock", &second);
    assert_shown(&failing.world, "s.sock", &first);
}

/// What a power cut leaves is the old file or the new one, whole.
#[test]
fn the_state_file_is_synced_then_renamed_then_its_folder_is_synced() {
    let (failing, guest, _) = served();
    failing.faults.record();
    rollback(&failing.world, RollbackWhen::AtReset, None).unwrap();
    let calls = failing.faults.recorded();
    let of_the_file: Vec<(Call, &str)> = calls
        .iter()
        .filter(|made| matches!(made.call, Call::Sync | Call::SyncFolder | Call::Rename))
        .map(|made| (made.call, made.file.rsplit('/').next().unwrap()))
        .collect();
    let folder = failing.world.folder.path().file_name().unwrap();
    let expected = [
        (Call::Sync, "disk.img.snapback.new"),
        (Call::Rename, STATE),
        (Call::SyncFolder, folder.to_str().unwrap()),
    ];
    assert_eq!(of_the_file, expected);
    drop(guest);
}
