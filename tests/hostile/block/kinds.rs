//! Types of requests: unknown ones, those that were not offered, FLUSH and GET_ID.

use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

use super::super::client::{
    Case, IN, IO_ERROR, OK, OUT, Outcome, PLAIN, SECTOR_OF_CASES, Session, UNSUPPORTED, run,
};
use super::super::raw::{FLUSH, PROTOCOL, Raw, SIZE, VERSION_1, WRITE};
use super::super::world::{View, World};
use super::{FLUSH_REQUEST, FREE, GET_ID, ROOM, bytes, fill, header, put, request};

/// The bit of a request that was to be a barrier, long ago.
const BARRIER: u32 = 1 << 31;

#[test]
fn types_that_nobody_offered_are_unsupported() {
    let unknown = [
        ("SCSI command", 2),
        ("SCSI command out", 3),
        ("FLUSH_OUT", 5),
        ("6", 6),
        ("GET_LIFETIME", 10),
        ("12", 12),
        ("ZONE_REPORT", 16),
        ("27", 27),
        ("65535", 65535),
        ("all bits", u32::MAX),
        ("a read with a barrier", BARRIER),
        ("a write with a barrier", OUT | BARRIER),
        ("a flush with a barrier", FLUSH_REQUEST | BARRIER),
        ("only a barrier that is not one", 1 << 30),
    ];
    let mut cases = Vec::new();
    for (name, kind) in unknown {
        for parts in [
            &[][..],
            &[(ROOM, 512, WRITE)],
            &[(ROOM, 512, 0)],
            &[(ROOM, 96, 0), (ROOM, 96, WRITE)],
        ] {
            cases.push(request(name, UNSUPPORTED, kind, SECTOR_OF_CASES, parts));
        }
    }
    // These would write, so that a read-only view refuses them as it does writes.
    for (name, kind) in [
        ("SECURE_ERASE", 14),
        ("ZONE_APPEND", 15),
        ("ZONE_OPEN", 18),
        ("ZONE_CLOSE", 20),
        ("ZONE_FINISH", 22),
        ("ZONE_RESET", 24),
        ("ZONE_RESET_ALL", 26),
    ] {
        for parts in [&[][..], &[(ROOM, 16, 0)], &[(ROOM, 512, 0)]] {
            let case = request(name, UNSUPPORTED, kind, SECTOR_OF_CASES, parts);
            cases.push(case.on_read_only(IO_ERROR));
        }
    }
    run(&World::new(), &cases);
}

/// SCSI, GEOMETRY, LIFETIME, SECURE_ERASE, ZONED, and the barrier.
#[test]
fn features_of_types_that_nobody_offered_cannot_be_had() {
    let world = World::new();
    for view in View::ALL {
        for bit in [0, 1, 4, 7, 15, 16, 17] {
            let session = Session::open(&world, view, 0, SIZE);
            let offered = session.raw.frontend.get_features().unwrap();
            assert_eq!(offered >> bit & 1, 0, "feature {bit} on {view:?}");
            let wanted = PLAIN | 1 << bit;
            let set = session.raw.frontend.set_features(wanted);
            assert!(set.is_err(), "feature {bit} on {view:?}");
        }
        Session::open(&world, view, 0, SIZE).prove();
    }
    world.end();
}

/// The specification wants no data and sector 0, and says nothing else of them.
#[test]
fn a_flush_flushes_whatever_else_it_says() {
    let flush =
        |name, sector, parts: &[super::Part]| request(name, OK, FLUSH_REQUEST, sector, parts);
    let cases = [
        flush("a flush", 0, &[]),
        flush("with a sector", 5, &[]),
        flush("with the last sector", u64::MAX, &[]),
        flush("with data for the device", 0, &[(ROOM, 512, 0)]),
        flush("with data from the device", 0, &[(ROOM, 512, WRITE)]),
        flush("with a byte", 0, &[(ROOM, 1, 0)]),
        flush("with data beyond memory", 0, &[(1 << 40, 512, WRITE)]),
        Case::ring("with a priority", OK, |raw, ring| {
            put(raw, ring, FLUSH_REQUEST, 0, &[]);
            let priority = GuestAddress(raw.header(ring, 0) + 4);
            raw.memory.write_obj(u32::MAX, priority).unwrap();
            raw.offer(ring, &[0]);
        }),
        Case::ring("five at once, with writes between", OK, |raw, ring| {
            for head in [0, 6, 12] {
                raw.request(ring, head, FLUSH_REQUEST, 0, 0);
            }
            for head in [3, 9] {
                raw.request(ring, head, IN, FREE, 512);
            }
            raw.offer(ring, &[0, 3, 6, 9, 12]);
        }),
    ];
    let world = &World::new();
    run(world, &cases);
    // Data of a flush is not touched.
    for view in View::ALL {
        let mut session = Session::open(world, view, 0, SIZE);
        fill(&session.raw, ROOM, 0xf7, 512);
        session.run(&cases[4]).unwrap();
        assert_eq!(bytes(&session.raw, ROOM, 512), [0xf7; 512]);
        // Directly after a reset, and twice.
        session.reset();
        session.run(&cases[0]).unwrap();
        session.reset();
        session.run(&cases[8]).unwrap();
    }
}

