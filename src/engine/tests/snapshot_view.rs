//! The snapshot's own view. The rows named here are those of `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::{Keep, LoggedKind};
use crate::store::{Layout, Metadata};
use crate::units::ChunkSize;

/// N01, N02, N19.
#[test]
fn snapshots_change_neither_the_origin_nor_one_another() {
    let (mut w, origin) = world(64);
    let [a, b] = [(1, 8), (2, 16)].map(|(id, chunk)| {
        let s = w.add_snapshot(id, chunk, 400, "P", false);
        w.add_actor(PortRole::View(s))
    });
    assert_eq!(w.write(a, 10, 3, 900), Status::Ok);
    assert_eq!(w.write(b, 16, 16, 901), Status::Ok);
    assert_eq!(w.write(origin, 11, 8, 902), Status::Ok);
    let [mut of_a, mut of_b, mut of_origin] = [numbers(64), numbers(64), numbers(64)];
    of_a[10..13].fill(900);
    of_b[16..32].fill(901);
    of_origin[11..19].fill(902);
    assert_eq!(w.read(a, 0, 64).unwrap(), of_a);
    assert_eq!(w.read(b, 0, 64).unwrap(), of_b);
    assert_eq!(w.read(origin, 0, 64).unwrap(), of_origin);
    assert_eq!(origin_now(&w), of_origin);
}

/// N04.
#[test]
fn a_rewrite_goes_in_place_and_writes_no_metadata() {
    let (mut w, _) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    w.write(view, 8, 8, 900);
    submitted(&w);
    w.write(view, 10, 2, 901);
    let log = submitted(&w);
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!((log[0].device, log[0].len), (w.cows[&s], 2 * 512));
    assert_eq!(log[0].offset, (2 * 8 + 2) * 512, "in chunk 2 of the COW");
}

/// N05, B8.
#[test]
fn writers_of_one_chunk_share_one_exception_and_keep_all_data() {
    for seed in 0..30 {
        let mut w = World::new(seed, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 32, 400, "P", false);
        let views = [(); 2].map(|()| w.add_actor(PortRole::View(s)));
        for n in 0..8 {
            let at = (u64::from(n) * 4, 4);
            start_write(&mut w, views[usize::from(n % 2)], n, at, 900 + u64::from(n));
        }
        start_write(&mut w, origin, 1, (0, 32), 999);
        w.settle();
        assert_done(&mut w, views[0], [0, 2, 4, 6]);
        assert_done(&mut w, views[1], [1, 3, 5, 7]);
        assert_done(&mut w, origin, [1]);
        let mut expected: Vec<u64> = (0..32).map(|n| 900 + n / 4).collect();
        expected.extend(32..64);
        assert_eq!(w.read(views[0], 0, 64).unwrap(), expected, "seed {seed}");
        let log = entries(&w.devices, w.origin, w.cows[&s]);
        assert_eq!(log.len(), 1, "seed {seed}: {log:?}");
    }
}

/// N06, B7.
#[test]
fn an_origin_write_waits_for_older_reads_of_the_shared_chunk() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    let read = Request {
        slot: 1,
        kind: RequestKind::Read,
        sector: 8,
        sectors: 8,
    };
    w.submit(view, read, vec![0; 8 * 512]);
    start_write(&mut w, origin, 1, (8, 8), 900);
    w.settle_without(&[view]);
    assert_done(&mut w, origin, []);
    assert_eq!(origin_now(&w), numbers(64), "overtaken");
    w.settle();
    assert_done(&mut w, view, [1]);
    assert_done(&mut w, origin, [1]);
    assert_eq!(stamps_from(8, w.actors[view].data(1)), numbers(16)[8..]);
}

