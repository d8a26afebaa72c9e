//! Snapshots whose own views cannot be written (N09 of `docs/checklist.md`).

use super::*;

fn reads_only(guest: &mut Guest, expected: &[u8], what: &str) {
    assert!(guest.is_read_only(), "{what}");
    assert_same(&guest.read_all(BYTES), expected, what);
    assert_eq!(guest.write(3, &[9; 512]), -5, "{what}");
    assert_eq!(guest.flush(), 0, "{what}");
}

#[test]
fn a_read_only_snapshot_gets_its_copy_outs_and_takes_no_write_from_start_to_start() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let mut spec = world.snapshot("s1");
    spec.read_only = Some(true);
    world.client().add_snapshot(&spec).unwrap();
    let mut origin = Guest::connect(&world.path("a.sock"));
    assert!(!origin.is_read_only());
    let mut guest = Guest::connect(&world.path("s1.sock"));
    wreck(&mut origin, 1);
    reads_only(&mut guest, &before, "beside writes to the origin");
    let status = world.client().status().unwrap();
    let (s1, view) = (&status.snapshots[0], &status.views[1]);
    assert!(s1.read_only && view.read_only && !status.views[0].read_only);
    assert!(s1.allocated_sectors > s1.metadata_sectors);
    let table = world.client().table().unwrap();
    assert!(
        table.contains("s1: 0 ") && table.ends_with(" P 8\n"),
        "{table}"
    );
    drop((origin, guest));

    world.terminate();
    world.start(&[]);
    wreck(&mut Guest::connect(&world.path("a.sock")), 2);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    reads_only(&mut guest, &before, "after a stop");
    drop(guest);
    // Named again it stays what it is, until that is taken back.
    let again = |more: &str| format!("name=s1,cow=s1.cow{more}");
    for (more, read_only) in [("", true), (",read-only=no", false), ("", false)] {
        world.kill();
        world.start(&["--snapshot", &again(more)]);
        let guest = Guest::connect(&world.path("s1.sock"));
        assert_eq!(guest.is_read_only(), read_only, "{more:?}");
    }
    assert_eq!(
        Guest::connect(&world.path("s1.sock")).write(3, &[9; 512]),
        0
    );
}

#[test]
fn a_read_only_snapshot_is_rolled_back_to_like_any_other() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M,socket=s1.sock,read-only",
    ]);
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    world.rollback("s1", RollbackWhen::Now);
    let mut origin = Guest::connect(&world.path("a.sock"));
    assert_same(&origin.read_all(BYTES), &before, "rolled back");
    world.merged();
    assert_eq!(origin.write(3, &[9; 512]), 0, "the origin can be written");
}

/// What follows a merge becomes a second socket of the origin, but a guest that
/// has seen its disk as read-only goes on seeing it so.
#[test]
fn a_read_only_socket_that_followed_its_merge_stays_read_only() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let mut spec = world.snapshot("s1");
    spec.read_only = Some(true);
    world.client().add_snapshot(&spec).unwrap();
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    let request = MergeRequest {
        snapshot: "s1".into(),
        follow: true,
        rate: None,
        now: true,
    };
    world.client().merge(&request).unwrap();
    reads_only(&mut guest, &before, "during the merge");
    world.merged();
    reads_only(&mut guest, &before, "after the merge");
    drop(guest);
    world.terminate();
    world.start(&[]);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    reads_only(&mut guest, &before, "after a new start");
    let mut origin = Guest::connect(&world.path("a.sock"));
    assert_eq!(origin.write(3, &[9; 512]), 0);
    assert_eq!(guest.read(3, 512).unwrap(), [9; 512]);
}
