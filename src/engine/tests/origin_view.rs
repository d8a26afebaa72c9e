//! The origin view, and what its writes leave in the snapshots. The rows named here
//! are those of `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::LoggedKind;
use crate::store;
use crate::units::ChunkSize;

/// O01, O10, B16.
#[test]
fn origin_reads_and_flushes_go_straight_to_the_origin() {
    for snapshots in [0, 2] {
        let (mut w, origin) = world(64);
        for id in 1..=snapshots {
            w.add_snapshot(id, 8, 400, "P", false);
        }
        submitted(&w);
        assert_eq!(w.read(origin, 5, 10).unwrap(), numbers(15)[5..]);
        let log = submitted(&w);
        assert_eq!(log.len(), 1, "{log:?}");
        let read = (log[0].kind, log[0].device, log[0].offset, log[0].len);
        assert_eq!(read, (LoggedKind::Read, w.origin, 5 * 512, 10 * 512));

        w.write(origin, 5, 1, 900);
        submitted(&w);
        assert_eq!(w.flush(origin), Status::Ok);
        let log = submitted(&w);
        assert_eq!(log.len(), 1, "{log:?}");
        assert_eq!((log[0].kind, log[0].device), (LoggedKind::Flush, w.origin));
        let crashed = w.devices.crash(crate::io::sim::Keep::Nothing);
        assert_eq!(stamps(&crashed.current(w.origin))[5], 900);
    }
}

/// O05, B9: two writes are under way in one large chunk of a snapshot; in another
/// snapshot they are in different chunks.
#[test]
fn every_snapshot_keeps_its_chunks_whatever_their_sizes() {
    for seed in 0..20 {
        let mut w = World::new(seed, 100);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let snapshots = [(1, 1), (2, 8), (3, 32)].map(|(id, chunk)| {
            let s = w.add_snapshot(id, chunk, 2000, "P", false);
            w.add_actor(PortRole::View(s))
        });
        start_write(&mut w, origin, 1, (33, 2), 901);
        start_write(&mut w, origin, 2, (40, 3), 902);
        start_write(&mut w, origin, 3, (60, 40), 903);
        w.settle();
        assert_done(&mut w, origin, 1..=3);
        for view in snapshots {
            assert_eq!(w.read(view, 0, 100).unwrap(), numbers(100), "seed {seed}");
        }
        assert_eq!(w.read(origin, 33, 2).unwrap(), [901; 2]);
        assert_eq!(w.read(origin, 40, 3).unwrap(), [902; 3]);
    }
}

/// O08.
#[test]
fn a_snapshot_whose_store_is_full_becomes_invalid_alone_and_is_reported() {
    let (mut w, origin) = world(64);
    let small = w.add_snapshot(1, 8, 32, "P", false);
    let ample = w.add_snapshot(2, 8, 400, "P", false);
    let (small_view, ample_view) = (
        w.add_actor(PortRole::View(small)),
        w.add_actor(PortRole::View(ample)),
    );
    assert_eq!(w.write(origin, 0, 64, 900), Status::Ok);
    w.settle();
    assert_eq!(w.read(small_view, 0, 1), Err(Status::IoError));
    assert_eq!(w.read(ample_view, 0, 64).unwrap(), numbers(64));
    assert_eq!(origin_now(&w), [900; 64]);
    let told: Vec<SnapshotId> = w.actors[NOTICES]
        .notices
        .iter()
        .filter_map(|n| match n {
            Notice::Invalid { snapshot, .. } => Some(*snapshot),
            _ => None,
        })
        .collect();
    assert_eq!(told, [small]);
}

/// N09, O07: the snapshot's view is never opened, and the last chunk is partial.
#[test]
fn a_snapshot_without_a_guest_gets_its_copy_outs() {
    let (mut w, origin) = world(101);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    w.write(origin, 0, 101, 900);
    let view = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
    assert_eq!(stamps(&view), numbers(101));
    assert_eq!(entries(&w.devices, w.origin, w.cows[&s]).len(), 13);
}

/// S18, S20, S21, B4: checked after every step, for several kinds of power loss.
#[test]
fn the_origin_changes_only_when_copy_and_entry_are_durable() {
    for seed in 0..4 {
        let mut w = World::new(seed, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 4, 400, "P", false);
        for n in (0..8).rev() {
            start_write(&mut w, origin, n, (u64::from(n) * 8, 3), 900 + u64::from(n));
        }
        let mut origin_changed_under_way = false;
        for step in 0..4000 {
            w.advance();
            for keep in cuts(step) {
                let crashed = w.devices.crash(keep);
                let view = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
                assert_eq!(stamps(&view), numbers(64), "seed {seed}, step {step}");
                // Entries are in the order of allocation, without a gap.
                let log = entries(&crashed, w.origin, w.cows[&s]);
                let news: Vec<u64> = log.iter().map(|e| e.new).collect();
                assert_eq!(news, (2..2 + log.len() as u64).collect::<Vec<u64>>());
                origin_changed_under_way |= stamps(&crashed.current(w.origin)) != numbers(64);
            }
            if w.actors[origin].completed.len() == 8 {
                break;
            }
        }
        assert_done(&mut w, origin, 0..8);
        assert!(origin_changed_under_way, "nothing was seen");
    }
}

