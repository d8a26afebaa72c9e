//! Merges. The rows named here are those of `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::{Keep, LoggedEvent, LoggedKind};

const DURABLE: LoggedKind = LoggedKind::Write { durable: true };

/// An origin of `sectors` that was overwritten with stamp 900, and snapshot 1 with
/// the copies of all its chunks.
fn overwritten(seed: u64, sectors: u64, chunk: u64) -> (World, usize, SnapshotId) {
    let mut w = World::new(seed, sectors);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    let s = w.add_snapshot(1, chunk, 8 * sectors + 400, "P", false);
    assert_eq!(w.write(origin, 0, sectors, 900), Status::Ok);
    (w, origin, s)
}

fn chunks_left(w: &World) -> u64 {
    w.engine.status().merge.map_or(0, |m| m.chunks_left)
}

/// M02: one commit removes all entries of a batch.
#[test]
fn a_batch_takes_many_runs_from_the_tail() {
    let (mut w, origin) = world(512);
    let s = w.add_snapshot(1, 8, 1000, "P", false);
    for n in 0..16 {
        w.write(origin, n * 32, 1, 900); // no two chunks are neighbours
    }
    let log = entries(&w.devices, w.origin, w.cows[&s]);
    w.merge_bytes = 12 * 4096;
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    submitted(&w);
    w.merge_background = true;
    while submitted(&w).is_empty() {
        w.step_actor(MERGER);
    }
    w.merge_background = false;
    w.settle();
    assert_eq!(chunks_left(&w), 4);
    let left = entries(&w.devices, w.origin, w.cows[&s]);
    assert_eq!(left, log[..4], "the head of the log stays");
    let done = submitted(&w);
    assert_eq!(count(&done, LoggedKind::Flush, w.origin), 1);
    assert_eq!(count(&done, DURABLE, w.cows[&s]), 1, "one commit");
}

/// M02: chunks that are neighbours in both devices are copied in one piece.
#[test]
fn a_run_is_copied_in_one_piece() {
    let (mut w, _, s) = overwritten(7, 128, 8);
    submitted(&w);
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    let write = LoggedKind::Write { durable: false };
    let copies = count(&submitted(&w), write, w.origin);
    // A batch of 16 KiB is 4 chunks; 16 chunks are 4 batches.
    assert_eq!(copies, 4);
}

/// M01, M03, M11, S21, B10: checked after every step. Power loss leaves the
/// snapshot's content, and after a new start the merge ends with it.
#[test]
fn power_may_go_at_any_instant_of_a_merge() {
    for seed in 0..3 {
        let (mut w, origin, s) = overwritten(seed, 70, 1);
        let other = w.add_snapshot(2, 8, 800, "P", false);
        let before = stamps(&w.devices.current(w.origin));
        assert_eq!(before, [900; 70]);
        assert_eq!(w.flush(origin), Status::Ok);
        w.merge_bytes = 11 * 512;
        hand_over(&mut w, s, MergeWrites::Wait);
        let mut step = 0;
        while w.engine.status().merge.is_some() {
            w.advance();
            step += 1;
            for keep in cuts(step) {
                let crashed = w.devices.crash(keep);
                let view = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
                assert_eq!(stamps(&view), numbers(70), "seed {seed}, step {step}");
                let view = World::offline_view(&crashed, w.origin, w.cows[&other]).unwrap();
                assert_eq!(stamps(&view), before, "seed {seed}, step {step}: other");
                if step % 16 == 0 {
                    let cows = [s, other].map(|s| (s, w.cows[&s]));
                    let mut again = restart(crashed, w.origin, &cows);
                    hand_over(&mut again, s, MergeWrites::Wait);
                    again.settle();
                    assert!(again.engine.status().merge.is_none());
                    assert_eq!(origin_now(&again), numbers(70), "seed {seed}, step {step}");
                    let view = again.add_actor(PortRole::View(other));
                    assert_eq!(again.read(view, 0, 70).unwrap(), before);
                }
            }
        }
        assert_eq!(origin_now(&w), numbers(70));
    }
}

