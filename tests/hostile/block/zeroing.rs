//! DISCARD and WRITE_ZEROES.

use vm_memory::{Bytes, GuestAddress};

use super::super::client::{
    Case, IN, IO_ERROR, OK, OUT, Outcome, SECTOR_OF_CASES, Session, UNSUPPORTED,
};
use super::super::raw::{Raw, Ring, SIZE, WRITE};
use super::super::world::{SECTORS, View, World};
use super::{
    DISCARD, F_DISCARD, F_WRITE_ZEROES, FREE, ROOM, WRITE_ZEROES, bytes, fill, put, range, ranges,
    request, with_bytes,
};

/// Most ranges of a request, as the configuration space has it.
const fn most(kind: u32) -> usize {
    if kind == DISCARD { 32 } else { 8 }
}

/// Each kind with the features that may go with it.
const KINDS: [(u32, u64); 4] = [
    (DISCARD, 0),
    (DISCARD, F_DISCARD),
    (WRITE_ZEROES, 0),
    (WRITE_ZEROES, F_WRITE_ZEROES),
];

/// Runs `cases` on each view that offers `features`. What a view says to a discard that it
/// does not offer is [`a_discard_is_unsupported_where_it_is_not_offered`]'s.
fn run_where_offered(world: &World, kind: u32, features: u64, cases: &[Case]) {
    for view in View::ALL {
        let discards = matches!(view, View::Origin | View::Merge);
        if view == View::ReadOnly || kind == DISCARD && !discards {
            continue;
        }
        let mut session = Session::open(world, view, features, SIZE);
        for case in cases {
            session.run(case).unwrap();
        }
        session.prove();
        session.compare();
    }
    world.check();
}

#[test]
fn ranges_are_sixteen_bytes_each() {
    let world = World::new();
    for (kind, features) in KINDS {
        let good = range(FREE, 8, 0);
        let mut cases = Vec::new();
        for len in [0, 1, 8, 15, 17, 24, 31, 33, 4095] {
            let bytes: Vec<u8> = good.iter().copied().cycle().take(len).collect();
            cases.push(with_bytes("not whole ranges", IO_ERROR, kind, bytes));
        }
        cases.push(request("no data", IO_ERROR, kind, 0, &[]));
        let writable = [(ROOM, 16, WRITE)];
        cases.push(request("writable", IO_ERROR, kind, 0, &writable));
        let both = [(ROOM, 16, 0), (ROOM, 16, WRITE)];
        cases.push(request("and writable data", IO_ERROR, kind, 0, &both));
        let beyond = [(1 << 40, 16, 0)];
        cases.push(request("beyond memory", IO_ERROR, kind, 0, &beyond));
        cases.push(Case::ring("in five pieces", OK, move |raw, ring| {
            let bytes = range(FREE, 8, 0);
            raw.memory.write_slice(&bytes, GuestAddress(ROOM)).unwrap();
            let parts = [(0, 1), (1, 7), (8, 0), (8, 7), (15, 1)];
            let parts = parts.map(|(at, len)| (ROOM + at, len, 0));
            put(raw, ring, kind, u64::MAX, &parts);
            raw.offer(ring, &[0]);
        }));
        run_where_offered(&world, kind, features, &cases);
    }
    world.end();
}

#[test]
fn numbers_and_flags_of_a_range_are_checked() {
    let world = World::new();
    for (kind, features) in KINDS {
        let mut cases = Vec::new();
        for (name, outcome, one) in [
            ("no sectors", IO_ERROR, (FREE, 0, 0)),
            ("no sectors at the end", IO_ERROR, (SECTORS, 0, 0)),
            ("all ones", IO_ERROR, (FREE, u32::MAX, 0)),
            ("more than the limit", IO_ERROR, (0, 65537, 0)),
            ("beyond the end", IO_ERROR, (SECTORS, 8, 0)),
            ("across the end", IO_ERROR, (SECTORS - 4, 8, 0)),
            ("wraps", IO_ERROR, (u64::MAX - 3, 8, 0)),
            ("wraps as bytes", IO_ERROR, (1 << 55, 8, 0)),
            ("an unknown flag", UNSUPPORTED, (FREE, 8, 2)),
            ("the last flag", UNSUPPORTED, (FREE, 8, 1 << 31)),
            ("all flags", UNSUPPORTED, (FREE, 8, u32::MAX)),
            ("a flag and beyond", UNSUPPORTED, (SECTORS, 8, 2)),
        ] {
            cases.push(ranges(name, outcome, kind, &[one]));
        }
        let unmap = if kind == DISCARD { UNSUPPORTED } else { OK };
        cases.push(ranges("unmap", unmap, kind, &[(FREE, 8, 1)]));
        run_where_offered(&world, kind, features, &cases);
    }
    world.end();
}

#[test]
fn several_ranges_are_checked_together() {
    let world = World::new();
    for (kind, features) in KINDS {
        let good = (FREE, 8, 0);
        let many = vec![good; most(kind)];
        let too_many = vec![good; most(kind) + 1];
        let bad = (SECTORS, 8, 0);
        // Outside of what may be written: it must not be carried out.
        let wrong = (SECTOR_OF_CASES, 8, 0);
        let cases = [
            ranges("as many as there may be", OK, kind, &many),
            ranges("one more", UNSUPPORTED, kind, &too_many),
            ranges("one more, and a bad one", UNSUPPORTED, kind, &{
                let mut list = vec![wrong; most(kind)];
                list.push(bad);
                list
            }),
            ranges("the last is bad", IO_ERROR, kind, &[wrong, wrong, bad]),
            ranges("the first is bad", IO_ERROR, kind, &[bad, wrong]),
            ranges(
                "the second has a flag",
                UNSUPPORTED,
                kind,
                &[wrong, (FREE, 8, 2)],
            ),
            ranges(
                "overlapping",
                OK,
                kind,
                &[(FREE, 16, 0), (FREE + 8, 16, 0), good],
            ),
            ranges("the same twice", OK, kind, &[good, good]),
        ];
        run_where_offered(&world, kind, features, &cases);
    }
    world.end();
}

