//! `--keep` when the state file or the engine fails: the snapshot that is kept and
//! the rollback are there together, or neither is.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;
use crate::control::api::Volume;
use crate::daemon::test_volume;
use crate::daemon::volume::views::ViewOwner;
use crate::vhost::Start;

/// A served volume without guests, with the snapshot `before`.
struct World {
    folder: tempfile::TempDir,
    volume: Arc<LiveVolume>,
    stop: Arc<AtomicBool>,
    main: Option<std::thread::JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (volume, mut notices) = test_volume::serve(folder.path());
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, ended) = (volume.clone(), stop.clone());
        let main = std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                notices.process(&theirs);
                let pause = Some(Duration::from_millis(20));
                notices.executor().wait_also(&[], pause);
            }
        });
        let world = Self {
            folder,
            volume,
            stop,
            main: Some(main),
        };
        world
            .volume
            .add_snapshot(world.spec("before"), None)
            .unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self, name: &str) -> SnapshotSpec {
        test_volume::spec(self.folder.path(), name)
    }

    fn ask(&self, when: RollbackWhen) -> Result<RollbackOutcome, String> {
        let request = RollbackRequest {
            snapshot: "before".into(),
            when,
            keep: Some(self.spec("undo")),
            ..RollbackRequest::default()
        };
        let reply = self.volume.rollback(request, None);
        reply.map(|r| r.outcome).map_err(|e| e.to_string())
    }

    fn fail_writes(&self, failures: &[bool]) {
        lock(&self.volume.state).failures = failures.iter().copied().collect();
    }

    /// Nothing of the snapshot that was to be kept, nor of a rollback under way.
    fn assert_as_before(&self, pending: bool) {
        let names = |world: &Self| {
            let state = lock(&world.volume.state);
            let snapshots = state.state().snapshots.iter();
            let names: Vec<String> = snapshots.map(|s| s.spec.name.clone()).collect();
            names
        };
        assert_eq!(names(self), ["before"]);
        let status = self.volume.status();
        assert_eq!(status.snapshots.len(), 1);
        assert!(status.merge.is_none());
        assert_eq!(status.rollback.is_some(), pending);
        assert_eq!(self.volume.is_rollback_pending(), pending);
        assert!(!self.path("undo.sock").exists());
        let written = fs::read_to_string(self.path("disk.img.snapback")).unwrap();
        assert!(!written.contains("\"merge\": {"), "{written}");
    }

    fn assert_rolled_back(&self) {
        let state = lock(&self.volume.state).state().clone();
        assert!(state.snapshot("undo").is_some_and(|s| s.valid));
        assert_eq!(state.rollback_at_reset, None);
        assert!(self.path("undo.cow").exists() && self.path("undo.sock").exists());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = crate::daemon::running::stop::stop(&self.volume, None);
        self.stop.store(true, Ordering::Release);
        if let Some(main) = self.main.take() {
            let _ = main.join();
        }
    }
}

#[test]
fn an_immediate_rollback_that_fails_leaves_nothing_of_what_it_was_to_keep() {
    let world = World::new();
    world.fail_writes(&[true]);
    let error = world.ask(RollbackWhen::Now).unwrap_err();
    assert!(error.contains("nothing was changed"), "{error}");
    world.assert_as_before(false);
    assert!(!world.path("undo.cow").exists());
    world.volume.fail_handover.store(true, Ordering::Release);
    world.ask(RollbackWhen::Now).unwrap_err();
    world.assert_as_before(false);
    assert!(!world.path("undo.cow").exists());
    // And the same request is not in its own way afterwards.
    assert_eq!(world.ask(RollbackWhen::Now), Ok(RollbackOutcome::Started));
    world.assert_rolled_back();
}

