//! COWs that grow while guests run, and none that shrinks.

use super::*;

const SMALL: u64 = 64 << 10; // header, area and 14 chunks of 4 KiB
const LARGE: u64 = 1 << 20;

fn overflowed() -> (World, Guest, Vec<u8>) {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let mut spec = world.snapshot("s1");
    spec.store_type = StoreType::PO;
    spec.size = Some(SMALL);
    world.client().add_snapshot(&spec).unwrap();
    let mut guest = Guest::connect(&world.path("s1.sock"));
    let data = vec![0x5a; 14 * 4096];
    assert_eq!(guest.write(0, &data), 0);
    assert_ne!(guest.write(800, &[0x5b; 4096]), 0, "no room for this");
    let mut expected = world.origin();
    expected[..data.len()].copy_from_slice(&data);
    (world, guest, expected)
}

fn state(world: &World) -> State {
    world.client().status().unwrap().snapshots[0].state
}

/// N14, N20 and N21 of `docs/checklist.md`.
#[test]
fn a_grown_cow_ends_the_overflow_and_is_known_at_the_next_start() {
    let (mut world, mut guest, mut expected) = overflowed();
    assert_eq!(state(&world), State::Overflow);
    world.client().grow_snapshot("s1", LARGE).unwrap();
    assert_eq!(state(&world), State::Active);
    let snapshot = world.client().status().unwrap().snapshots.remove(0);
    assert_eq!(snapshot.total_sectors, LARGE / 512);
    assert_eq!(fs::metadata(world.path("s1.cow")).unwrap().len(), LARGE);
    assert_eq!(world.state()["snapshots"][0]["spec"]["size"], LARGE);
    assert_eq!(guest.write(800, &[0x5b; 4096]), 0);
    expected[800 * 512..][..4096].fill(0x5b);
    assert!(guest.read_all(BYTES) == expected);
    drop(guest);

    world.kill();
    world.start(&[]);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    assert!(guest.read_all(BYTES) == expected);
    drop(guest);

    // And back to what it was: its room is gone, so it does not come back quietly.
    world.terminate();
    let cow = fs::OpenOptions::new()
        .write(true)
        .open(world.path("s1.cow"));
    cow.unwrap().set_len(SMALL + 4096).unwrap();
    let refusal = world.refuse(&["--control", "c.sock"]);
    assert!(refusal.contains("s1.cow"), "{refusal}");
}

#[test]
fn growing_refuses_what_makes_no_sense() {
    let (world, guest, expected) = overflowed();
    drop(guest);
    let refusal = |name: &str, size| {
        let error = world.client().grow_snapshot(name, size).unwrap_err();
        error.to_string()
    };
    assert!(refusal("s1", SMALL - 512).contains("cannot shrink"));
    assert!(refusal("s1", LARGE + 1).contains("multiple of 512"));
    assert!(refusal("s2", LARGE).contains("no snapshot s2"));
    refusal("s1", u64::MAX - 511); // more than there is
    assert_eq!(fs::metadata(world.path("s1.cow")).unwrap().len(), SMALL);
    assert_eq!(state(&world), State::Overflow);
    // A copy-out that finds no room ends it for good.
    let mut origin = Guest::connect(&world.path("a.sock"));
    assert_eq!(origin.write(2000, &[1; 512]), 0);
    drop(origin);
    world.until("it is invalid", |w| state(w) == State::Invalid);
    assert!(refusal("s1", LARGE).contains("invalid"));
    assert!(world.origin()[2000 * 512 + 512..] == expected[2000 * 512 + 512..]);
}
