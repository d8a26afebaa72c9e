//! A new snapshot whose paths cannot be used: what is this daemon's own, and what has another size.

use super::*;

/// The paths of a new snapshot that this daemon uses already: nobody else is to be stopped.
#[test]
fn what_the_daemon_uses_itself_is_not_blamed_on_another_process() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    let spec = world.snapshot("first");
    client.add_snapshot(&spec).unwrap();
    let refused = |change: &dyn Fn(&mut SnapshotSpec)| {
        let mut spec = world.snapshot("second");
        change(&mut spec);
        let error = client.add_snapshot(&spec).unwrap_err().to_string();
        assert!(!error.contains("another process"), "{error}");
        assert!(!world.path("second.cow").exists(), "{error}");
        error
    };
    let at = |name: &str| world.path(name).to_str().unwrap().to_owned();
    for socket in ["a.sock", "c.sock", "first.sock"] {
        let error = refused(&|spec| spec.socket = Some(at(socket)));
        assert!(
            error.contains(socket) && error.contains("this daemon itself"),
            "{error}"
        );
    }
    let error = refused(&|spec| spec.socket = Some(spec.cow.clone()));
    assert!(error.contains("both its COW and its socket"), "{error}");
    let error = refused(&|spec| spec.cow = at("disk.img.snapback"));
    assert!(error.contains("the state file"), "{error}");
    let error = refused(&|spec| spec.cow = at("first.cow"));
    assert!(error.contains("used by snapshot first"), "{error}");
    // Nobody was connected to see whether somebody listens.
    let events = client.events(0, None).unwrap().events;
    assert!(events.iter().all(|e| e["kind"] != "front-end-connected"));

    // Somebody else's is.
    let _other = std::os::unix::net::UnixListener::bind(world.path("b.sock")).unwrap();
    let mut spec = world.snapshot("second");
    spec.socket = Some(at("b.sock"));
    let error = client.add_snapshot(&spec).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn an_existing_cow_of_another_size_is_refused_and_left_alone() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let spec = world.snapshot("s");
    fs::write(&spec.cow, vec![0; 1 << 20]).unwrap();
    let before = everything(world.folder.path());
    let error = world.client().add_snapshot(&spec).unwrap_err().to_string();
    assert!(
        error.contains("s.cow exists with 1 MiB, not 32 MiB") && error.contains("leave the size"),
        "{error}"
    );
    assert_eq!(everything(world.folder.path()), before);
    for size in [None, Some(1 << 20)] {
        let taken = SnapshotSpec {
            name: format!("s{}", size.unwrap_or(0)),
            size,
            ..spec.clone()
        };
        world.client().add_snapshot(&taken).unwrap();
        let status = world.client().status().unwrap();
        assert_eq!(status.snapshots[0].total_sectors, 2048);
        world.client().remove_snapshot(&taken.name).unwrap();
        fs::write(&spec.cow, vec![0; 1 << 20]).unwrap();
    }
}
