//! The basic guarantees of copy-out, snapshot writes, overflow, merge and removal,
//! one test each.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::{Keep, LoggedEvent, LoggedKind};

#[test]
fn a_snapshot_keeps_what_the_origin_held_at_the_cut() {
    let (mut w, origin) = world(100);
    w.write(origin, 3, 2, 900);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    assert_eq!(w.write(origin, 0, 100, 901), Status::Ok);
    let mut expected: Vec<u64> = (0..100).collect();
    expected[3] = 900;
    expected[4] = 900;
    assert_eq!(w.read(view, 0, 100).unwrap(), expected);
    assert_eq!(w.read(origin, 0, 100).unwrap(), vec![901; 100]);
    let offline = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
    assert_eq!(stamps_from(0, &offline), expected);
}

#[test]
fn one_origin_read_serves_all_snapshots() {
    let (mut w, origin) = world(64);
    for id in 1..=3 {
        w.add_snapshot(id, 8, 400, "P", false);
    }
    w.devices.take_log();
    w.write(origin, 8, 1, 900);
    let reads = w
        .devices
        .take_log()
        .iter()
        .filter(|l| {
            l.event == LoggedEvent::Submitted && l.kind == LoggedKind::Read && l.device == w.origin
        })
        .count();
    assert_eq!(reads, 1);
}

#[test]
fn the_second_write_to_a_chunk_costs_nothing() {
    let (mut w, origin) = world(64);
    w.add_snapshot(1, 8, 400, "P", false);
    w.write(origin, 8, 8, 900);
    w.devices.take_log();
    w.write(origin, 8, 8, 901);
    let submitted = w
        .devices
        .take_log()
        .iter()
        .filter(|l| l.event == LoggedEvent::Submitted)
        .count();
    assert_eq!(submitted, 1);
}

#[test]
fn a_whole_chunk_snapshot_write_reads_nothing_and_a_partial_one_writes_once() {
    let (mut w, _) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    w.devices.take_log();
    w.write(view, 8, 8, 900);
    let log: Vec<_> = w
        .devices
        .take_log()
        .into_iter()
        .filter(|l| l.event == LoggedEvent::Submitted)
        .collect();
    assert!(log.iter().all(|l| l.kind != LoggedKind::Read), "{log:?}");
    w.write(view, 17, 2, 901);
    let log: Vec<_> = w
        .devices
        .take_log()
        .into_iter()
        .filter(|l| l.event == LoggedEvent::Submitted)
        .collect();
    let data_writes = log
        .iter()
        .filter(|l| l.kind == LoggedKind::Write { durable: false })
        .count();
    assert_eq!(data_writes, 1, "{log:?}");
    assert_eq!(w.read(view, 15, 6).unwrap(), [900, 16, 901, 901, 19, 20]);
    assert_eq!(w.read(view, 8, 8).unwrap(), vec![900; 8]);
}

#[test]
fn copies_of_one_guest_write_share_one_commit() {
    let (mut w, origin) = world(256);
    let s = w.add_snapshot(1, 8, 800, "P", false);
    w.devices.take_log();
    w.write(origin, 0, 128, 900);
    let flushes = w
        .devices
        .take_log()
        .iter()
        .filter(|l| {
            l.event == LoggedEvent::Submitted
                && l.kind == LoggedKind::Flush
                && l.device == w.cows[&s]
        })
        .count();
    assert_eq!(flushes, 1);
}

#[test]
fn a_full_store_is_given_up_durably_before_the_origin_changes() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 32, "P", false); // header, area, two chunks
    let view = w.add_actor(PortRole::View(s));
    assert_eq!(w.write(origin, 0, 1, 900), Status::Ok);
    assert_eq!(w.write(origin, 8, 1, 901), Status::Ok);
    assert_eq!(w.read(view, 8, 1).unwrap(), [8]);
    assert_eq!(w.write(origin, 16, 1, 902), Status::Ok);
    assert_eq!(w.read(view, 0, 1), Err(Status::IoError));
    w.settle();
    assert!(w.actors[NOTICES].notices.iter().any(|n| matches!(
        n,
        Notice::Invalid {
            reason: InvalidReason::Full,
            durable: true,
            ..
        }
    )));
    // Even if power loss takes everything that was not flushed.
    let crashed = w.devices.crash(Keep::Nothing);
    assert!(
        World::offline_view(&crashed, w.origin, w.cows[&s]).is_none(),
        "the header still says valid"
    );
}