/// Chunks that writes wait for are copied in the order in which the writes arrived.
#[test]
fn the_write_that_waits_longest_is_merged_next() {
    let (mut w, origin, s) = overwritten(7, 512, 8);
    w.merge_background = false;
    w.merge_bytes = 4 * 4096;
    hand_over(&mut w, s, MergeWrites::Wait);
    submitted(&w);
    // The highest chunk first, then more lower chunks than three batches hold.
    start_write(&mut w, origin, 0, (63 * 8, 2), 901);
    for slot in 1..13 {
        start_write(&mut w, origin, slot, (u64::from(slot) * 8, 2), 902);
    }
    w.settle();
    let log = submitted(&w).into_iter();
    let copies = log.filter(|l| l.device == w.cows[&s] && l.kind == LoggedKind::Read);
    // The COW chunk of chunk n is n + 2.
    let chunks = copies.flat_map(|l| (0..l.len / 4096).map(move |n| l.offset / 4096 + n - 2));
    let mut chunks: Vec<u64> = chunks.collect();
    for batch in chunks.chunks_mut(4) {
        batch.sort_unstable();
    }
    assert_eq!(chunks, [1, 2, 3, 63, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_done(&mut w, origin, 0..13);
}

/// What a write waits for is its own chunk: of a background batch under way no more is
/// copied than has begun.
#[test]
fn a_write_does_not_wait_for_the_rest_of_a_batch() {
    for chunk in [0, 255] {
        let (mut w, origin) = world(2048);
        let s = w.add_snapshot(1, 8, 4000, "P", false);
        for n in 0..256 {
            w.write(origin, n * 17 % 256 * 8, 1, 900); // no two chunks are neighbours
        }
        w.merge_bytes = 256 * 4096;
        w.merge_background = false;
        hand_over(&mut w, s, MergeWrites::Wait);
        w.merge_background = true;
        submitted(&w);
        while submitted(&w).is_empty() {
            w.step_actor(MERGER);
        }
        w.merge_background = false;
        // Chunk 0 is being copied, chunk 255 is not.
        start_write(&mut w, origin, 1, (chunk * 8 + 1, 2), 901);
        while w.actors[origin].completed.is_empty() {
            assert!(w.advance(), "it waits for ever");
        }
        assert_done(&mut w, origin, [1]);
        let left = chunks_left(&w);
        assert!(left >= 128, "of {chunk}: only {left} chunks are left");
        w.merge_background = true;
        w.settle();
        let mut expected = numbers(2048);
        expected[chunk as usize * 8 + 1..][..2].fill(901);
        assert_eq!(origin_now(&w), expected);
    }
}

/// A write that replaces whole chunks is not preceded by a copy of them.
#[test]
fn a_write_of_whole_chunks_copies_nothing() {
    let (mut w, origin, s) = overwritten(7, 64, 8);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    submitted(&w);
    assert_eq!(w.write(origin, 16, 24, 901), Status::Ok);
    let log = submitted(&w);
    assert_eq!(count(&log, LoggedKind::Read, w.cows[&s]), 0);
    let writes = count(&log, LoggedKind::Write { durable: false }, w.origin);
    let flushes = count(&log, LoggedKind::Flush, w.origin);
    assert_eq!((writes, flushes), (1, 1));
    let left = entries(&w.devices, w.origin, w.cows[&s]);
    assert_eq!(left.len(), 5);
    let mut expected = numbers(64);
    expected[16..40].fill(901);
    assert_eq!(w.read(origin, 0, 64).unwrap(), expected);
}

/// All writes that wait share the flush and the removal.
#[test]
fn the_durable_steps_are_shared_by_all_that_wait() {
    let (mut w, origin, s) = overwritten(7, 512, 8);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    submitted(&w);
    for slot in 0..16 {
        start_write(&mut w, origin, slot, (u64::from(slot) * 8, 8), 901);
    }
    w.settle_without(&[MERGER]); // the guest's data is in the origin
    assert_done(&mut w, origin, []);
    w.settle();
    assert_done(&mut w, origin, 0..16);
    let log = submitted(&w);
    assert_eq!(count(&log, LoggedKind::Flush, w.origin), 1);
    let removal = count(&log, DURABLE, w.cows[&s]);
    assert!(removal <= 3, "{removal} durable writes");
}

/// While a guest has I/O in flight, a merge has little.
#[test]
fn a_merge_beside_a_guest_takes_little_of_the_disk() {
    let (mut w, origin) = world(4096);
    let s = w.add_snapshot(1, 8, 8000, "P", false);
    for n in 0..512 {
        w.write(origin, n * 17 % 512 * 8, 1, 900); // no two chunks are neighbours
    }
    w.merge_bytes = 512 * 4096;
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    submitted(&w);
    let request = Request {
        slot: 1,
        kind: RequestKind::Read,
        sector: 0,
        sectors: 1,
    };
    w.submit(origin, request, vec![0; 512]);
    w.merge_background = true;
    let copies = |w: &World| {
        let log = submitted(w).into_iter();
        log.filter(|l| l.device == w.cows[&s] && l.len == 4096)
            .count()
    };
    while chunks_left(&w) == 512 && w.step_actor(MERGER) {
        assert!(copies(&w) <= 5, "in one step, with one in flight ended");
    }
    w.settle();
    assert_done(&mut w, origin, [1]);
    assert_eq!(origin_now(&w), numbers(4096));
}

/// Copies do not wait for the removal of what was copied before.
#[test]
fn the_next_batch_is_copied_while_the_last_one_is_removed() {
    let (mut w, _, s) = overwritten(7, 8192, 8);
    w.merge_bytes = 16 * 4096;
    hand_over(&mut w, s, MergeWrites::Wait);
    let (mut removing, mut reads_beside) = (false, 0);
    while w.engine.status().merge.is_some() {
        w.advance();
        for l in w.devices.take_log() {
            let of_store = l.device == w.cows[&s];
            if of_store && l.kind == DURABLE {
                removing = l.event == LoggedEvent::Submitted;
            } else if of_store && l.kind == LoggedKind::Read && removing {
                reads_beside += 1;
            }
        }
    }
    assert!(reads_beside > 0, "no copy beside a removal");
}

/// M04, M05: writes to chunks that are not merged yet go to the store, as in Linux.
#[test]
fn a_redirected_write_stays_in_the_store_and_comes_with_the_merge() {
    let (mut w, origin, s) = overwritten(7, 64, 8);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Redirect);
    assert_eq!(w.read(origin, 0, 64).unwrap(), numbers(64));
    assert_eq!(w.write(origin, 10, 2, 901), Status::Ok);
    assert_eq!(origin_now(&w), [900; 64], "the origin is not touched");
    assert_eq!(chunks_left(&w), 8);
    let mut expected = numbers(64);
    expected[10..12].fill(901);
    assert_eq!(w.read(origin, 0, 64).unwrap(), expected);
    let store = World::offline_view(&w.devices, w.origin, w.cows[&s]);
    assert_eq!(stamps(&store.unwrap()), expected);
    w.merge_background = true;
    w.settle();
    assert_eq!(origin_now(&w), expected);
}

/// M05: the merge of a chunk waits for the writes to its COW copy.
#[test]
fn a_redirected_write_under_way_is_merged_and_not_lost() {
    let (mut w, origin, s) = overwritten(7, 64, 8);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Redirect);
    start_write(&mut w, origin, 1, (10, 2), 901);
    w.merge_background = true;
    w.settle_without(&[origin]);
    assert_done(&mut w, origin, []);
    let left = entries(&w.devices, w.origin, w.cows[&s]);
    assert!(left.iter().any(|e| e.old == 1), "removed under the write");
    w.settle();
    assert_done(&mut w, origin, [1]);
    let mut expected = numbers(64);
    expected[10..12].fill(901);
    assert_eq!(origin_now(&w), expected);
}

