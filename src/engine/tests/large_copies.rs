//! Copies larger than one piece (1 MiB), and more copy-outs than may be under way at
//! once (16 MiB).

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::{Fill, LoggedKind};
use crate::store;
use crate::units::ChunkSize;

/// In sectors.
const MIB: u64 = 2048;
/// Chunks of two pieces.
const CHUNK: u64 = 2 * MIB;

/// Each first write takes a whole chunk, so that few of them reach the limit.
#[test]
fn copy_outs_that_wait_for_room_get_it_and_all_writes_end() {
    let chunks = 14;
    let (mut w, origin) = world(chunks * CHUNK);
    let s = w.add_snapshot(1, CHUNK, (chunks + 3) * CHUNK, "P", false);
    submitted(&w);
    let mut expected = numbers(chunks * CHUNK);
    for n in 0..chunks {
        let sector = n * CHUNK + 5;
        start_write(&mut w, origin, n as Slot, (sector, 3), 900 + n);
        expected[sector as usize..][..3].fill(900 + n);
    }
    let log = submitted(&w);
    assert!(log.iter().all(|l| l.kind == LoggedKind::Read));
    let under_way: u64 = log.iter().map(|l| l.len).sum();
    assert_eq!(under_way, 16 << 20, "bytes of copy-out at once");
    w.settle();
    assert_done(&mut w, origin, 0..chunks as Slot);
    let view = w.add_actor(PortRole::View(s));
    let shown = w.read(view, 0, chunks * CHUNK).unwrap();
    assert!(shown == numbers(chunks * CHUNK));
    assert!(origin_now(&w) == expected);
}

/// Small chunks of the merging snapshot lie in different large ones of another.
#[test]
fn a_merge_batch_that_waits_for_room_for_copy_outs_gets_it() {
    let chunks = 12;
    let (mut w, origin) = world(chunks * CHUNK);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let mut kept = numbers(chunks * CHUNK);
    for n in 0..chunks {
        assert_eq!(w.write(origin, n * CHUNK, 1, 900), Status::Ok);
        kept[(n * CHUNK) as usize] = 900;
    }
    let other = w.add_snapshot(2, CHUNK, (chunks + 3) * CHUNK, "P", false);
    w.merge_bytes = 1 << 20;
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    assert!(w.engine.status().merge.is_none(), "the merge does not end");
    assert!(origin_now(&w) == numbers(chunks * CHUNK));
    let view = w.add_actor(PortRole::View(other));
    assert!(w.read(view, 0, chunks * CHUNK).unwrap() == kept);
}

/// The second chunk is a part of one.
#[test]
fn every_piece_of_a_chunk_is_copied_before_its_origin_changes() {
    let sectors = CHUNK + MIB + 16;
    for seed in 0..3 {
        let mut w = World::new(seed, sectors);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, CHUNK, 6 * CHUNK, "P", false);
        start_write(&mut w, origin, 1, (CHUNK - 8, 16), 900);
        let mut step = 0;
        while w.actors[origin].completed.is_empty() {
            w.advance();
            step += 1;
            for keep in cuts(step) {
                let crashed = w.devices.crash(keep);
                let view = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
                assert!(stamps(&view) == numbers(sectors), "{seed}, step {step}");
            }
        }
        assert_done(&mut w, origin, [1]);
    }
}

/// Such a chunk is copied out first and then written in place.
#[test]
fn a_write_to_a_part_of_a_large_chunk_ends_when_its_data_is_written() {
    for defer in [false, true] {
        let (mut w, _) = world(3 * CHUNK);
        let s = w.add_snapshot(1, CHUNK, 6 * CHUNK, "P", defer);
        let view = w.add_actor(PortRole::View(s));
        let mut expected = numbers(3 * CHUNK);
        // Two parts with a whole chunk between them, then one within a chunk.
        for (sector, sectors, stamp) in [(CHUNK - 3, CHUNK + 6, 901), (5, 3, 902)] {
            assert_eq!(w.write(view, sector, sectors, stamp), Status::Ok);
            expected[sector as usize..][..sectors as usize].fill(stamp);
            let shown = w.read(view, 0, 3 * CHUNK).unwrap();
            assert!(shown == expected, "deferred: {defer}, write {stamp}");
            if defer {
                assert_eq!(w.flush(view), Status::Ok);
            }
            let dead = w.devices.process_death(stamp);
            let kept = World::offline_view(&dead, w.origin, w.cows[&s]).unwrap();
            assert!(stamps(&kept) == expected, "deferred: {defer}, {stamp}");
        }
    }
}

/// The COW is full of noise, and an area as large as a chunk is cleared in pieces.
#[test]
fn an_area_of_many_pieces_is_clear_before_the_one_before_it_is_full() {
    let (mut w, origin) = world(2 * CHUNK);
    let snapshot = ViewId(1);
    let cow_sectors = 8 * CHUNK;
    let device = w.devices.add(cow_sectors, Fill::Noise);
    let layout = store::Layout::with_short_areas(ChunkSize::new(CHUNK).unwrap(), 2);
    let disk = &mut w.devices.disk();
    let metadata = store::create_as(disk, device, layout, cow_sectors, 512).unwrap();
    let store = Box::new(SnapshotStore {
        metadata,
        ..w.new_store(snapshot, 8, 400, "P", false)
    });
    let store = Box::new(SnapshotStore { device, ..*store });
    w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
        .unwrap();
    assert_eq!(w.write(origin, 0, 1, 900), Status::Ok);
    start_write(&mut w, origin, 1, (CHUNK, 1), 901);
    let (bytes, mut step, mut full) = (CHUNK as usize * 512, 0, 0);
    while w.actors[origin].completed.is_empty() {
        w.advance();
        step += 1;
        for keep in cuts(step) {
            let image = w.devices.crash(keep).current(device);
            // Header, area 0 of two entries, two data chunks, area 1.
            if image[bytes + 16..bytes + 32] != [0; 16] {
                full += 1;
                let next = &image[4 * bytes..5 * bytes];
                assert!(next.iter().all(|b| *b == 0), "step {step}, {keep:?}");
            }
        }
    }
    assert_done(&mut w, origin, [1]);
    assert!(full > 0, "the area was never full");
}

#[test]
fn a_run_longer_than_a_piece_is_merged_whole_whatever_its_chunks() {
    for chunk in [8, 16, 128, CHUNK] {
        let sectors = 3 * MIB + 24;
        let (mut w, origin) = world(sectors);
        let s = w.add_snapshot(1, chunk, 6 * CHUNK, "P", false);
        assert_eq!(w.write(origin, 0, sectors, 900), Status::Ok);
        submitted(&w);
        w.merge_bytes = 16 << 20;
        hand_over(&mut w, s, MergeWrites::Wait);
        w.settle();
        assert!(w.engine.status().merge.is_none());
        assert!(origin_now(&w) == numbers(sectors), "chunks of {chunk}");
        let write = LoggedKind::Write { durable: false };
        let log = submitted(&w).into_iter();
        let copies = log.filter(|l| l.device == w.origin && l.kind == write);
        let mut lengths: Vec<u64> = copies.map(|l| l.len / 512).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [24, MIB, MIB, MIB], "chunks of {chunk}");
    }
}
