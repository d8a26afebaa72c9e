//! A store is released, by the end of its merge or its removal, only when nothing uses
//! it any more, because the daemon then closes its device.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::sim::{Keep, SimDevices};

/// Snapshot 1 with all of the origin's 64 sectors copied out, and its view.
fn kept() -> (World, usize, SnapshotId, usize) {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    assert_eq!(w.write(origin, 0, 64, 900), Status::Ok);
    let view = w.add_actor(PortRole::View(s));
    (w, origin, s, view)
}

fn start(w: &mut World, actor: usize, kind: RequestKind, sector: u64, sectors: u64) {
    let request = Request {
        slot: 1,
        kind,
        sector,
        sectors,
    };
    w.submit(actor, request, data_of(sector, sectors, 950));
}

const READ: RequestKind = RequestKind::Read;
const FLUSH: RequestKind = RequestKind::Flush;
const WRITE: RequestKind = RequestKind::Write { durable: false };

fn remove(w: &mut World, snapshot: SnapshotId) {
    let force = false;
    w.control(1, ControlRequest::RemoveSnapshot { snapshot, force });
}

/// The merge has nothing left and does not end while `held` does not move.
fn assert_merge_waits(w: &mut World, s: SnapshotId, held: usize, what: &str) {
    w.merge_background = true;
    w.settle_without(&[held]);
    let left = w.engine.status().merge.map(|m| m.chunks_left);
    assert_eq!(left, Some(0), "{what}");
    assert!(w.devices.in_flight(Some(w.cows[&s])) > 0, "{what}");
    w.settle();
    assert!(w.engine.status().merge.is_none(), "{what}");
    assert_eq!(w.devices.in_flight(Some(w.cows[&s])), 0, "{what}");
}

#[test]
fn a_merge_ends_when_no_request_of_its_view_uses_the_store() {
    for (kind, sectors) in [(READ, 8), (FLUSH, 0)] {
        for follow in [false, true] {
            let (mut w, origin, snapshot, view) = kept();
            w.merge_background = false;
            let writes = MergeWrites::Redirect;
            w.control_wait(ControlRequest::Handover {
                snapshot,
                writes,
                follow,
            })
            .unwrap();
            let guest = if follow { view } else { origin };
            start(&mut w, guest, kind, 0, sectors);
            let what = format!("{kind:?}, follow: {follow}");
            assert_merge_waits(&mut w, snapshot, guest, &what);
            assert_done(&mut w, guest, [1]);
            assert_eq!(origin_now(&w), numbers(64), "{what}");
        }
    }
}

#[test]
fn a_merge_ends_when_no_clean_stop_flushes_the_store() {
    let (mut w, _, s, _) = kept();
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Wait);
    w.control(1, ControlRequest::Sync);
    assert_merge_waits(&mut w, s, CONTROL, "the flush of a clean stop");
    assert_eq!(w.actors[CONTROL].control_done, [(1, Ok(()))]);
}

fn header_says_invalid(devices: &SimDevices, w: &World, s: SnapshotId) -> bool {
    World::offline_view(devices, w.origin, w.cows[&s]).is_none()
}

/// The removal does not end while `held` does not move, and then it does.
fn assert_removal_waits(w: &mut World, s: SnapshotId, held: usize, what: &str) {
    remove(w, s);
    w.settle_without(&[held]);
    assert_eq!(w.actors[CONTROL].control_done, [], "{what}");
    w.settle();
    assert_eq!(w.actors[CONTROL].control_done, [(1, Ok(()))], "{what}");
    assert_eq!(w.devices.in_flight(Some(w.cows[&s])), 0, "{what}");
    let crashed = w.devices.crash(Keep::Nothing);
    assert!(header_says_invalid(&crashed, w, s), "{what}");
    assert!(w.engine.status().snapshots.is_empty(), "{what}");
}

#[test]
fn a_removal_ends_when_no_request_of_its_view_uses_the_store() {
    for (kind, sectors) in [(READ, 8), (FLUSH, 0), (WRITE, 8), (WRITE, 3)] {
        let (mut w, _, s, view) = kept();
        start(&mut w, view, kind, 8, sectors);
        let what = format!("{kind:?} of {sectors} sectors");
        assert_removal_waits(&mut w, s, view, &what);
        assert_eq!(w.actors[view].completed.len(), 1, "{what}");
    }
}

/// Copy-outs write the store although no request of its view is under way.
#[test]
fn a_removal_ends_when_no_copy_out_writes_the_store() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    start_write(&mut w, origin, 1, (0, 8), 900);
    // The read of the origin ends, the write of the copy begins.
    while w.devices.in_flight(Some(w.cows[&s])) == 0 {
        assert!(w.step_actor(origin));
    }
    assert_removal_waits(&mut w, s, origin, "a copy-out");
    assert_done(&mut w, origin, [1]);
}

#[test]
fn a_removal_ends_when_no_write_of_a_new_exception_is_under_way() {
    for sectors in [8, 3] {
        let (mut w, _) = world(64);
        let s = w.add_snapshot(1, 8, 400, "P", false);
        let view = w.add_actor(PortRole::View(s));
        start(&mut w, view, WRITE, 8, sectors);
        while w.devices.in_flight(Some(w.cows[&s])) == 0 {
            assert!(w.step_actor(view));
        }
        assert_removal_waits(&mut w, s, view, "a first write");
        assert_eq!(w.actors[view].completed, [(1, Status::IoError)]);
    }
}

/// Otherwise the origin's next write could overwrite what the read has to show.
#[test]
fn a_removal_ends_when_no_read_of_the_origin_through_its_view_is_under_way() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    start(&mut w, view, READ, 8, 8);
    start_write(&mut w, origin, 1, (8, 8), 900);
    assert_removal_waits(&mut w, s, view, "a read of the origin");
    assert_done(&mut w, view, [1]);
    assert_done(&mut w, origin, [1]);
    let shown = stamps_from(8, w.actors[view].data(1));
    assert_eq!(shown, numbers(16)[8..]);
}