/// M05: whatever the order of the entries, and wherever in it the chunk is.
#[test]
fn a_batch_waits_for_redirected_writes_to_each_of_its_chunks() {
    let order = [3, 7, 0, 5, 1, 6, 2, 4];
    for chunk in 0..8 {
        let (mut w, origin) = world(64);
        let s = w.add_snapshot(1, 8, 400, "P", false);
        for n in order {
            assert_eq!(w.write(origin, n * 8, 8, 900), Status::Ok);
        }
        let log = entries(&w.devices, w.origin, w.cows[&s]);
        assert_eq!(log.iter().map(|e| e.old).collect::<Vec<_>>(), order);
        w.merge_background = false;
        w.merge_bytes = 8 * 4096;
        hand_over(&mut w, s, MergeWrites::Redirect);
        start_write(&mut w, origin, 1, (chunk * 8 + 2, 2), 901);
        w.merge_background = true;
        w.settle_without(&[origin]);
        assert_done(&mut w, origin, []);
        assert_eq!(chunks_left(&w), 8, "chunk {chunk} was not waited for");
        w.settle();
        assert_done(&mut w, origin, [1]);
        let mut expected = numbers(64);
        expected[chunk as usize * 8 + 2..][..2].fill(901);
        assert_eq!(origin_now(&w), expected, "chunk {chunk}");
    }
}

