//! Places on the disk, and lengths of data.

use vm_memory::{Bytes, GuestAddress};

use super::super::client::{Case, IN, IO_ERROR, OK, OUT, Outcome, Session, run};
use super::super::raw::{SIZE, WRITE};
use super::super::world::{SECTORS, View, World};
use super::{DISCARD, F_DISCARD, F_WRITE_ZEROES, FREE, ROOM, WRITE_ZEROES, range, ranges, request};

/// A read or write of `len` bytes.
fn transfer(name: &'static str, outcome: Outcome, kind: u32, sector: u64, len: u32) -> Case {
    let flags = if kind == IN { WRITE } else { 0 };
    let case = request(name, outcome, kind, sector, &[(ROOM, len, flags)]);
    if kind == OUT {
        case.on_read_only(IO_ERROR)
    } else {
        case
    }
}

/// Sector and sectors that are not on the disk.
const BEYOND: [(&str, u64, u32); 9] = [
    ("at the end", SECTORS, 1),
    ("across the end", SECTORS - 1, 2),
    ("across the end by far", SECTORS - 1, 64),
    ("beyond the end", SECTORS + 1, 1),
    ("far beyond the end", 1 << 40, 1),
    ("the place in bytes wraps", 1 << 55, 1),
    ("place and length wrap", u64::MAX - 7, 8),
    ("place and length wrap to a good place", u64::MAX - 3, 8),
    ("the last sector that has a number", u64::MAX, 1),
];

#[test]
fn nothing_beyond_the_end_is_read_or_written() {
    let mut cases = Vec::new();
    for (name, sector, sectors) in BEYOND {
        cases.push(transfer(name, IO_ERROR, IN, sector, sectors * 512));
        cases.push(transfer(name, IO_ERROR, OUT, sector, sectors * 512));
        cases.push(ranges(
            name,
            IO_ERROR,
            WRITE_ZEROES,
            &[(sector, sectors, 0)],
        ));
    }
    cases.push(transfer("the last sector", OK, IN, SECTORS - 1, 512));
    cases.push(transfer(
        "the whole disk but a sector too much",
        IO_ERROR,
        IN,
        1,
        16 << 20,
    ));
    run(&World::new(), &cases);
}

/// The same for discards, which not every view offers: no view carries one out.
#[test]
fn nothing_beyond_the_end_is_discarded() {
    let cases: Vec<Case> = BEYOND
        .iter()
        .map(|(name, sector, sectors)| {
            ranges(name, Outcome::Back, DISCARD, &[(*sector, *sectors, 0)])
                .then(|raw, ring| assert_ne!(raw.status(ring, 0), 0))
        })
        .collect();
    run(&World::new(), &cases);
}

/// The last sector of the disk is written as it is, by each type that writes.
#[test]
fn the_last_sector_is_on_the_disk() {
    let cases = [
        Case::ring("written back", OK, |raw, ring| {
            super::put(raw, ring, IN, SECTORS - 1, &[(ROOM, 512, WRITE)]);
            raw.run(ring, &[0]);
            super::put(raw, ring, OUT, SECTORS - 1, &[(ROOM, 512, 0)]);
            raw.offer(ring, &[0]);
        })
        .on_read_only(Outcome::Back),
        // It is put back at once.
        Case::ring("zeroes, and written back", OK, |raw, ring| {
            super::put(raw, ring, IN, SECTORS - 1, &[(ROOM, 512, WRITE)]);
            raw.run(ring, &[0]);
            let bytes = range(SECTORS - 1, 1, 0);
            raw.memory
                .write_slice(&bytes, GuestAddress(ROOM + 4096))
                .unwrap();
            super::put(raw, ring, WRITE_ZEROES, 0, &[(ROOM + 4096, 16, 0)]);
            raw.run(ring, &[0]);
            super::put(raw, ring, IN, SECTORS - 1, &[(ROOM + 8192, 512, WRITE)]);
            raw.run(ring, &[0]);
            let is_zero = super::bytes(raw, ROOM + 8192, 512).iter().all(|b| *b == 0);
            // A read-only view has refused it.
            assert!(is_zero || raw.status(ring, 0) == 0);
            super::put(raw, ring, OUT, SECTORS - 1, &[(ROOM, 512, 0)]);
            raw.offer(ring, &[0]);
        })
        .on_read_only(Outcome::Back),
    ];
    run(&World::new(), &cases);
}

#[test]
fn data_that_is_no_whole_sectors_is_refused() {
    let mut cases = Vec::new();
    for kind in [IN, OUT] {
        for (name, len) in [
            ("no data", 0),
            ("1 byte", 1),
            ("511 bytes", 511),
            ("513 bytes", 513),
            ("a sector and a half", 768),
            ("almost 4 GiB", u32::MAX - 1023),
        ] {
            cases.push(transfer(name, IO_ERROR, kind, FREE, len));
        }
        let flags = if kind == IN { WRITE } else { 0 };
        let parts = [(ROOM, 512, flags), (ROOM + 512, 1, flags)];
        let case = request("a sector and a byte in two", IO_ERROR, kind, FREE, &parts);
        cases.push(case);
        let case = request("no data descriptor", IO_ERROR, kind, FREE, &[]);
        cases.push(case);
    }
    run(&World::new(), &cases);
}

/// Drivers may acknowledge features of zeroing or not; what they ask for is the same.
#[test]
fn ranges_are_checked_with_the_features_too() {
    let mut cases = Vec::new();
    for (name, sector, sectors) in BEYOND {
        let case = ranges(name, IO_ERROR, WRITE_ZEROES, &[(sector, sectors, 0)]);
        cases.push(case.with(F_WRITE_ZEROES));
    }
    let world = World::new();
    for view in View::ALL {
        if view == View::ReadOnly {
            continue;
        }
        let mut session = Session::open(&world, view, F_WRITE_ZEROES, SIZE);
        for case in &cases {
            session.run(case).unwrap();
        }
        session.prove();
        session.compare();
    }
    let mut session = Session::open(&world, View::Origin, F_DISCARD, SIZE);
    for (name, sector, sectors) in BEYOND {
        session
            .run(&ranges(name, IO_ERROR, DISCARD, &[(sector, sectors, 0)]))
            .unwrap();
    }
    session.prove();
    session.compare();
    drop(session);
    world.end();
}