/// The chunks on both sides of the pending one get neighbouring COW chunks, but are
/// not neighbours in the view.
#[test]
fn a_write_around_a_pending_chunk_puts_every_chunk_in_its_place() {
    for pending in 0..4 {
        let (mut w, _) = world(64);
        let s = w.add_snapshot(1, 8, 400, "P", false);
        let first = w.add_actor(PortRole::View(s));
        let second = w.add_actor(PortRole::View(s));
        start_write(&mut w, first, 1, (8 * pending, 8), 900);
        start_write(&mut w, second, 1, (0, 32), 901);
        w.settle_without(&[first]);
        assert_done(&mut w, second, []);
        w.settle();
        assert_done(&mut w, first, [1]);
        assert_done(&mut w, second, [1]);
        let mut expected = numbers(64);
        expected[..32].fill(901);
        assert_eq!(w.read(first, 0, 64).unwrap(), expected, "chunk {pending}");
        let store = World::offline_view(&w.devices, w.origin, w.cows[&s]);
        assert_eq!(stamps(&store.unwrap()), expected, "chunk {pending}");
    }
}

/// N07.
#[test]
fn a_flush_makes_every_acknowledged_write_durable() {
    let (mut w, _) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", true);
    let view = w.add_actor(PortRole::View(s));
    w.write(view, 0, 8, 900);
    w.write(view, 17, 3, 901);
    w.flush(view);
    w.write(view, 2, 2, 902); // in place
    w.write(view, 40, 1, 903); // another chunk
    assert_eq!(w.flush(view), Status::Ok);
    let crashed = w.devices.crash(Keep::Nothing);
    let after = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
    assert_eq!(stamps(&after), w.read(view, 0, 64).unwrap());
    assert_eq!(stamps(&after)[..5], [900, 900, 902, 902, 900]);
}

/// N08: on every view, for new and old chunks, without any flush.
#[test]
fn a_durable_write_survives_power_loss_by_itself() {
    let kind = RequestKind::Write { durable: true };
    for defer in [false, true] {
        let (mut w, origin) = world(64);
        let s = w.add_snapshot(1, 8, 400, "P", defer);
        let view = w.add_actor(PortRole::View(s));
        let cow = w.cows[&s];
        for (n, (sector, sectors)) in [(8, 8), (17, 2), (10, 1), (30, 20)].into_iter().enumerate() {
            let stamp = 900 + n as u64;
            let (status, _) = w.wait_for(view, kind, sector, data_of(sector, sectors, stamp));
            assert_eq!(status, Status::Ok);
            let crashed = w.devices.crash(Keep::Nothing);
            let after = World::offline_view(&crashed, w.origin, cow).unwrap();
            assert_eq!(stamps(&after)[sector as usize], stamp, "defer {defer}");
        }
        let (status, _) = w.wait_for(origin, kind, 50, data_of(50, 2, 950));
        assert_eq!(status, Status::Ok);
        let crashed = w.devices.crash(Keep::Nothing);
        assert_eq!(stamps(&crashed.current(w.origin))[50..52], [950; 2]);

        w.merge_background = false;
        hand_over(&mut w, s, MergeWrites::Redirect);
        for (sector, stamp) in [(9, 960), (60, 961)] {
            w.wait_for(origin, kind, sector, data_of(sector, 1, stamp));
            let crashed = w.devices.crash(Keep::Nothing);
            let after = World::offline_view(&crashed, w.origin, cow).unwrap();
            assert_eq!(stamps(&after)[sector as usize], stamp, "defer {defer}");
        }
    }
}

/// N10, S06.
#[test]
fn an_invalid_snapshot_answers_errors_and_its_origin_lives() {
    for loaded in [false, true] {
        let (mut w, origin) = world(64);
        let s = ViewId(1);
        if loaded {
            let mut store = w.new_store(s, 8, 400, "P", false);
            store.valid = false;
            store.metadata = Metadata::fresh(Layout::new(ChunkSize::new(8).unwrap()), 400, 512);
            let store = Box::new(store);
            w.control_wait(ControlRequest::AddSnapshot { snapshot: s, store })
                .unwrap();
        } else {
            w.add_snapshot(1, 8, 32, "P", false);
            w.write(origin, 0, 64, 900);
        }
        let view = w.add_actor(PortRole::View(s));
        assert_eq!(w.read(view, 0, 1), Err(Status::IoError));
        assert_eq!(w.write(view, 0, 1, 901), Status::IoError);
        assert_eq!(w.write(view, 8, 8, 901), Status::IoError);
        assert_eq!(state_of(&w, s), SnapshotState::Invalid);
        submitted(&w);
        assert_eq!(w.write(origin, 3, 1, 902), Status::Ok);
        assert_eq!(submitted(&w).len(), 1, "no copies for it");
    }
}

