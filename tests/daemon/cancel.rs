//! A rollback that waits for the guest's reset, called off.

use super::*;

#[test]
fn a_rollback_called_off_never_happens_not_even_after_a_restart() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    let before = world.snapshot("before");
    world.client().add_snapshot(&before).unwrap();
    wreck(&mut guest, 1);
    let wrecked = guest.read_all(BYTES);
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Auto,
        keep: Some(world.snapshot("undo")),
        rate: None,
        ..Default::default()
    };
    for restart in [false, true] {
        assert_eq!(
            world.client().rollback(&request).unwrap().outcome,
            RollbackOutcome::AtNextReset
        );
        assert_eq!(world.state()["rollback_at_reset"]["snapshot"], "before");
        world.client().cancel_rollback().unwrap();
        assert!(world.state()["rollback_at_reset"].is_null());
        let status = world.client().status().unwrap();
        assert_eq!(status.rollback_at_reset, None);
        // The reset that it waited for.
        drop(guest);
        if restart {
            world.terminate();
            world.start(&[]);
        }
        world.boot();
        guest = Guest::connect(&world.path("a.sock"));
        assert_same(&guest.read_all(BYTES), &wrecked, "not rolled back");
        assert!(world.client().status().unwrap().merge.is_none());
        assert!(!world.path("undo.cow").exists());
    }
    // The snapshot is there as before.
    assert_eq!(
        world.rollback("before", RollbackWhen::Now),
        RollbackOutcome::Started
    );
    world.merged();
}

#[test]
fn only_a_rollback_that_waits_can_be_called_off() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let refused = |world: &World| world.client().cancel_rollback().unwrap_err().to_string();
    assert!(refused(&world).contains("no rollback waits"));
    let before = world.snapshot("before");
    world.client().add_snapshot(&before).unwrap();
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: Some(4096),
        ..Default::default()
    };
    world.client().rollback(&request).unwrap();
    let error = refused(&world);
    assert!(error.contains("to before"), "{error}");
    assert!(world.client().status().unwrap().merge.is_some());
}