#[test]
fn overflow_by_its_own_write_leaves_po_readable_and_ends_p() {
    for kind in ["P", "PO", "N"] {
        let (mut w, _) = world(64);
        let s = w.add_snapshot(1, 8, 32, kind, false);
        let view = w.add_actor(PortRole::View(s));
        let room = if kind == "N" { 4 } else { 2 };
        for n in 0..room {
            assert_eq!(w.write(view, n * 8, 8, 900 + n), Status::Ok, "{kind} {n}");
        }
        assert_eq!(w.write(view, 56, 8, 999), Status::IoError);
        let read = w.read(view, 0, 8);
        let state = w.engine.status().snapshots[0].state;
        if kind == "PO" {
            assert_eq!(read.unwrap(), vec![900; 8]);
            assert_eq!(
                w.write(view, 0, 8, 998),
                Status::IoError,
                "all later writes fail"
            );
            assert_eq!(state, SnapshotState::Overflow);
            w.devices.resize(w.cows[&s], 400);
            w.control_wait(ControlRequest::Grow {
                snapshot: s,
                cow_sectors: 400,
            })
            .unwrap();
            assert_eq!(
                w.write(view, 56, 8, 999),
                Status::Ok,
                "growth clears the overflow"
            );
        } else {
            assert_eq!(read, Err(Status::IoError));
            assert_eq!(state, SnapshotState::Invalid);
        }
    }
}

#[test]
fn a_deferred_snapshot_write_is_durable_after_a_flush_and_before_an_origin_write() {
    for by_flush in [true, false] {
        let (mut w, origin) = world(64);
        let s = w.add_snapshot(1, 8, 400, "P", true);
        let view = w.add_actor(PortRole::View(s));
        w.write(view, 8, 8, 900);
        let before = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
        assert_eq!(stamp_of(8, &before[8 * 512..][..512]), 8, "deferred");
        if by_flush {
            w.flush(view);
        } else {
            w.write(origin, 8, 8, 901);
            w.flush(origin);
        }
        let crashed = w.devices.crash(Keep::Nothing);
        let after = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
        assert_eq!(
            stamp_of(8, &after[8 * 512..][..512]),
            900,
            "by flush: {by_flush}"
        );
    }
}

#[test]
fn a_merge_ends_with_the_snapshot_in_the_origin_and_an_empty_store() {
    for writes in [MergeWrites::Wait, MergeWrites::Redirect] {
        let (mut w, origin) = world(203);
        let s = w.add_snapshot(1, 8, 2000, "P", false);
        let other = w.add_snapshot(2, 32, 2000, "P", false);
        let other_view = w.add_actor(PortRole::View(other));
        w.write(origin, 5, 190, 900);
        w.control_wait(ControlRequest::Handover {
            snapshot: s,
            writes,
            follow: false,
        })
        .unwrap();
        assert_eq!(
            w.read(origin, 0, 203).unwrap(),
            (0..203).collect::<Vec<u64>>()
        );
        w.settle();
        assert!(w.engine.status().merge.is_none());
        assert_eq!(
            stamps_from(0, &w.devices.current(w.origin)),
            (0..203).collect::<Vec<u64>>()
        );
        assert_eq!(
            w.read(other_view, 0, 203).unwrap(),
            (0..203).collect::<Vec<u64>>()
        );
        let empty = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
        assert_eq!(empty, w.devices.current(w.origin));
        assert!(
            w.actors[NOTICES]
                .notices
                .contains(&Notice::MergeDone { snapshot: s })
        );
        // The view continues as an origin view, and the other snapshot stays exact.
        assert_eq!(w.write(origin, 0, 203, 901), Status::Ok);
        assert_eq!(
            w.read(other_view, 0, 203).unwrap(),
            (0..203).collect::<Vec<u64>>()
        );
    }
}