/// A driver that did not ask for FLUSH may send one all the same.
#[test]
fn a_flush_without_the_feature_is_a_flush() {
    let world = World::new();
    for view in View::ALL {
        let features = (VERSION_1 | PROTOCOL) & !FLUSH;
        let mut raw = Raw::connect(&world.path(view), features);
        let mut ring = raw.start(0);
        put(&raw, &ring, FLUSH_REQUEST, 0, &[]);
        raw.run(&mut ring, &[0]);
        assert_eq!(raw.status(&ring, 0), 0, "{view:?}");
    }
    world.end();
}

/// Of up to 20 bytes as much as there is room for; nothing else is written.
#[test]
fn an_identifier_is_given_in_whatever_room_there_is() {
    let mut cases = Vec::new();
    for len in [0, 1, 19, 20, 21, 512, 4096] {
        let case = Case::ring("GET_ID", OK, move |raw, ring| {
            fill(raw, ROOM, 0xf7, 4608);
            put(raw, ring, GET_ID, 0, &[(ROOM, len, WRITE)]);
            raw.offer(ring, &[0]);
        });
        cases.push(case.then(move |raw, ring| {
            let written = len.min(20);
            let used = raw.used(ring, raw.used_index(ring).wrapping_sub(1));
            assert_eq!(used, (0, written + 1));
            let data = bytes(raw, ROOM, 4608);
            let (id, rest) = data.split_at(written as usize);
            assert!(id.iter().all(|b| *b != 0xf7), "{id:?}");
            assert!(rest.iter().all(|b| *b == 0xf7), "beyond the identifier");
        }));
    }
    cases.push(request("without data", OK, GET_ID, 0, &[]));
    cases.push(request("readable", OK, GET_ID, 0, &[(ROOM, 20, 0)]));
    cases.push(request(
        "with a sector",
        OK,
        GET_ID,
        u64::MAX,
        &[(ROOM, 20, WRITE)],
    ));
    let beyond = [(1 << 40, 20, WRITE)];
    cases.push(request("beyond memory", IO_ERROR, GET_ID, 0, &beyond));
    let scattered: Vec<super::Part> = (0..10).map(|i| (ROOM + 100 * i, 3, WRITE)).collect();
    let case = request("scattered", OK, GET_ID, 0, &scattered);
    cases.push(case.then(|raw, _| {
        let pieces: Vec<u8> = (0..10)
            .flat_map(|i| bytes(raw, ROOM + 100 * i, 3))
            .collect();
        assert!(pieces[0] != 0 && pieces[..20].iter().all(|b| *b != 0xf7));
    }));
    run(&World::new(), &cases);
}

#[test]
fn each_queue_gives_the_same_identifier() {
    let world = World::new();
    let mut seen = Vec::new();
    for view in [View::Origin, View::Snapshot, View::ReadOnly] {
        let mut raw = Raw::connect(&world.path(view), PLAIN);
        let ids = [0, 1, 5].map(|queue| {
            let mut ring = raw.start(queue);
            header(&raw, &ring, GET_ID, 0);
            raw.request(&ring, 0, GET_ID, 0, 20);
            raw.run(&mut ring, &[0]);
            assert_eq!(raw.status(&ring, 0), 0);
            bytes(&raw, raw.data(&ring, 0), 20)
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert!(!seen.contains(&ids[0]), "each view has its own");
        seen.push(ids[0].clone());
    }
    world.end();
    let _ = Outcome::Back;
}