#[test]
fn a_cow_that_was_there_is_left_as_it_was_found() {
    let world = World::new();
    let cow = world.path("undo.cow");
    let blank = vec![0; 1 << 20];
    fs::write(&cow, &blank).unwrap();
    for round in 0..2 {
        let found = fs::read(&cow).unwrap();
        world.volume.fail_handover.store(true, Ordering::Release);
        world.ask(RollbackWhen::Now).unwrap_err();
        world.assert_as_before(false);
        assert!(fs::read(&cow).unwrap() == found, "round {round}");
        // The second time it holds an empty store, with chunks of its own size.
        if round == 0 {
            let options = crate::offline::CreateOptions {
                size: None,
                chunk_size: crate::units::ChunkSize::new(16).unwrap(),
                force: false,
                sparse: false,
            };
            crate::offline::create(&cow, &options).unwrap();
        }
    }
    assert_eq!(world.ask(RollbackWhen::Now), Ok(RollbackOutcome::Started));
    let size = lock(&world.volume.state)
        .state()
        .snapshot("undo")
        .unwrap()
        .spec
        .chunk_size;
    assert_eq!(size, Some(8192));
}

/// What the guest did between two resets must be in what is kept, so nothing that
/// was taken at the first may count at the second.
#[test]
fn what_is_kept_is_taken_anew_at_the_reset_that_rolls_back() {
    for fail in [
        (&|world: &World| world.fail_writes(&[true])) as &dyn Fn(&World),
        // Recorded, but not done.
        &|world| world.volume.fail_handover.store(true, Ordering::Release),
    ] {
        let world = World::new();
        assert_eq!(
            world.ask(RollbackWhen::AtReset),
            Ok(RollbackOutcome::AtNextReset)
        );
        fail(&world);
        world.volume.origin_rings_start(Start::Firmware);
        world.assert_as_before(true);
        assert!(!world.path("undo.cow").exists());
        let note = world.volume.status().rollback.unwrap().note.unwrap();
        assert!(note.contains("failed at the last reset"), "{note}");
        world.volume.origin_rings_start(Start::Firmware);
        world.assert_rolled_back();
    }
}

#[test]
fn a_handover_that_cannot_be_taken_back_at_once_is_taken_back_later() {
    let world = World::new();
    world.ask(RollbackWhen::AtReset).unwrap();
    world.volume.fail_handover.store(true, Ordering::Release);
    world.fail_writes(&[false, true, true]);
    world.volume.origin_rings_start(Start::Firmware);
    let start = Instant::now();
    while !lock(&world.volume.tables).undo.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    world.assert_as_before(true);
    world.volume.origin_rings_start(Start::Firmware);
    world.assert_rolled_back();
}

#[test]
fn a_snapshot_made_by_hand_is_not_taken_for_the_one_to_keep() {
    let world = World::new();
    world.ask(RollbackWhen::AtReset).unwrap();
    let other_cow = SnapshotSpec {
        cow: world.path("other.cow").display().to_string(),
        ..world.spec("undo")
    };
    let other_name = SnapshotSpec {
        name: "other".into(),
        ..world.spec("undo")
    };
    for spec in [world.spec("undo"), other_cow, other_name] {
        let error = world.volume.add_snapshot(spec, None).unwrap_err();
        assert!(error.message.contains("--cancel"), "{error}");
    }
    world.assert_as_before(true);
    // One that is there all the same, from an earlier daemon, stops the rollback.
    let name = "undo".to_owned();
    let record = {
        let state = lock(&world.volume.state);
        let mut record = state.state().snapshot("before").unwrap().clone();
        record.spec.name = name;
        record
    };
    lock(&world.volume.state)
        .update(|s| s.snapshots.push(record))
        .unwrap();
    world.volume.origin_rings_start(Start::Firmware);
    let status = world.volume.status();
    assert!(status.merge.is_none());
    let note = status.rollback.unwrap().note.unwrap();
    assert!(note.contains("snapshot undo exists already"), "{note}");
    // What the refusal advises.
    world.volume.cancel_rollback().unwrap();
    assert!(!world.volume.is_rollback_pending());
}