/// What several ranges leave: each of them, and nothing between.
#[test]
fn zeroes_are_written_to_each_range() {
    let case = Case::ring("two ranges", Outcome::Back, |raw, ring| {
        fill(raw, ROOM, 0x5a, 24 * 512);
        put(raw, ring, OUT, FREE, &[(ROOM, 24 * 512, 0)]);
        raw.run(ring, &[0]);
        let list = [range(FREE, 8, 0), range(FREE + 16, 7, 1)].concat();
        raw.memory.write_slice(&list, GuestAddress(ROOM)).unwrap();
        put(raw, ring, WRITE_ZEROES, 0, &[(ROOM, 32, 0)]);
        raw.run(ring, &[0]);
        assert_eq!(raw.status(ring, 0), 0);
        put(raw, ring, IN, FREE, &[(ROOM, 24 * 512, WRITE)]);
        raw.offer(ring, &[0]);
    })
    .then(|raw, ring| {
        assert_eq!(raw.status(ring, 0), 0);
        let data = bytes(raw, ROOM, 24 * 512);
        for (sector, data) in data.chunks(512).enumerate() {
            let zeroed = sector < 8 || (16..23).contains(&sector);
            let want = if zeroed { 0 } else { 0x5a };
            assert!(data.iter().all(|b| *b == want), "sector {sector}");
        }
    });
    let world = World::new();
    run_where_offered(&world, WRITE_ZEROES, 0, std::slice::from_ref(&case));
    world.end();
}

#[test]
fn a_discard_is_unsupported_where_it_is_not_offered() {
    let world = World::new();
    let cases = [
        ranges(
            "a discard",
            UNSUPPORTED,
            DISCARD,
            &[(SECTOR_OF_CASES, 8, 0)],
        ),
        ranges("beyond the end", UNSUPPORTED, DISCARD, &[(SECTORS, 8, 0)]),
        ranges("with unmap", UNSUPPORTED, DISCARD, &[(FREE, 8, 1)]),
        request("without data", UNSUPPORTED, DISCARD, 0, &[]),
    ];
    let mut session = Session::open(&world, View::Snapshot, 0, SIZE);
    for case in &cases {
        session.run(case).unwrap();
    }
    let offered = vhost::VhostBackend::get_features(&session.raw.frontend).unwrap();
    assert_eq!(offered & F_DISCARD, 0);
    session.prove();
    session.compare();
    drop(session);
    world.end();
}

#[test]
fn a_read_only_view_refuses_both_before_it_looks_at_them() {
    let world = World::new();
    let mut session = Session::open(&world, View::ReadOnly, 0, SIZE);
    for kind in [DISCARD, WRITE_ZEROES] {
        let many = vec![(0, 8, 0); 40];
        for case in [
            ranges("a range", IO_ERROR, kind, &[(SECTOR_OF_CASES, 8, 0)]),
            ranges("a flag", IO_ERROR, kind, &[(SECTOR_OF_CASES, 8, 2)]),
            ranges("beyond the end", IO_ERROR, kind, &[(SECTORS, 8, 0)]),
            ranges("too many", IO_ERROR, kind, &many),
            request("without data", IO_ERROR, kind, 0, &[]),
        ] {
            session.run(&case).unwrap();
        }
    }
    session.prove();
    session.compare();
    drop(session);
    world.end();
}

/// Puts writes and zeroes of the same sectors into the ring at once. Each sector then holds
/// one of them, or what it held.
fn at_once(kind: u32) -> impl Fn(&Raw, &mut Ring) {
    move |raw, ring| {
        let list = [range(FREE, 8, 0), range(FREE + 4, 8, 0)].concat();
        raw.memory.write_slice(&list, GuestAddress(ROOM)).unwrap();
        put(raw, ring, kind, 0, &[(ROOM, 32, 0)]);
        for head in [3, 6, 9] {
            fill(raw, raw.data(ring, head), 0x61, 4096);
            raw.request(ring, head, OUT, FREE + u64::from(head) - 3, 4096);
        }
        raw.offer(ring, &[3, 0, 6, 9]);
    }
}

#[test]
fn zeroing_may_overlap_a_write_in_flight() {
    let world = World::new();
    for kind in [DISCARD, WRITE_ZEROES] {
        let look = Case::ring("what is there", OK, |raw, ring| {
            put(raw, ring, IN, FREE, &[(ROOM, 8 * 512, WRITE)]);
            raw.offer(ring, &[0]);
        })
        .then(|raw, _| {
            for sector in bytes(raw, ROOM, 8 * 512).chunks(512) {
                assert!(sector == [0x61; 512] || sector == [0; 512]);
            }
        });
        let first = Case::ring("it holds such data", OK, |raw, ring| {
            fill(raw, ROOM, 0x61, 32 * 512);
            put(raw, ring, OUT, FREE, &[(ROOM, 32 * 512, 0)]);
            raw.offer(ring, &[0]);
        });
        let mut cases = vec![first];
        for _ in 0..20 {
            cases.push(Case::ring("at once", OK, at_once(kind)));
        }
        cases.push(look);
        run_where_offered(&world, kind, 0, &cases);
    }
    world.end();
}