/// M03: entries are removed durably before a write goes to the origin.
#[test]
fn a_removed_entry_never_comes_back_over_a_newer_write() {
    for at in [0, 30, 56] {
        let (mut w, origin, s) = overwritten(7, 64, 8);
        w.merge_background = false;
        hand_over(&mut w, s, MergeWrites::Wait);
        let data = data_of(at, 8, 901);
        let kind = RequestKind::Write { durable: true };
        let (status, _) = w.wait_for(origin, kind, at, data);
        assert_eq!(status, Status::Ok);
        let mut expected = numbers(64);
        expected[at as usize..][..8].fill(901);
        for keep in cuts(at) {
            let crashed = w.devices.crash(keep);
            let mut again = restart(crashed, w.origin, &[(s, w.cows[&s])]);
            hand_over(&mut again, s, MergeWrites::Wait);
            again.settle();
            assert_eq!(origin_now(&again), expected, "at {at}, {keep:?}");
        }
    }
}

/// M06.
#[test]
fn a_write_to_a_chunk_under_way_waits_and_goes_to_the_origin() {
    let mut waited = 0;
    for steps in 0..24 {
        let (mut w, origin, s) = overwritten(7, 8, 8);
        w.merge_background = false;
        hand_over(&mut w, s, MergeWrites::Redirect);
        w.merge_background = true;
        for _ in 0..steps {
            w.step_actor(MERGER);
        }
        start_write(&mut w, origin, 1, (3, 2), 901);
        w.settle_without(&[MERGER]);
        let held = w.actors[origin].completed.is_empty();
        w.settle();
        assert_done(&mut w, origin, [1]);
        let mut expected = numbers(8);
        expected[3..5].fill(901);
        assert_eq!(w.read(origin, 0, 8).unwrap(), expected, "{steps} steps");
        assert_eq!(origin_now(&w), expected, "{steps} steps");
        if held {
            waited += 1;
            let copy = w.devices.read_now(w.cows[&s], 2 * 4096, 4096);
            assert_eq!(stamps(&copy), numbers(8), "the COW copy is left alone");
        }
    }
    assert!(waited > 0, "no write ever met the batch");
}

/// M07, M09.
#[test]
fn other_snapshots_stay_exact_in_the_middle_of_a_merge() {
    for writes in [MergeWrites::Wait, MergeWrites::Redirect] {
        for chunk in [1, 8, 32] {
            let (mut w, origin) = world(203);
            let s = w.add_snapshot(1, 8, 2000, "P", false);
            w.write(origin, 40, 120, 900);
            let other = w.add_snapshot(2, chunk, 3000, "P", false);
            let view = w.add_actor(PortRole::View(other));
            let kept = w.read(origin, 0, 203).unwrap();
            w.merge_bytes = 3 * 4096;
            w.merge_background = false;
            hand_over(&mut w, s, writes);
            w.merge_background = true;
            while chunks_left(&w) > 8 {
                w.step();
            }
            w.merge_background = false;
            w.settle();
            // Chunks without an exception, chunks that are still to be merged, merged chunks.
            let mut expected = numbers(203);
            for (at, stamp) in [(2, 901), (50, 902), (150, 903), (190, 904)] {
                assert_eq!(w.write(origin, at, 10, stamp), Status::Ok);
                expected[at as usize..][..10].fill(stamp);
                assert_eq!(w.read(view, 0, 203).unwrap(), kept, "chunk {chunk}");
                assert_eq!(w.read(origin, 0, 203).unwrap(), expected, "chunk {chunk}");
            }
            w.merge_background = true;
            w.settle();
            assert_eq!(w.read(view, 0, 203).unwrap(), kept, "chunk {chunk}");
            assert_eq!(origin_now(&w), expected, "chunk {chunk}");
        }
    }
}

/// M08.
#[test]
fn a_flush_in_a_merge_covers_both_devices() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    w.write(origin, 0, 16, 900);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Redirect);
    w.write(origin, 3, 1, 901); // to the COW
    w.write(origin, 40, 1, 902); // to the origin
    submitted(&w);
    assert_eq!(w.flush(origin), Status::Ok);
    let log = submitted(&w);
    assert_eq!(count(&log, LoggedKind::Flush, w.origin), 1);
    assert_eq!(count(&log, LoggedKind::Flush, w.cows[&s]), 1);
    let crashed = w.devices.crash(Keep::Nothing);
    let view = stamps(&World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap());
    assert_eq!((view[3], view[40]), (901, 902));
}

