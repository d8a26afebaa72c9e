//! What is offered to whom, and what discards leave of files and snapshots.

use std::os::unix::fs::MetadataExt;

use super::*;
use guest::{DISCARD, WRITE_ZEROES};

fn with(mut spec: SnapshotSpec, zeroes: Option<bool>, passdown: Option<bool>) -> SnapshotSpec {
    spec.discard_zeroes_cow = zeroes;
    spec.discard_passdown_origin = passdown;
    spec
}

/// Sectors of 512 bytes that a file takes up.
fn space(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks()
}

/// O11 and N18 of `docs/checklist.md`.
#[test]
fn each_view_offers_what_it_can_do() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    for (name, zeroes) in [("plain", None), ("off", Some(false)), ("on", Some(true))] {
        let spec = with(world.snapshot(name), zeroes, None);
        world.client().add_snapshot(&spec).unwrap();
    }
    let mut guests = ["a", "plain", "off", "on"].map(|name| {
        let guest = Guest::connect(&world.path(&format!("{name}.sock")));
        (name, guest)
    });
    for (name, guest) in &mut guests {
        let discards = ["a", "on"].contains(name);
        let offered = if discards {
            DISCARD | WRITE_ZEROES
        } else {
            WRITE_ZEROES
        };
        assert_eq!(guest.offered(), offered, "{name}");
        let answer = if discards { 0 } else { -libc::EOPNOTSUPP };
        assert_eq!(guest.discard(0, 8), answer, "{name}");
        assert_eq!(guest.write_zeroes(64, 8), 0, "{name}");
        assert_eq!(guest.read(64, 4096).unwrap(), [0; 4096], "{name}");
    }
    drop(guests);
    world.terminate();

    let mut golden = World::new();
    golden.start(&[
        "--read-only",
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s,cow=s.cow,size=8M,socket=s.sock,discard-zeroes-cow",
    ]);
    let mut guest = Guest::connect(&golden.path("a.sock"));
    assert_eq!(guest.offered(), 0);
    assert_eq!(
        (guest.discard(0, 8), guest.write_zeroes(0, 8)),
        (-libc::EIO, -libc::EIO)
    );
    let fork = Guest::connect(&golden.path("s.sock"));
    assert_eq!(fork.offered(), DISCARD | WRITE_ZEROES);
}

/// O11: what a guest gives back is given back as far as no snapshot needs it, and
/// no snapshot pays for it.
#[test]
fn trimming_the_origin_frees_its_file_and_costs_no_snapshot_anything() {
    let mut world = World::new();
    let first = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    let spec = world.snapshot("s1");
    world.client().add_snapshot(&spec).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    // The first 4 MiB are in the snapshot; the guest then trims everything.
    for at in 0..4 {
        assert_eq!(guest.write(at * 2048, &vec![1; 1 << 20]), 0);
    }
    let used = |world: &World| world.client().status().unwrap().snapshots[0].allocated_sectors;
    let (before, space_before) = (used(&world), space(&world.path("disk.img")));
    assert_eq!(guest.discard(0, BYTES as u64 / 512), 0);
    assert_eq!(used(&world), before, "nothing was copied out");
    assert_eq!(state_of(&world), State::Active);
    assert_eq!(space_before - space(&world.path("disk.img")), 4 * 2048);
    let now = guest.read_all(BYTES);
    assert!(now[..4 << 20].iter().all(|b| *b == 0), "given back");
    assert_same(&now[4 << 20..], &first[4 << 20..], "what is shared");
    let snapshot = Guest::connect(&world.path("s1.sock")).read_all(BYTES);
    assert_same(&snapshot, &first, "the snapshot");
    drop(guest);
    // Without a snapshot everything is.
    world.until("the guest has left", |w| {
        !w.client()
            .status()
            .unwrap()
            .views
            .iter()
            .any(|v| v.attached)
    });
    world.client().remove_snapshot("s1").unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.discard(0, BYTES as u64 / 512), 0);
    assert_eq!(guest.read_all(BYTES), vec![0; BYTES]);
    assert!(space(&world.path("disk.img")) < 64);
}

fn state_of(world: &World) -> State {
    world.client().status().unwrap().snapshots[0].state
}

