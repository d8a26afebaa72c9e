//! A COW that is cut, anywhere, while it is served and while it is not.

use std::fs;

use crate::guest::{Guest, Kind};
use crate::world::{CHUNK, DISK, World, store};
use crate::{ask, valid_word};

const SECTORS: u64 = (CHUNK / 512) as u64;
/// Chunks that the snapshot has when its file is cut.
const KEPT: usize = 8;
const COW: u64 = 1 << 20;

/// Inside the header's sector and chunk, the entries, and the copies.
const ENDS: [usize; 10] = [
    0,
    100,
    512,
    CHUNK,
    CHUNK + 40,
    2 * CHUNK,
    2 * CHUNK + 700,
    5 * CHUNK,
    8 * CHUNK + 512,
    (2 + KEPT) * CHUNK - 1,
];

fn set_len(world: &World, name: &str, len: u64) {
    let file = fs::File::options().write(true).open(world.path(name));
    file.unwrap().set_len(len).unwrap();
}

/// Each chunk of the view at `socket` reads as in `expected`, or not at all.
fn reads_right_or_not_at_all(guest: &mut Guest, expected: &[u8], what: &str) {
    for chunk in 0..DISK / CHUNK {
        let mut data = vec![0; CHUNK];
        if ask(guest, Kind::Read, chunk as u64 * SECTORS, &mut data) {
            let expected = &expected[chunk * CHUNK..][..CHUNK];
            assert!(data == expected, "{what}: chunk {chunk} reads wrong");
        }
    }
}

fn while_served(engine: &str, store_type: &str) {
    for end in ENDS {
        let what = format!("{engine}, {store_type}, cut to {end}");
        let mut world = World::new();
        let snapshot = format!("name=s,cow=s.cow,size=1M,type={store_type},socket=s.sock");
        let options = [
            "--io-engine",
            engine,
            "--socket-path",
            "o.sock",
            "--snapshot",
            &snapshot,
        ];
        world.serve("disk.img", &options);
        let mut shown = world.read("disk.img");
        let mut origin = Guest::connect(&world.path("o.sock"), 1, 1);
        let mut view = Guest::connect(&world.path("s.sock"), 1, 1);
        let mut data = vec![0xa5; CHUNK];
        for chunk in 0..KEPT {
            if chunk % 2 == 0 {
                assert!(ask(
                    &mut origin,
                    Kind::Write,
                    chunk as u64 * SECTORS,
                    &mut data
                ));
            } else {
                data.fill(chunk as u8 + 1);
                assert!(ask(
                    &mut view,
                    Kind::Write,
                    chunk as u64 * SECTORS,
                    &mut data
                ));
                shown[chunk * CHUNK..][..CHUNK].copy_from_slice(&data);
            }
        }
        set_len(&world, "s.cow", end as u64);
        let size = || fs::metadata(world.path("s.cow")).unwrap().len();
        reads_right_or_not_at_all(&mut view, &shown, &what);
        // In place, behind the new end: it must not come back as zeroes around it.
        let last = (KEPT - 1) as u64 * SECTORS;
        assert!(!ask(&mut view, Kind::Write, last, &mut data), "{what}");
        assert_eq!(size(), end as u64, "{what}");
        reads_right_or_not_at_all(&mut view, &shown, &what);
        // The next commit at the latest.
        data.fill(0x77);
        assert!(
            ask(&mut origin, Kind::Write, 20 * SECTORS, &mut data),
            "{what}"
        );
        assert_eq!(size(), end as u64, "{what}");
        let status = world.done(&["status"]);
        assert!(status.contains("invalid"), "{what}: {status}");
        let events = world.done(&["events"]);
        assert!(events.contains("the file was cut"), "{what}: {events}");
        let mut one = vec![0; CHUNK];
        assert!(
            !ask(&mut view, Kind::Read, 100 * SECTORS, &mut one),
            "{what}"
        );
        assert!(ask(&mut origin, Kind::Read, 20 * SECTORS, &mut one) && one == data);
        drop((origin, view));
        if store_type != "N" {
            assert!(end < 512 || valid_word(&world.read("s.cow")) == 0, "{what}");
            world.kill();
            // Its old size does not make it right.
            set_len(&world, "s.cow", COW);
            world.answered_no(&["check", "s.cow"], &["invalid"]);
            world.serve("disk.img", &[]);
            let status = world.done(&["status"]);
            assert!(status.contains("invalid"), "{what}: {status}");
            world.done(&["remove", "s"]);
        }
    }
}

#[test]
fn a_cow_cut_while_served_ends_its_snapshot_and_never_reads_as_zeroes_with_threads() {
    while_served("threads", "P");
}

