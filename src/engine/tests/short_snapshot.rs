//! O06: snapshots that are shorter than their origin, because it grew after they
//! were taken.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::store::Entry;

/// Sectors of the origin and of the snapshot, which ends within its chunk 2.
const ORIGIN: u64 = 64;
const LENGTH: u64 = 20;
const CHUNK: u64 = 8;

fn shorter() -> (World, usize, SnapshotId, usize) {
    let (mut w, origin) = world(ORIGIN);
    let s = w.add_shorter(1, CHUNK, LENGTH, "P");
    let view = w.add_actor(PortRole::View(s));
    (w, origin, s, view)
}

fn used(w: &World, s: SnapshotId) -> u64 {
    let status = w.engine.status();
    let of = status.snapshots.iter().find(|x| x.snapshot == s).unwrap();
    of.usage.allocated
}

#[test]
fn a_snapshot_keeps_its_length_whatever_the_origin_has_behind_it() {
    let (mut w, _, _, view) = shorter();
    assert_eq!(w.read(view, 0, LENGTH).unwrap(), numbers(LENGTH));
    assert_eq!(w.write(view, LENGTH - 1, 1, 800), Status::Ok);
    submitted(&w);
    for (sector, sectors) in [(LENGTH, 1), (LENGTH - 1, 2), (24, 8), (ORIGIN - 1, 1)] {
        assert_eq!(w.read(view, sector, sectors), Err(Status::IoError));
        assert_eq!(w.write(view, sector, sectors, 801), Status::IoError);
    }
    assert_eq!(submitted(&w).len(), 0, "nothing was touched");
    assert_eq!(w.read(view, LENGTH - 1, 1).unwrap(), [800]);
}

#[test]
fn origin_writes_behind_a_snapshots_end_take_no_room_of_it() {
    let (mut w, origin, s, view) = shorter();
    let before = used(&w, s);
    submitted(&w);
    // From the snapshot's end, which is within its last chunk, to the origin's end.
    assert_eq!(w.write(origin, LENGTH, ORIGIN - LENGTH, 900), Status::Ok);
    let log = submitted(&w);
    assert_eq!(log.len(), 1, "one write and nothing else: {log:?}");
    assert_eq!(used(&w, s), before);
    // A write that begins before its end copies the whole chunk, up to the origin's end.
    assert_eq!(w.write(origin, LENGTH - 1, 8, 901), Status::Ok);
    let kept = [Entry { old: 2, new: 2 }];
    assert_eq!(entries(&w.devices, w.origin, w.cows[&s]), kept);
    let copy = w.devices.read_now(w.cows[&s], 2 * CHUNK * 512, CHUNK * 512);
    assert_eq!(stamps_from(16, &copy), [16, 17, 18, 19, 900, 900, 900, 900]);
    assert_eq!(w.read(view, 0, LENGTH).unwrap(), numbers(LENGTH));
}

/// The store has room for the whole snapshot, but not for the whole origin.
#[test]
fn a_store_with_room_for_its_snapshot_is_never_ended_by_what_lies_behind() {
    let (mut w, origin) = world(ORIGIN);
    for (id, kind, cow_sectors) in [(1, "P", 6 * CHUNK), (2, "N", 3 * CHUNK)] {
        let snapshot = ViewId(id);
        let mut store = w.new_store(snapshot, CHUNK, cow_sectors, kind, false);
        store.sectors = LENGTH;
        let store = Box::new(store);
        w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
            .unwrap();
    }
    for at in (0..ORIGIN / 4).rev().map(|n| 4 * n) {
        assert_eq!(w.write(origin, at, 4, 900 + at), Status::Ok);
    }
    for id in [1, 2] {
        assert_eq!(state_of(&w, ViewId(id)), SnapshotState::Active);
        let view = w.add_actor(PortRole::View(ViewId(id)));
        assert_eq!(w.read(view, 0, LENGTH).unwrap(), numbers(LENGTH));
    }
}

/// At every step of the merge the view shows the snapshot up to its end, and the
/// origin beyond.
#[test]
fn a_merge_touches_nothing_behind_the_snapshots_end() {
    for writes in [MergeWrites::Wait, MergeWrites::Redirect] {
        let (mut w, origin, s, _) = shorter();
        let other = w.add_snapshot(2, 1, 1000, "P", false);
        assert_eq!(w.write(origin, 0, LENGTH, 900), Status::Ok);
        assert_eq!(w.write(origin, LENGTH, ORIGIN - LENGTH, 901), Status::Ok);
        w.merge_bytes = CHUNK * 512;
        w.merge_background = false;
        hand_over(&mut w, s, writes);
        let mut expected = numbers(LENGTH);
        expected.resize(ORIGIN as usize, 901);
        assert_eq!(w.read(origin, 0, ORIGIN).unwrap(), expected);
        // Beyond the end it is an origin write, even in a chunk that is still to be merged.
        submitted(&w);
        assert_eq!(w.write(origin, LENGTH, 2, 902), Status::Ok);
        assert_eq!(submitted(&w).len(), 1);
        // A write across the end is both.
        assert_eq!(w.write(origin, LENGTH - 2, 3, 903), Status::Ok);
        expected[LENGTH as usize..][..2].fill(902);
        expected[LENGTH as usize - 2..][..3].fill(903);
        assert_eq!(w.read(origin, 0, ORIGIN).unwrap(), expected);
        w.merge_background = true;
        w.settle();
        assert!(w.engine.status().merge.is_none());
        assert_eq!(origin_now(&w), expected, "{writes:?}");
        let view = w.add_actor(PortRole::View(other));
        assert_eq!(w.read(view, 0, ORIGIN).unwrap(), numbers(ORIGIN));
    }
}

/// Linux accepts entries beyond the end of a short table, and never shows them.
#[test]
fn entries_behind_the_end_are_loaded_and_neither_shown_nor_merged() {
    let (mut w, origin) = world(ORIGIN);
    let s = ViewId(1);
    let long = w.new_store(s, CHUNK, 1000, "P", false);
    w.control_wait(ControlRequest::AddSnapshot {
        snapshot: s,
        store: Box::new(long),
    })
    .unwrap();
    assert_eq!(w.write(origin, 0, ORIGIN, 900), Status::Ok);
    let device = w.cows[&s];
    let mut w = World::over(w.devices.clone(), w.origin, 3);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    let store = SnapshotStore {
        device,
        metadata: load(&w.devices, w.origin, device).unwrap(),
        sectors: LENGTH,
        keep_on_overflow: false,
        valid: true,
        marked: false,
        record: None,
        discards: Discards::default(),
        zero_ahead: 0,
    };
    w.control_wait(ControlRequest::AddSnapshot {
        snapshot: s,
        store: Box::new(store),
    })
    .unwrap();
    let view = w.add_actor(PortRole::View(s));
    assert_eq!(w.read(view, 0, LENGTH).unwrap(), numbers(LENGTH));
    assert_eq!(w.write(origin, LENGTH, 8, 901), Status::Ok);
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    let mut expected = numbers(LENGTH);
    expected.resize(ORIGIN as usize, 900);
    expected[LENGTH as usize..][..8].fill(901);
    assert_eq!(origin_now(&w), expected);
    assert!(entries(&w.devices, w.origin, device).is_empty());
}