/// N16 and N17 of `docs/checklist.md`: what is zeroed keeps its place in the COW, and
/// what is passed down spares the other snapshot.
#[test]
fn a_snapshots_discard_zeroes_its_cow_and_passes_down_what_nobody_needs() {
    let mut world = World::new();
    let first = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    for (name, options) in [("s1", (Some(true), Some(true))), ("s2", (None, None))] {
        let spec = with(world.snapshot(name), options.0, options.1);
        world.client().add_snapshot(&spec).unwrap();
    }
    let mut origin = Guest::connect(&world.path("a.sock"));
    let mut guest = Guest::connect(&world.path("s1.sock"));
    // The first MiB is in both snapshots, of the second one half in the first.
    assert_eq!(origin.write(0, &vec![1; 1 << 20]), 0);
    assert_eq!(guest.write(2048, &vec![2; 512 << 10]), 0);
    let cow_space = space(&world.path("s1.cow"));
    assert_eq!(guest.discard(0, 3 * 2048), 0);
    assert_eq!(guest.flush(), 0);
    // The file system may need a block of its own, because a range that was written is
    // divided.
    let block = 4096 / 512;
    let kept = space(&world.path("s1.cow"));
    assert!(
        (cow_space..=cow_space + block).contains(&kept),
        "the store keeps its room: {kept} instead of {cow_space}"
    );
    let mut expected = first.clone();
    expected[..1 << 20].fill(0);
    expected[1 << 20..][..512 << 10].fill(0);
    assert_same(&guest.read_all(BYTES), &expected, "the snapshot");
    let mut left = first.clone();
    left[..1 << 20].fill(0);
    assert_same(&origin.read_all(BYTES), &left, "the origin");
    let other = Guest::connect(&world.path("s2.sock")).read_all(BYTES);
    assert_same(&other, &first, "the other snapshot");
    drop((origin, guest));

    // The options are in the table, in the status, and known at the next start.
    let device = "0:0 0:0";
    let line = format!(
        "s1: 0 {} snapshot {device} P 8 2 discard_zeroes_cow discard_passdown_origin\n",
        BYTES / 512
    );
    for round in 0..2 {
        let table = world.client().table().unwrap();
        assert!(table.contains(&line), "{table}");
        let status = world.client().status().unwrap().snapshots.remove(0);
        assert!(status.discard_zeroes_cow && status.discard_passdown_origin);
        if round == 0 {
            world.terminate();
            world.start(&[]);
        }
    }
    let guest = Guest::connect(&world.path("s1.sock"));
    assert_eq!(guest.offered(), DISCARD | WRITE_ZEROES);
    drop(guest);
    // And can be given anew.
    world.terminate();
    world.start(&[
        "--snapshot",
        "name=s1,cow=s1.cow,discard-passdown-origin=no,discard-zeroes-cow=no",
    ]);
    let guest = Guest::connect(&world.path("s1.sock"));
    assert_eq!(guest.offered(), WRITE_ZEROES);
    assert!(!world.client().table().unwrap().contains("discard"));
}

/// N17 of `docs/checklist.md`.
#[test]
fn passing_down_needs_both_options_and_a_writable_origin() {
    let mut world = World::new();
    let both = |text: &str| {
        let named = ["discard-passdown-origin", "discard-zeroes-cow"];
        assert!(named.iter().all(|name| text.contains(name)), "{text}");
    };
    let alone = "name=s,cow=s.cow,size=8M,discard-passdown-origin";
    let text = world.refuse(&["--control", "c.sock", "--snapshot", alone]);
    both(&text);
    let text = world.refuse(&[
        "--control",
        "c.sock",
        "--read-only",
        "--snapshot",
        "name=s,cow=s.cow,size=8M,discard-zeroes-cow,discard-passdown-origin",
    ]);
    assert!(text.contains("read-only"), "{text}");
    assert!(!world.path("s.cow").exists());
    world.start(&["--socket-path", "a.sock"]);
    let spec = with(world.snapshot("s"), None, Some(true));
    let error = world.client().add_snapshot(&spec).unwrap_err();
    both(&error.to_string());
    let spec = with(world.snapshot("s"), Some(true), Some(true));
    world.client().add_snapshot(&spec).unwrap();
    world.terminate();
    let off = "name=s,cow=s.cow,discard-zeroes-cow=no";
    both(&world.refuse(&["--control", "c.sock", "--snapshot", off]));
}
