//! dm-snapshot bugs that snapback does not have: each test would fail with the
//! kernel's behaviour. The rows named here are those of `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::Errno;
use crate::io::sim::{Fault, FaultOn, Keep};

/// S22, B25, B13: Linux writes the header without a flush and lets the origin
/// write go.
#[test]
fn no_power_cut_shows_a_full_snapshot_as_valid_with_the_origins_new_data() {
    for seed in 0..20 {
        let mut w = World::new(seed, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 32, "P", false); // two chunks
        w.write(origin, 0, 16, 900);
        start_write(&mut w, origin, 1, (16, 8), 901);
        while w.actors[origin].completed.is_empty() {
            w.advance();
            // The worst case: the whole origin is on disk, and of the COW only what is durable.
            let now = w.devices.crash(Keep::Everything).current(w.origin);
            let lost = w.devices.crash(Keep::Nothing);
            if stamps(&now)[16..24] != [16, 17, 18, 19, 20, 21, 22, 23] {
                let view = World::offline_view(&lost, w.origin, w.cows[&s]);
                assert!(view.is_none(), "seed {seed}: valid, and wrong");
            }
        }
    }
}

/// S14, B26: 34 chunks of one sector, so that the next area would be one past
/// the end. Linux allocates the 32nd chunk, cannot clear that area, and loses
/// the snapshot.
#[test]
fn an_exact_fit_store_overflows_and_stays_loadable() {
    let (mut w, _) = world(64);
    let s = w.add_snapshot(1, 1, 34, "PO", false);
    let view = w.add_actor(PortRole::View(s));
    for n in 0..31 {
        assert_eq!(w.write(view, n, 1, 900 + n), Status::Ok, "{n}");
    }
    assert_eq!(w.write(view, 31, 1, 999), Status::IoError);
    assert_eq!(state_of(&w, s), SnapshotState::Overflow);
    let seen = w.read(view, 0, 64).unwrap();
    assert_eq!(seen[..32], [(900..931).collect(), vec![31]].concat());
    let crashed = w.devices.crash(Keep::Nothing);
    let after = World::offline_view(&crashed, w.origin, w.cows[&s]).unwrap();
    assert_eq!(stamps(&after), seen);
}

/// M17, B22: Linux's resume after this copies the COW's header over origin chunk 0.
#[test]
fn a_failed_removal_never_touches_origin_chunk_zero() {
    for nth in 0..4 {
        let (mut w, origin) = world(128);
        let s = w.add_snapshot(1, 8, 400, "P", false);
        w.write(origin, 0, 128, 900);
        w.merge_bytes = 4 * 4096;
        let area = Fault::new(FaultOn::Write, Errno::EIO)
            .device(w.cows[&s])
            .range(4096..8192);
        w.devices.fail(area.after(nth).once());
        hand_over(&mut w, s, MergeWrites::Wait);
        w.settle();
        assert_eq!(state_of(&w, s), SnapshotState::MergeFailed, "{nth}");
        let refused = w.control_wait(ControlRequest::ResumeMerge);
        assert_eq!(refused, Err(ControlError::MergeFailed));
        w.control_wait(ControlRequest::PauseMerge).unwrap();
        let refused = w.control_wait(ControlRequest::ResumeMerge);
        assert_eq!(refused, Err(ControlError::MergeFailed));
        w.settle();
        let head = w.devices.read_now(w.origin, 0, 4096);
        assert!(!head.starts_with(b"SnAp"));
        assert_eq!(w.read(origin, 0, 128).unwrap(), numbers(128));

        for keep in cuts(nth) {
            let crashed = w.devices.crash(keep);
            let mut again = restart(crashed, w.origin, &[(s, w.cows[&s])]);
            hand_over(&mut again, s, MergeWrites::Wait);
            again.settle();
            assert!(again.engine.status().merge.is_none());
            assert_eq!(origin_now(&again), numbers(128), "{nth}, {keep:?}");
        }
    }
}