/// S12, B3: the COW is full of noise, so an area that is not cleared in time would be
/// read as entries.
#[test]
fn the_next_area_is_clear_before_an_area_is_full() {
    let (mut w, origin) = world(80);
    let s = w.add_snapshot(1, 1, 400, "P", false);
    start_write(&mut w, origin, 1, (0, 30), 900);
    w.settle();
    start_write(&mut w, origin, 2, (30, 50), 901);
    let mut steps = 0;
    while w.actors[origin].completed.len() < 2 {
        w.advance();
        steps += 1;
        for keep in cuts(steps) {
            let crashed = w.devices.crash(keep);
            let view = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
            assert_eq!(stamps(&view), numbers(80), "step {steps}");
        }
    }
    assert_eq!(entries(&w.devices, w.origin, w.cows[&s]).len(), 80);
}

/// S19.
#[test]
fn writes_at_once_share_their_commits() {
    let (mut w, origin) = world(256);
    let s = w.add_snapshot(1, 8, 800, "P", false);
    submitted(&w);
    for n in 0..12 {
        start_write(&mut w, origin, n, (u64::from(n) * 16, 1), 900);
    }
    // All copies end before the first commit can end.
    w.settle_without(&[]);
    assert_done(&mut w, origin, 0..12);
    let log = submitted(&w);
    let commits = count(&log, LoggedKind::Write { durable: true }, w.cows[&s]);
    assert!(
        (1..=4).contains(&commits),
        "{commits} commits for 12 writes"
    );
}

/// O12, B27: without a suspend step, whatever chunk size other snapshots have.
#[test]
fn a_snapshot_taken_under_io_loses_no_chunk_and_is_consistent() {
    for seed in 0..40 {
        let mut w = World::new(seed, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        if seed % 2 == 0 {
            w.add_snapshot(9, 32, 400, "P", false);
        }
        start_write(&mut w, origin, 1, (0, 64), 900);
        for _ in 0..seed {
            w.step();
        }
        let s = w.add_snapshot(1, 1, 400, "P", false);
        start_write(&mut w, origin, 2, (0, 64), 901);
        w.settle();
        assert_done(&mut w, origin, 1..=2);
        let view = w.add_actor(PortRole::View(s));
        let seen = w.read(view, 0, 64).unwrap();
        assert!(
            seen == vec![900; 64] || seen == numbers(64),
            "seed {seed}: {seen:?}"
        );
        // A snapshot is removed while a write waits for its copy-outs.
        start_write(&mut w, origin, 3, (0, 64), 902);
        w.control_wait(ControlRequest::RemoveSnapshot {
            snapshot: s,
            force: false,
        })
        .unwrap();
        w.settle();
        assert_done(&mut w, origin, [3]);
        assert_eq!(origin_now(&w), [902; 64]);
    }
}

/// B11: a queue with one request at a time, while snapshots are added and removed.
#[test]
fn a_queue_of_one_request_never_blocks_adding_and_removing_snapshots() {
    let (mut w, origin) = world(64);
    for round in 0..20 {
        start_write(&mut w, origin, 1, (round, 40), 900 + round);
        let s = w.add_snapshot(u32::try_from(round).unwrap() + 1, 8, 400, "P", false);
        w.settle();
        assert_done(&mut w, origin, [1]);
        start_write(&mut w, origin, 1, (round, 8), 950 + round);
        w.control_wait(ControlRequest::RemoveSnapshot {
            snapshot: s,
            force: false,
        })
        .unwrap();
        w.settle();
        assert_done(&mut w, origin, [1]);
    }
}

/// B17.
#[test]
fn dropping_a_large_snapshot_stalls_nobody() {
    const EXCEPTIONS: u64 = 20_000;
    let (mut w, origin) = world(EXCEPTIONS);
    let device = w.devices.add(64, crate::io::sim::Fill::Noise);
    let layout = store::Layout::new(ChunkSize::new(1).unwrap());
    let mut metadata = store::Metadata::fresh(layout, 2 * EXCEPTIONS, 512);
    let log: Vec<store::Entry> = (0..EXCEPTIONS)
        .map(|old| store::Entry {
            old,
            new: metadata.allocate().unwrap(),
        })
        .collect();
    metadata.apply_append(&log);
    let store = Box::new(SnapshotStore {
        device,
        metadata,
        sectors: EXCEPTIONS,
        keep_on_overflow: false,
        valid: true,
        marked: false,
        record: None,
        discards: Discards::default(),
        zero_ahead: 0,
    });
    let snapshot = ViewId(1);
    w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
        .unwrap();
    submitted(&w);
    w.control(
        1,
        ControlRequest::RemoveSnapshot {
            snapshot,
            force: false,
        },
    );
    assert_eq!(w.write(origin, 7, 1, 900), Status::Ok);
    w.settle();
    assert_eq!(w.actors[CONTROL].control_done, [(1, Ok(()))]);
    let log = submitted(&w);
    assert!(log.len() <= 4, "nothing for each exception: {log:?}");
}