#[test]
fn a_write_to_an_unmerged_chunk_jumps_the_queue_even_when_paused() {
    let (mut w, origin) = world(2048);
    let s = w.add_snapshot(1, 8, 8000, "P", false);
    w.write(origin, 0, 2048, 900);
    w.merge_background = false;
    w.control_wait(ControlRequest::Handover {
        snapshot: s,
        writes: MergeWrites::Wait,
        follow: false,
    })
    .unwrap();
    w.control_wait(ControlRequest::PauseMerge).unwrap();
    assert_eq!(w.write(origin, 801, 3, 901), Status::Ok);
    assert_eq!(w.engine.status().merge.unwrap().chunks_left, 255);
    assert_eq!(w.read(origin, 800, 5).unwrap(), [800, 901, 901, 901, 804]);
    w.merge_background = true;
    w.control_wait(ControlRequest::ResumeMerge).unwrap();
    w.settle();
    let mut expected: Vec<u64> = (0..2048).collect();
    expected[801..804].fill(901);
    assert_eq!(w.read(origin, 0, 2048).unwrap(), expected);
}

#[test]
fn with_follow_the_snapshot_view_goes_on_unnoticed() {
    let (mut w, origin) = world(400);
    let s = w.add_snapshot(1, 8, 2000, "P", false);
    let view = w.add_actor(PortRole::View(s));
    w.write(origin, 0, 200, 900);
    w.write(view, 100, 200, 901);
    let before = w.read(view, 0, 400).unwrap();
    w.control_wait(ControlRequest::Handover {
        snapshot: s,
        writes: MergeWrites::Wait,
        follow: true,
    })
    .unwrap();
    assert_eq!(w.read(view, 0, 400).unwrap(), before);
    assert_eq!(w.write(view, 10, 300, 902), Status::Ok);
    w.settle();
    let mut expected = before;
    expected[10..310].fill(902);
    assert_eq!(w.read(view, 0, 400).unwrap(), expected);
    assert_eq!(w.read(origin, 0, 400).unwrap(), expected);
}

#[test]
fn refusals_leave_everything_as_it_was() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let n = w.add_snapshot(2, 8, 400, "N", false);
    let handover = |snapshot| ControlRequest::Handover {
        snapshot,
        writes: MergeWrites::Wait,
        follow: false,
    };
    assert_eq!(
        w.control_wait(handover(ViewId(9))),
        Err(ControlError::UnknownSnapshot)
    );
    assert_eq!(w.control_wait(handover(n)), Err(ControlError::Transient));
    assert_eq!(
        w.control_wait(ControlRequest::PauseMerge),
        Err(ControlError::NoMerge)
    );
    w.write(origin, 0, 64, 900);
    w.merge_background = false;
    w.control_wait(handover(s)).unwrap();
    assert_eq!(w.control_wait(handover(s)), Err(ControlError::MergeRunning));
    let store = Box::new(w.new_store(ViewId(3), 8, 400, "P", false));
    let add = ControlRequest::AddSnapshot {
        snapshot: ViewId(3),
        store,
    };
    assert_eq!(w.control_wait(add), Err(ControlError::MergeRunning));
    assert_eq!(
        w.control_wait(ControlRequest::RemoveSnapshot {
            snapshot: s,
            force: false
        }),
        Err(ControlError::MergeRunning)
    );
    assert_eq!(w.read(origin, 0, 2).unwrap(), [0, 1]);
}

#[test]
fn a_removed_snapshot_says_so_in_its_header() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    w.write(origin, 0, 8, 900);
    w.control_wait(ControlRequest::RemoveSnapshot {
        snapshot: s,
        force: false,
    })
    .unwrap();
    assert_eq!(w.read(view, 0, 1), Err(Status::IoError));
    assert!(w.engine.status().snapshots.is_empty());
    assert!(World::offline_view(&w.devices, w.origin, w.cows[&s]).is_none());
}