/// N12, N13, B18.
#[test]
fn overflow_by_its_guest_keeps_a_po_store_and_a_copy_out_without_room_ends_it() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 32, "PO", false);
    let view = w.add_actor(PortRole::View(s));
    w.write(view, 0, 8, 900);
    w.write(view, 8, 8, 901);
    assert_eq!(w.write(view, 16, 8, 902), Status::IoError);
    w.settle();
    assert_eq!(state_of(&w, s), SnapshotState::Overflow);
    let notice = Notice::Overflow { snapshot: s };
    assert!(w.actors[NOTICES].notices.contains(&notice));
    let seen = w.read(view, 0, 64).unwrap();
    let store = World::offline_view(&w.devices, w.origin, w.cows[&s]);
    assert_eq!(stamps(&store.unwrap()), seen);
    // Chunks that are in the COW need no more room.
    assert_eq!(w.write(origin, 0, 8, 903), Status::Ok);
    assert_eq!(w.read(view, 0, 64).unwrap(), seen);
    assert_eq!(w.write(origin, 24, 1, 904), Status::Ok);
    assert_eq!(w.read(view, 0, 1), Err(Status::IoError));
    assert_eq!(state_of(&w, s), SnapshotState::Invalid);
    assert!(World::offline_view(&w.devices, w.origin, w.cows[&s]).is_none());
}

/// N14, N20.
#[test]
fn growth_clears_the_overflow_and_keeps_the_content() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 32, "PO", false);
    let view = w.add_actor(PortRole::View(s));
    w.write(view, 0, 8, 900);
    w.write(origin, 8, 1, 901);
    assert_eq!(w.write(view, 16, 8, 902), Status::IoError);
    w.devices.resize(w.cows[&s], 400);
    let cow_sectors = 400;
    w.control_wait(ControlRequest::Grow {
        snapshot: s,
        cow_sectors,
    })
    .unwrap();
    assert_eq!(state_of(&w, s), SnapshotState::Active);
    assert_eq!(w.write(view, 16, 8, 902), Status::Ok);
    assert_eq!(w.write(origin, 24, 40, 903), Status::Ok);
    let mut expected = numbers(64);
    expected[..8].fill(900);
    expected[16..24].fill(902);
    assert_eq!(w.read(view, 0, 64).unwrap(), expected);

    let crashed = w.devices.crash(Keep::Nothing);
    let mut again = restart(crashed, w.origin, &[(s, w.cows[&s])]);
    let view = again.add_actor(PortRole::View(s));
    assert_eq!(again.read(view, 0, 64).unwrap(), expected);
}

/// S23.
#[test]
fn a_transient_snapshot_writes_nothing_but_data_from_chunk_zero() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "N", false);
    submitted(&w);
    w.write(origin, 16, 1, 900);
    w.write(origin, 8, 1, 901);
    let log = submitted(&w);
    let cow: Vec<(LoggedKind, u64, u64)> = log
        .iter()
        .filter(|l| l.device == w.cows[&s])
        .map(|l| (l.kind, l.offset, l.len))
        .collect();
    let write = LoggedKind::Write { durable: false };
    assert_eq!(cow, [(write, 0, 4096), (write, 4096, 4096)]);
    let usage = w.engine.status().snapshots[0].usage;
    assert_eq!([usage.allocated, usage.metadata], [16, 0]);
}
