//! The files that a daemon can still open, and which options name more of them.

use std::fs;

use crate::world::World;

#[test]
fn places_elsewhere_are_for_daemons_that_were_started_for_them() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut world = World::new();
    world.start(&["--sandbox", "require"]);
    let told = world.client().status().unwrap().sandbox.unwrap();
    assert!(told.contains("files limited"), "{told}");
    assert!(world.log().contains(&told), "{}", world.log());
    // Beside the disk.
    let here = world.spec("here", world.path("here.cow"));
    world.client().add_snapshot(&here).unwrap();
    let there = world.spec("there", elsewhere.path().join("there.cow"));
    let error = world.client().add_snapshot(&there).unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
    let folder = world.folder.path().canonicalize().unwrap();
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
    assert!(
        error.contains("start the daemon with --allow-path"),
        "{error}"
    );
    let mut socket = world.spec("socket", world.path("socket.cow"));
    socket.socket = Some(elsewhere.path().join("s").to_str().unwrap().to_owned());
    let error = world
        .client()
        .add_snapshot(&socket)
        .unwrap_err()
        .to_string();
    assert!(error.contains("--allow-path"), "{error}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    world.terminate();
    let elsewhere = elsewhere.path().to_str().unwrap();
    world.start(&["--allow-path", elsewhere]);
    world.client().add_snapshot(&there).unwrap();
    world.client().add_snapshot(&socket).unwrap();
    world.terminate();
    // What is recorded is known.
    world.start(&["--sandbox", "require"]);
    assert_eq!(world.client().status().unwrap().snapshots.len(), 3);
    world.client().remove_snapshot("there").unwrap();
    world.terminate();
    let told = world.refuse(&mut world.command(&["--allow-path", "missing"]));
    assert!(
        told.contains("missing: there is no such folder or device"),
        "{told}"
    );
}

#[test]
fn a_daemon_that_was_not_asked_to_uses_any_place() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut world = World::new();
    world.start(&[]);
    let told = world.client().status().unwrap().sandbox.unwrap();
    assert!(told.contains("files not limited"), "{told}");
    let there = world.spec("there", elsewhere.path().join("there.cow"));
    world.client().add_snapshot(&there).unwrap();
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
