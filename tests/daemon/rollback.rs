//! Rollbacks: at the guest's reset, now, and reversed.

use super::*;

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
