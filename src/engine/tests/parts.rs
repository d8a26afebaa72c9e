//! Long writes, which are handed in part by part: a new snapshot and a handover come before
//! all parts of one or after all of them.
//!
//! A snapshot was cut between two parts of a write that was in flight, and held one half.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::Errno;
use crate::io::sim::{Fault, FaultOn};
use crate::mutation::{self, Mutation};

const ID: u64 = 9;

/// Hands in a part of a write, with this stamp.
fn part(w: &mut World, actor: usize, sectors: std::ops::Range<u64>, more: bool) {
    let (sector, sectors) = (sectors.start, sectors.end - sectors.start);
    let request = Request {
        slot: 1,
        kind: RequestKind::Write { durable: false },
        sector,
        sectors,
    };
    w.submit_part(actor, request, data_of(sector, sectors, 900), more);
}

fn start_cut(w: &mut World, id: u32) {
    let snapshot = ViewId(id);
    let store = Box::new(w.new_store(snapshot, 4, 400, "P", false));
    w.control(ID, ControlRequest::AddSnapshot { snapshot, store });
}

fn start_handover(w: &mut World, id: u32) {
    let request = ControlRequest::Handover {
        snapshot: ViewId(id),
        writes: MergeWrites::Wait,
        follow: false,
    };
    w.control(ID, request);
}

fn is_answered(w: &mut World) -> bool {
    let done = std::mem::take(&mut w.actors[CONTROL].control_done);
    assert!(done.iter().all(|d| *d == (ID, Ok(()))), "{done:?}");
    !done.is_empty()
}

/// 0 ..= 15 as written, the rest as at the start.
fn written() -> Vec<u64> {
    (0..64).map(|n| if n < 16 { 900 } else { n }).collect()
}

/// A snapshot is taken between two parts, beside `others`. What it holds, and whether it was
/// there before the second part.
fn cut_between_parts(others: u32) -> (Vec<u64>, bool) {
    let (mut w, origin) = world(64);
    for id in 1..=others {
        w.add_snapshot(id, 8 >> id, 400, "P", false);
    }
    part(&mut w, origin, 0..8, true);
    w.settle();
    assert_done(&mut w, origin, [1]);
    start_cut(&mut w, 7);
    // It comes after the request for the snapshot, and is not one half of anything.
    start_write(&mut w, origin, 2, (40, 4), 800);
    w.settle();
    let early = is_answered(&mut w);
    part(&mut w, origin, 8..16, false);
    w.settle();
    assert!(early || is_answered(&mut w));
    assert_done(&mut w, origin, [1, 2]);
    assert_eq!(origin_now(&w)[..16], [900; 16]);
    assert_eq!(origin_now(&w)[40..44], [800; 4]);
    for id in 1..=others {
        let view = w.add_actor(PortRole::View(ViewId(id)));
        assert_eq!(w.read(view, 0, 64).unwrap(), numbers(64));
    }
    let view = w.add_actor(PortRole::View(ViewId(7)));
    (w.read(view, 0, 64).unwrap(), early)
}

#[test]
fn a_snapshot_never_holds_a_part_of_a_write() {
    for others in 0..3 {
        assert_eq!(cut_between_parts(others), (written(), false));
    }
}

#[test]
fn a_cut_that_does_not_wait_for_later_parts_is_noticed() {
    let (held, early) = mutation::with(Some(Mutation::PartsNotDrained), || cut_between_parts(1));
    assert!(early);
    assert_eq!(
        held[..16],
        [[900; 8], [8, 9, 10, 11, 12, 13, 14, 15]].concat()
    );
}

#[test]
fn a_rollback_takes_all_of_a_write_that_was_in_flight() {
    for defer in [false, true] {
        let (mut w, origin) = world(64);
        let s = w.add_snapshot(1, 4, 400, "P", defer);
        part(&mut w, origin, 0..8, true);
        w.settle();
        start_handover(&mut w, 1);
        w.settle();
        assert!(!is_answered(&mut w));
        part(&mut w, origin, 8..16, false);
        w.settle();
        assert!(is_answered(&mut w));
        assert_done(&mut w, origin, [1, 1]);
        assert_eq!(w.read(origin, 0, 64).unwrap(), numbers(64));
        assert!(w.engine.status().merge.is_none(), "{s:?} is not merged");
    }
}

#[test]
fn a_merge_brings_all_of_a_write_to_its_snapshot_that_was_in_flight() {
    for defer in [false, true] {
        let (mut w, origin) = world(64);
        let s = w.add_snapshot(1, 4, 400, "P", defer);
        let view = w.add_actor(PortRole::View(s));
        part(&mut w, view, 0..7, true);
        w.settle();
        start_handover(&mut w, 1);
        w.settle();
        assert!(!is_answered(&mut w));
        // A part of a chunk, so that more is to be done than one write.
        part(&mut w, view, 7..16, false);
        w.settle();
        assert!(is_answered(&mut w));
        assert_done(&mut w, view, [1, 1]);
        assert_eq!(w.read(origin, 0, 64).unwrap(), written());
    }
}

/// Each would wait for the other.
#[test]
fn a_first_part_that_waits_for_a_change_is_not_waited_for() {
    for merge in [false, true] {
        let (mut w, origin) = world(64);
        w.add_snapshot(1, 4, 400, "P", false);
        // What the gate is closed for, until it is driven.
        start_write(&mut w, origin, 2, (60, 4), 800);
        if merge {
            start_handover(&mut w, 1);
        } else {
            start_cut(&mut w, 7);
        }
        part(&mut w, origin, 0..8, true);
        w.settle();
        assert!(is_answered(&mut w));
        assert_done(&mut w, origin, [1, 2]);
        part(&mut w, origin, 8..16, false);
        w.settle();
        assert_done(&mut w, origin, [1]);
        let held = if merge {
            origin
        } else {
            w.add_actor(PortRole::View(ViewId(7)))
        };
        let expected = if merge {
            [900; 16]
        } else {
            std::array::from_fn(|n| n as u64)
        };
        assert_eq!(w.read(held, 0, 16).unwrap(), expected);
    }
}

/// A front end left, or a part failed.
#[test]
fn a_write_whose_next_part_never_comes_holds_nothing_up() {
    for (fails, early) in [(false, false), (false, true), (true, true)] {
        let (mut w, origin) = world(64);
        w.add_snapshot(1, 4, 400, "P", false);
        part(&mut w, origin, 0..8, true);
        w.settle();
        if early {
            start_cut(&mut w, 7);
            w.settle();
            assert!(!is_answered(&mut w));
        }
        if fails {
            let fault = Fault::new(FaultOn::Write, Errno::EIO).device(w.origin);
            w.devices.fail(fault.once());
            part(&mut w, origin, 8..16, true);
        } else {
            w.give_up(origin, 1);
        }
        if !early {
            start_cut(&mut w, 7);
        }
        w.settle();
        assert!(is_answered(&mut w));
        // The slot is as any other.
        assert_eq!(w.write(origin, 32, 8, 950), Status::Ok);
        start_write(&mut w, origin, 1, (20, 4), 960);
        w.settle();
        assert_eq!(w.actors[origin].completed.last(), Some(&(1, Status::Ok)));
    }
}