/// B21: an entry for origin chunk 0 is not taken for the terminator, neither by the
/// loader nor by a merge.
#[test]
fn origin_chunk_zero_is_merged_like_any_other() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    w.write(origin, 32, 8, 900);
    w.write(origin, 0, 8, 901);
    w.write(origin, 16, 8, 902);
    w.flush(origin);
    let crashed = w.devices.crash(Keep::Nothing);
    let mut again = restart(crashed, w.origin, &[(s, w.cows[&s])]);
    again.merge_bytes = 4096;
    hand_over(&mut again, s, MergeWrites::Wait);
    again.settle();
    assert_eq!(origin_now(&again), numbers(64));
}

/// B2, B1: a store is loaded and then filled further, over area borders.
#[test]
fn a_loaded_store_goes_on_where_it_was() {
    let (mut w, origin) = world(100);
    let s = w.add_snapshot(1, 1, 400, "P", false);
    let cow = w.cows[&s];
    w.write(origin, 0, 10, 900);
    for round in 0..5 {
        // 10, 32 (an area exactly full), 33, 64 and 90 entries
        let (from, until) = [(10, 32), (32, 33), (33, 64), (64, 90), (90, 100)][round];
        w.flush(origin);
        let devices = w.devices.crash(Keep::Nothing);
        w = restart(devices, w.origin, &[(s, cow)]);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        assert_eq!(w.write(origin, 0, until, 901), Status::Ok, "{from}");
        let view = w.add_actor(PortRole::View(s));
        assert_eq!(w.read(view, 0, 100).unwrap(), numbers(100));
        assert_eq!(w.flush(origin), Status::Ok);
        let image = World::offline_view(&w.devices, w.origin, cow).unwrap();
        assert_eq!(stamps(&image), numbers(100));
        let log = entries(&w.devices, w.origin, cow);
        assert_eq!(log.len() as u64, until);
        assert!(log.iter().all(|e| e.new % 33 != 1), "{log:?}");
    }
}

/// B5: header and areas share no buffer.
#[test]
fn an_invalidation_among_commits_damages_neither_header_nor_area() {
    for seed in 0..40 {
        let mut w = World::new(seed, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 40, "P", false); // three chunks
        for n in 0..6 {
            start_write(&mut w, origin, n, (u64::from(n) * 8, 1), 900);
        }
        w.settle();
        assert_done(&mut w, origin, 0..6);
        let header = w.devices.read_now(w.cows[&s], 0, 4096);
        let words = [*b"SnAp", [0; 4], [1, 0, 0, 0], [8, 0, 0, 0]].concat();
        assert_eq!(header[..16], words, "seed {seed}");
        assert_eq!(header[16..], [0; 4080], "seed {seed}");
        let area = w.devices.read_now(w.cows[&s], 4096, 4096);
        let entries = area.chunks_exact(16).map(|e| e[8]);
        let news: Vec<u8> = entries.take_while(|new| *new != 0).collect();
        assert_eq!(news, [2, 3, 4][..news.len()], "seed {seed}");
        assert!(area[news.len() * 16..].iter().all(|b| *b == 0));
    }
}

/// B6: every request ends, whichever write of the store fails under load.
#[test]
fn one_failed_write_of_the_store_hangs_nobody() {
    for nth in 0..24 {
        let mut w = World::new(nth, 128);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 400, "P", false);
        let view = w.add_actor(PortRole::View(s));
        let fault = Fault::new(FaultOn::Write, Errno::EIO).device(w.cows[&s]);
        w.devices.fail(fault.after(nth).once());
        for n in 0..8 {
            start_write(&mut w, origin, n, (u64::from(n) * 16, 12), 900);
            start_write(&mut w, view, n, (u64::from(n) * 16 + 4, 3), 901);
        }
        w.settle();
        assert_done(&mut w, origin, 0..8);
        assert_eq!(w.actors[view].completed.len(), 8, "{nth}");
    }
}