#[test]
fn a_cow_cut_while_served_ends_its_snapshot_and_never_reads_as_zeroes_with_io_uring() {
    while_served("io_uring", "P");
}

#[test]
fn a_cow_cut_while_served_ends_a_snapshot_of_any_type() {
    while_served("io_uring", "PO");
}

#[test]
fn a_cut_cow_is_not_grown_back() {
    let mut world = World::new();
    world.write("s.cow", &store(5));
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    set_len(&world, "s.cow", 3 * CHUNK as u64);
    let said = world.run(&["grow", "s", "8M"]);
    assert_eq!(said.status, Some(2), "{said:?}");
    assert!(
        said.stderr.contains("growing it does not bring that back"),
        "{said:?}"
    );
    assert_eq!(world.read("s.cow").len(), 3 * CHUNK);
}

/// The disk with a snapshot that keeps [`KEPT`] chunks, stopped; and what it shows.
fn stopped() -> (World, Vec<u8>) {
    let mut world = World::new();
    world.write("s.cow", &store(KEPT as u64));
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    world.stop();
    world.done(&[
        "export", "--origin", "disk.img", "--cow", "s.cow", "was.img",
    ]);
    let shown = world.read("was.img");
    (world, shown)
}

#[test]
fn what_is_advised_for_a_cut_cow_leads_to_the_right_snapshot() {
    for end in ENDS {
        let (mut world, shown) = stopped();
        fs::copy(world.path("s.cow"), world.path("backup.cow")).unwrap();
        set_len(&world, "s.cow", end as u64);
        let refusal = world.run(&["serve", "--origin", "disk.img", "--control", "c.sock"]);
        assert_eq!(refusal.status, Some(2), "{refusal:?}");
        let text = &refusal.stderr;
        assert!(
            text.contains("Restore the COW") || text.contains("bring it back"),
            "{text}"
        );
        for wrong in ["full size", "truncate -s", "enlarge it"] {
            assert!(!text.contains(wrong), "{end}: {text}");
        }
        // Brought back.
        fs::copy(world.path("backup.cow"), world.path("s.cow")).unwrap();
        let start = ["--accept-changes"];
        world.serve("disk.img", &start);
        let status = world.done(&["status"]);
        assert!(!status.contains("invalid"), "{status}");
        world.stop();
        world.done(&["export", "--origin", "disk.img", "--cow", "s.cow", "is.img"]);
        assert!(world.read("is.img") == shown, "{end}");
    }
}

#[test]
fn a_cow_cut_behind_all_that_it_keeps_is_right_again_at_its_old_size() {
    let (mut world, shown) = stopped();
    let whole = world.read("s.cow").len() as u64;
    set_len(&world, "s.cow", whole - 4 * CHUNK as u64);
    world.start_refused(
        &["--control", "c.sock"],
        &[
            "s.cow",
            "behind all data that it holds",
            &format!("truncate -s {}", snapback::size::exact(whole)),
        ],
    );
    set_len(&world, "s.cow", whole);
    world.serve("disk.img", &["--accept-changes"]);
    world.stop();
    world.done(&["export", "--origin", "disk.img", "--cow", "s.cow", "is.img"]);
    assert!(world.read("is.img") == shown);
}

#[test]
fn a_cow_made_longer_again_is_told_with_the_entries_in_its_holes() {
    // Copies lost with some of the entries, the copies alone, all entries with them.
    for (end, words) in [
        (6 * CHUNK, "the copies of 4 entries lie in holes"),
        (9 * CHUNK, "the copy of 1 entry lies in a hole"),
        (CHUNK, "the end of the log lies in a hole"),
    ] {
        let (world, _) = stopped();
        let whole = world.read("s.cow").len() as u64;
        set_len(&world, "s.cow", end as u64);
        set_len(&world, "s.cow", whole);
        let found = world.done(&["check", "s.cow"]);
        assert!(
            found.contains("warning") && found.contains(words),
            "{end}: {found}"
        );
        // A part of the length is no advice to make it longer still.
        set_len(&world, "s.cow", whole - CHUNK as u64);
        let refusal = world.run(&["serve", "--origin", "disk.img", "--control", "c.sock"]);
        assert_eq!(refusal.status, Some(2), "{refusal:?}");
        for advice in ["full size", "truncate -s", "enlarge it"] {
            assert!(!refusal.stderr.contains(advice), "{end}: {refusal:?}");
        }
    }
    // No word of one that is as it was.
    let (world, _) = stopped();
    let found = world.done(&["check", "s.cow"]);
    assert!(!found.contains("warning"), "{found}");
}