/// M10.
#[test]
fn a_snapshot_that_runs_full_by_the_merge_ends_and_the_merge_goes_on() {
    let (mut w, _, s) = overwritten(7, 64, 8);
    let small = w.add_snapshot(2, 8, 40, "P", false); // three chunks
    let ample = w.add_snapshot(3, 8, 400, "P", false);
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    assert!(w.engine.status().merge.is_none());
    assert_eq!(origin_now(&w), numbers(64));
    assert_eq!(state_of(&w, small), SnapshotState::Invalid);
    assert!(World::offline_view(&w.devices, w.origin, w.cows[&small]).is_none());
    let view = w.add_actor(PortRole::View(ample));
    assert_eq!(w.read(view, 0, 64).unwrap(), [900; 64]);
}

/// M19.
#[test]
fn a_merged_store_is_valid_and_its_areas_are_clear() {
    let (mut w, _, s) = overwritten(7, 70, 1); // 32 entries in an area
    let device = w.cows[&s];
    let data = w.devices.read_now(device, 2 * 512, 32 * 512);
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    let header = w.devices.read_now(device, 0, 512);
    let words = [*b"SnAp", [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]].concat();
    assert_eq!((&header[..16], &header[16..]), (&words[..], &[0; 496][..]));
    for area in [1, 34, 67] {
        let bytes = w.devices.read_now(device, area * 512, 512);
        assert_eq!(bytes, [0; 512], "the area in chunk {area}");
    }
    assert_eq!(w.devices.read_now(device, 2 * 512, 32 * 512), data);
    let usage = load(&w.devices, w.origin, device).unwrap().usage();
    assert_eq!([usage.allocated, usage.total, usage.metadata], [2, 960, 2]);
}

/// M20.
#[test]
fn the_old_snapshot_view_fails_from_the_handover_on() {
    let (mut w, _, s) = overwritten(7, 64, 8);
    let view = w.add_actor(PortRole::View(s));
    assert_eq!(w.read(view, 0, 64).unwrap(), numbers(64));
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    for _ in 0..2 {
        assert_eq!(w.read(view, 0, 1), Err(Status::IoError));
        assert_eq!(w.write(view, 0, 8, 901), Status::IoError);
        w.merge_background = true;
        w.settle(); // and after the end of the merge
    }
    assert_eq!(origin_now(&w), numbers(64));
}

/// M18: Linux reports "Merge failed" for ever.
#[test]
fn a_merge_that_goes_on_after_a_failure_shows_itself_merging() {
    use crate::io::Errno;
    use crate::io::sim::{Fault, FaultOn};
    let (mut w, origin, s) = overwritten(7, 64, 8);
    let fault = Fault::new(FaultOn::Read, Errno::EIO).device(w.cows[&s]);
    w.devices.fail(fault.once());
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    assert_eq!(state_of(&w, s), SnapshotState::MergeFailed);
    assert_eq!(w.read(origin, 0, 64).unwrap(), numbers(64));
    w.merge_background = false;
    w.control_wait(ControlRequest::ResumeMerge).unwrap();
    w.settle();
    assert_eq!(state_of(&w, s), SnapshotState::Merging);
    w.merge_background = true;
    w.settle();
    assert!(w.engine.status().merge.is_none());
    assert_eq!(origin_now(&w), numbers(64));
}

/// B12.
#[test]
fn a_handover_with_copies_under_way_loses_nothing() {
    for seed in 0..40 {
        let mut w = World::new(seed, 200);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 2000, "P", seed % 2 == 0);
        let view = w.add_actor(PortRole::View(s));
        for n in 0..6 {
            start_write(&mut w, origin, n, (u64::from(n) * 16, 12), 900);
        }
        start_write(&mut w, view, 1, (150, 20), 950);
        for _ in 0..seed {
            w.step();
        }
        hand_over(&mut w, s, MergeWrites::Wait);
        w.settle();
        assert_done(&mut w, origin, 0..6);
        assert_done(&mut w, view, [1]);
        assert!(w.engine.status().merge.is_none());
        // A write came before the handover (and is undone) or after it, as a whole.
        let seen = w.read(origin, 0, 200).unwrap();
        for n in 0..6 {
            let at = n * 16..n * 16 + 12;
            let whole = seen[at.clone()] == [900; 12] || seen[at.clone()] == numbers(200)[at];
            assert!(whole, "seed {seed}: {seen:?}");
        }
        assert_eq!(seen[150..170], [950; 20], "seed {seed}");
        assert_eq!(origin_now(&w), seen);
    }
}
