//! What a start takes up, what it refuses, and a clean stop.

use super::*;

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
fn a_clean_stop_waits_for_no_attached_guest() {
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
    world.terminate_at_once();
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
        text.contains("s1.cow does not exist") && text.contains("--forget s1"),
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
