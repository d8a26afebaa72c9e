//! The files that a daemon can still open, and which options name more of them.

use std::fs;
use std::path::Path;

use snapback::control::ClientError;
use snapback::control::api::{ErrorKind, ResetKind, RollbackRequest, RollbackWhen};

use crate::world::World;

/// The refusal of a COW at a place that the daemon may not use.
fn refused(world: &World, cow: &Path) -> String {
    let spec = world.spec("refused", cow.to_owned());
    match world.client().add_snapshot(&spec).unwrap_err() {
        ClientError::Refused(refusal) => {
            assert_eq!(refusal.kind, ErrorKind::Outside, "{}", refusal.message);
            refusal.message
        }
        other => panic!("{other}"),
    }
}

#[test]
fn places_elsewhere_are_for_daemons_that_were_started_for_them() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut world = World::new();
    world.start(&[]);
    let told = world.client().status().unwrap().sandbox.unwrap();
    assert!(told.contains(", files limited"), "{told}");
    assert!(world.log().contains(&told), "{}", world.log());
    // Beside the disk.
    let here = world.spec("here", world.path("here.cow"));
    world.client().add_snapshot(&here).unwrap();
    let there = world.spec("there", elsewhere.path().join("there.cow"));
    fs::write(elsewhere.path().join("existing.cow"), [0; 1 << 20]).unwrap();
    let folder = world.folder.path().canonicalize().unwrap();
    for cow in [&there.cow[..], "existing.cow"] {
        let error = refused(&world, &elsewhere.path().join(cow));
        assert!(error.contains("permission denied"), "{error}");
        assert!(error.contains(folder.to_str().unwrap()), "{error}");
        let advice = "or start the daemon with --allow-path";
        assert!(error.contains(advice), "{error}");
        assert!(error.contains("snapback snapshot"), "{error}");
    }
    let mut socket = world.spec("socket", world.path("socket.cow"));
    socket.socket = Some(elsewhere.path().join("s").to_str().unwrap().to_owned());
    let error = world.client().add_snapshot(&socket).unwrap_err();
    assert!(error.to_string().contains("--allow-path"), "{error}");
    // A rollback that waits is not recorded if it could not be carried out.
    let rollback = RollbackRequest {
        snapshot: "here".into(),
        when: RollbackWhen::AtReset,
        reset: ResetKind::Any,
        keep: Some(there.clone()),
        ..Default::default()
    };
    let error = world.client().rollback(&rollback).unwrap_err();
    assert!(error.to_string().contains("--allow-path"), "{error}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    world.terminate();
    let place = elsewhere.path().to_str().unwrap();
    world.start(&["--allow-path", place]);
    world.client().add_snapshot(&there).unwrap();
    world.client().add_snapshot(&socket).unwrap();
    world.terminate();
    // What is recorded is known.
    world.start(&["--sandbox", "require"]);
    let told = world.client().status().unwrap().sandbox.unwrap();
    assert!(told.contains(", files limited"), "{told}");
    assert_eq!(world.client().status().unwrap().snapshots.len(), 3);
    world.client().remove_snapshot("there").unwrap();
    world.terminate();
    assert!(!world.path("c.sock").exists() && !world.path("a.sock").exists());
    let entries = fs::read_dir(world.path("snapback")).into_iter().flatten();
    let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let told = world.refuse(&mut world.command(&["--allow-path", "missing"]));
    assert!(
        told.contains("missing: there is no such folder or device"),
        "{told}"
    );
}

/// The message says what makes it possible.
#[test]
fn a_cow_that_another_volume_may_have_is_refused_where_its_state_file_cannot_be_read() {
    let mut other = World::new();
    other.start(&[]);
    let shared = tempfile::tempdir().unwrap();
    let cow = shared.path().join("shared.cow");
    let place = shared.path().to_str().unwrap();
    other.terminate();
    other.start(&["--allow-path", place]);
    other
        .client()
        .add_snapshot(&other.spec("theirs", cow.clone()))
        .unwrap();
    other.terminate();
    let mut bytes = [0; 4096];
    if rustix::fs::getxattr(&cow, "user.snapback", &mut bytes[..]).is_err() {
        println!("skipped: no attributes in this file system");
        return;
    }
    let mut world = World::new();
    world.start(&["--allow-path", place]);
    let mut spec = world.spec("mine", cow.clone());
    spec.size = None;
    let error = world.client().add_snapshot(&spec).unwrap_err().to_string();
    assert!(error.contains("snapshot theirs"), "{error}");
    assert!(error.contains("--allow-path and the folder"), "{error}");
    world.terminate();
    let folder = other.folder.path().to_str().unwrap();
    world.start(&["--allow-path", place, "--allow-path", folder]);
    // It is the other's indeed.
    let error = world.client().add_snapshot(&spec).unwrap_err().to_string();
    assert!(error.contains("is the COW of snapshot theirs"), "{error}");
    other.start(&["--allow-path", place]);
    other.client().remove_snapshot("theirs").unwrap();
    other.terminate();
    world.terminate();
    // Or it is not needed.
    world.start(&["--allow-path", place]);
    fs::remove_file(&cow).unwrap();
    spec.size = Some(1 << 20);
    world.client().add_snapshot(&spec).unwrap();
}

#[test]
fn a_daemon_without_a_sandbox_uses_any_place() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut world = World::new();
    world.start(&["--sandbox", "off"]);
    assert_eq!(world.client().status().unwrap().sandbox, None);
    let there = world.spec("there", elsewhere.path().join("there.cow"));
    world.client().add_snapshot(&there).unwrap();
}
