//! Discards and writes of zeroes. The rows named here are those of
//! `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::Zeroing;
use crate::io::sim::{Fault, FaultOn, Keep, LoggedKind};
use crate::io::{DeviceId, Errno};

const ZEROES_COW: Discards = Discards {
    zeroes_cow: true,
    passdown_origin: false,
};
const PASSDOWN: Discards = Discards {
    zeroes_cow: true,
    passdown_origin: true,
};

fn snapshot(w: &mut World, id: u32, chunk: u64, discards: Discards) -> (SnapshotId, usize) {
    let id = ViewId(id);
    let mut store = Box::new(w.new_store(id, chunk, 800, "P", false));
    store.discards = discards;
    w.control_wait(ControlRequest::AddSnapshot {
        snapshot: id,
        store,
    })
    .unwrap();
    (id, w.add_actor(PortRole::View(id)))
}

fn start_discard(w: &mut World, actor: usize, slot: Slot, sector: u64, sectors: u64) {
    let request = Request {
        slot,
        kind: RequestKind::Discard,
        sector,
        sectors,
    };
    w.submit(actor, request, Vec::new());
}

fn discard(w: &mut World, actor: usize, sector: u64, sectors: u64) -> Status {
    let data = vec![0; sectors as usize * 512];
    w.wait_for(actor, RequestKind::Discard, sector, data).0
}

/// What was zeroed since the last call: device, first sector, sectors, how.
fn zeroed(w: &World) -> Vec<(DeviceId, u64, u64, Zeroing)> {
    let all = submitted(w).into_iter();
    all.map(|l| match l.kind {
        LoggedKind::Zero(how) => (l.device, l.offset / 512, l.len / 512, how),
        other => panic!("a discard does nothing but zeroing: {other:?}"),
    })
    .collect()
}

/// O11: 8-sector chunks in one snapshot and 4-sector ones in the other.
#[test]
fn a_discard_of_the_origin_takes_only_what_every_snapshot_has() {
    let (mut w, origin) = world(64);
    let (_, first) = snapshot(&mut w, 1, 8, Discards::default());
    let (_, second) = snapshot(&mut w, 2, 4, Discards::default());
    // Chunk 1 is saved in both snapshots; the second one has half of chunk 3.
    w.write(origin, 8, 8, 900);
    w.write(origin, 28, 1, 901);
    w.settle();
    let before = w.engine.status();
    submitted(&w);
    assert_eq!(discard(&mut w, origin, 0, 64), Status::Ok);
    let runs = [
        (w.origin, 8, 8, Zeroing::Discard),
        (w.origin, 28, 4, Zeroing::Discard),
    ];
    assert_eq!(zeroed(&w), runs);
    assert_eq!(discard(&mut w, origin, 10, 3), Status::Ok);
    assert_eq!(zeroed(&w), [(w.origin, 10, 3, Zeroing::Discard)]);
    assert_eq!(discard(&mut w, origin, 0, 8), Status::Ok);
    assert_eq!(zeroed(&w), [], "nothing of it is in the snapshots");
    for view in [first, second] {
        assert_eq!(w.read(view, 0, 64).unwrap(), numbers(64));
    }
    // No snapshot had to copy anything.
    for (was, is) in before.snapshots.iter().zip(&w.engine.status().snapshots) {
        assert_eq!(
            (was.usage.allocated, was.exceptions),
            (is.usage.allocated, is.exceptions)
        );
    }
    for (sector, stamp) in (0..).zip(w.read(origin, 0, 64).unwrap()) {
        let old = match sector {
            8..16 => 900,
            28 => 901,
            n => n,
        };
        let gone = (8..16).contains(&sector) || (28..32).contains(&sector);
        assert!(stamp == old || (stamp == 0 && gone), "sector {sector}");
    }
}

/// O11.
#[test]
fn a_discard_of_an_origin_without_snapshots_is_one_operation() {
    let (mut w, origin) = world(64);
    submitted(&w);
    assert_eq!(discard(&mut w, origin, 3, 60), Status::Ok);
    assert_eq!(zeroed(&w), [(w.origin, 3, 60, Zeroing::Discard)]);
    w.devices
        .fail(Fault::new(FaultOn::Any, Errno::EIO).device(w.origin).once());
    assert_eq!(discard(&mut w, origin, 0, 8), Status::IoError);
    assert_eq!(discard(&mut w, origin, 0, 8), Status::Ok);
}

/// O11: the snapshot ends in the middle of its chunk 2.
#[test]
fn behind_a_shorter_snapshots_end_everything_can_be_discarded() {
    let (mut w, origin) = world(64);
    let snapshot = ViewId(1);
    let mut store = Box::new(w.new_store(snapshot, 8, 800, "P", false));
    store.sectors = 20;
    w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
        .unwrap();
    submitted(&w);
    assert_eq!(discard(&mut w, origin, 0, 64), Status::Ok);
    assert_eq!(zeroed(&w), [(w.origin, 20, 44, Zeroing::Discard)]);
    let view = w.add_actor(PortRole::View(snapshot));
    assert_eq!(w.read(view, 0, 20).unwrap(), numbers(20));
}

/// O11: one discard of a guest causes a bounded number of operations.
#[test]
fn a_discard_of_alternating_chunks_ends_after_a_number_of_runs() {
    let (mut w, origin) = world(1200);
    w.add_snapshot(1, 1, 4000, "P", false);
    for sector in (0..1200).step_by(2) {
        w.write(origin, sector, 1, 900);
    }
    submitted(&w);
    assert_eq!(discard(&mut w, origin, 0, 1200), Status::Ok);
    let runs = zeroed(&w);
    assert_eq!(runs.len(), 128);
    assert!(
        (0..)
            .zip(&runs)
            .all(|(n, r)| *r == (w.origin, 2 * n, 1, Zeroing::Discard))
    );
}

/// O11, O12: a new snapshot waits for a discard that was decided before; one that
/// arrives while it waits is decided by the new state.
#[test]
fn a_discard_is_wholly_before_or_after_a_cut() {
    let (mut w, origin) = world(64);
    submitted(&w);
    start_discard(&mut w, origin, 1, 0, 16);
    let store = Box::new(w.new_store(ViewId(1), 8, 800, "P", false));
    submitted(&w);
    let snapshot = ViewId(1);
    w.control(5, ControlRequest::AddSnapshot { snapshot, store });
    start_discard(&mut w, origin, 2, 16, 16);
    w.settle_without(&[origin]);
    assert!(
        w.actors[CONTROL].control_done.is_empty(),
        "one is under way"
    );
    assert_eq!(zeroed(&w), [], "and the other waits");
    w.settle();
    assert_eq!(w.actors[CONTROL].control_done, [(5, Ok(()))]);
    assert_done(&mut w, origin, [1, 2]);
    let view = w.add_actor(PortRole::View(snapshot));
    let at_cut = origin_now(&w);
    assert_eq!(at_cut[16..], numbers(64)[16..], "shared now, so it stays");
    w.write(origin, 0, 64, 900);
    assert_eq!(w.read(view, 0, 64).unwrap(), at_cut);
}

/// M24.
#[test]
fn a_discard_of_a_merge_view_has_no_effect_and_does_not_wait() {
    for writes in [MergeWrites::Wait, MergeWrites::Redirect] {
        let (mut w, origin) = world(64);
        let (s, _) = snapshot(&mut w, 1, 8, ZEROES_COW);
        w.write(origin, 0, 32, 900);
        w.merge_background = false;
        hand_over(&mut w, s, writes);
        submitted(&w);
        start_discard(&mut w, origin, 3, 0, 64);
        assert_eq!(zeroed(&w), []);
        assert_done(&mut w, origin, [3]);
        assert_eq!(w.read(origin, 0, 64).unwrap(), numbers(64));
        w.merge_background = true;
        w.control_wait(ControlRequest::ResumeMerge).unwrap();
        w.settle();
        assert_eq!(origin_now(&w), numbers(64));
        // The merge is over: an origin view without snapshots.
        submitted(&w);
        discard(&mut w, origin, 8, 8);
        assert_eq!(zeroed(&w), [(w.origin, 8, 8, Zeroing::Discard)]);
    }
}

/// N16: a whole chunk, a part of one, one without an exception.
#[test]
fn a_discard_of_a_snapshot_zeroes_what_is_in_its_store() {
    let (mut w, origin) = world(64);
    let (s, view) = snapshot(&mut w, 1, 8, ZEROES_COW);
    w.write(view, 8, 8, 900);
    w.write(origin, 16, 16, 901);
    w.settle();
    let usage = w.engine.status().snapshots[0].usage;
    let log = entries(&w.devices, w.origin, w.cows[&s]);
    submitted(&w);
    assert_eq!(discard(&mut w, view, 0, 26), Status::Ok);
    let cow = w.cows[&s];
    // Chunks 1 to 3 lie one after the other behind the header and the area.
    assert_eq!(zeroed(&w), [(cow, 16, 18, Zeroing::Keep)]);
    let mut expected = numbers(64);
    expected[8..26].fill(0);
    assert_eq!(w.read(view, 0, 64).unwrap(), expected);
    assert_eq!(origin_now(&w)[16..32], [901; 16]);
    assert_eq!(
        w.engine.status().snapshots[0].usage,
        usage,
        "no space is freed"
    );
    assert_eq!(
        entries(&w.devices, w.origin, cow),
        log,
        "no metadata is written"
    );
    // Durable with the next flush, as a write in place.
    assert_eq!(w.flush(view), Status::Ok);
    let crashed = w.devices.crash(Keep::Nothing);
    let left = World::offline_view(&crashed, w.origin, cow).unwrap();
    assert_eq!(stamps(&left), expected);
}

/// N16: an exception that is not published yet does not count.
#[test]
fn a_discard_of_a_chunk_that_is_being_saved_leaves_it() {
    let (mut w, origin) = world(64);
    let (_, view) = snapshot(&mut w, 1, 8, ZEROES_COW);
    start_write(&mut w, origin, 1, (0, 8), 900);
    submitted(&w);
    start_discard(&mut w, view, 1, 0, 8);
    assert_eq!(zeroed(&w), []);
    assert_done(&mut w, view, [1]);
    w.settle();
    assert_eq!(w.read(view, 0, 8).unwrap(), numbers(8));
}

/// N18.
#[test]
fn without_the_option_a_discard_of_a_snapshot_does_nothing() {
    let (mut w, _) = world(64);
    let only_passdown = Discards {
        zeroes_cow: false,
        passdown_origin: true,
    };
    for (id, discards) in [(1, Discards::default()), (2, only_passdown)] {
        let (_, view) = snapshot(&mut w, id, 8, discards);
        w.write(view, 0, 8, 900);
        submitted(&w);
        assert_eq!(discard(&mut w, view, 0, 64), Status::Ok);
        assert_eq!(zeroed(&w), []);
    }
}

/// N10, N16.
#[test]
fn a_discard_of_a_snapshot_in_overflow_fails_as_a_write_does() {
    let (mut w, _) = world(64);
    let id = ViewId(1);
    let mut store = Box::new(w.new_store(id, 8, 24, "PO", false));
    store.discards = PASSDOWN;
    let snapshot = id;
    w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
        .unwrap();
    let view = w.add_actor(PortRole::View(id));
    assert_eq!(w.write(view, 0, 8, 900), Status::Ok);
    assert_eq!(w.write(view, 8, 8, 900), Status::IoError);
    assert_eq!(state_of(&w, id), SnapshotState::Overflow);
    submitted(&w);
    assert_eq!(discard(&mut w, view, 0, 8), Status::IoError);
    assert_eq!(zeroed(&w), []);
}

/// N17: Linux would take the origin's chunk 1 from the other snapshot.
#[test]
fn a_discard_is_passed_down_where_every_other_snapshot_has_its_own() {
    let (mut w, origin) = world(64);
    let (s, view) = snapshot(&mut w, 1, 8, PASSDOWN);
    let (_, other) = snapshot(&mut w, 2, 8, Discards::default());
    // Chunk 0: in both. Chunk 2: in the other only. Chunk 1: in none. Chunk 3: in ours.
    w.write(origin, 0, 8, 900);
    w.write(other, 16, 8, 901);
    w.write(view, 24, 8, 902);
    w.settle();
    submitted(&w);
    assert_eq!(discard(&mut w, view, 0, 32), Status::Ok);
    let cow = w.cows[&s];
    let expected = [
        (cow, 16, 8, Zeroing::Keep),
        (cow, 24, 8, Zeroing::Keep),
        (w.origin, 0, 8, Zeroing::Discard),
        (w.origin, 16, 8, Zeroing::Discard),
    ];
    assert_eq!(zeroed(&w), expected);
    let mut shown = numbers(64);
    shown[16..24].fill(901);
    assert_eq!(w.read(other, 0, 64).unwrap(), shown);
    assert_eq!(origin_now(&w)[24..], numbers(64)[24..]);
    // Chunks without an exception show the origin, as in Linux.
    let ours = w.read(view, 0, 32).unwrap();
    assert_eq!(ours[16..24], origin_now(&w)[16..24]);
    assert_eq!((&ours[..8], &ours[24..]), (&[0; 8][..], &[0; 8][..]));
}

/// N17: while a snapshot is being taken or handed over, or merges, nothing is passed
/// down; each of these waits for discards that were passed down before.
#[test]
fn a_discard_that_is_passed_down_keeps_clear_of_every_change() {
    let changes: [fn(&mut World) -> ControlRequest; 2] = [
        |w| ControlRequest::AddSnapshot {
            snapshot: ViewId(3),
            store: Box::new(w.new_store(ViewId(3), 8, 800, "P", false)),
        },
        |_| ControlRequest::Handover {
            snapshot: ViewId(2),
            writes: MergeWrites::Wait,
            follow: false,
        },
    ];
    for change in changes {
        let (mut w, origin) = world(64);
        let (_, view) = snapshot(&mut w, 1, 8, PASSDOWN);
        let (_, other) = snapshot(&mut w, 2, 8, Discards::default());
        w.write(origin, 0, 64, 900);
        w.settle();
        w.merge_background = false;
        submitted(&w);
        start_discard(&mut w, view, 1, 0, 8);
        let request = change(&mut w);
        submitted(&w);
        w.control(5, request);
        // A discard that arrives meanwhile zeroes its own store only.
        start_discard(&mut w, view, 2, 8, 8);
        let new = zeroed(&w);
        assert_eq!((new.len(), new[0].3), (1, Zeroing::Keep));
        w.settle_without(&[view]);
        assert!(w.actors[CONTROL].control_done.is_empty(), "it waits");
        w.settle();
        assert_eq!(w.actors[CONTROL].control_done, [(5, Ok(()))]);
        assert_done(&mut w, view, [1, 2]);
        // During a merge only the merger changes the origin.
        submitted(&w);
        discard(&mut w, view, 16, 8);
        let passed = zeroed(&w).iter().filter(|z| z.0 == w.origin).count();
        assert_eq!(passed, 0, "shared with the new snapshot, or merging");
        if w.engine.status().merge.is_none() {
            assert_eq!(w.read(other, 0, 64).unwrap(), numbers(64));
        }
    }
}

/// O11, N05: a write of zeroes is a write, through every view.
#[test]
fn zeroes_are_written_as_any_data_is() {
    let (mut w, origin) = world(64);
    let (s, view) = snapshot(&mut w, 1, 8, Discards::default());
    let zeroes = |w: &mut World, actor, sector, sectors: u64| {
        let data = vec![0; sectors as usize * 512];
        let kind = RequestKind::Write { durable: false };
        w.wait_for(actor, kind, sector, data).0
    };
    assert_eq!(zeroes(&mut w, origin, 4, 12), Status::Ok);
    assert_eq!(
        w.read(view, 0, 64).unwrap(),
        numbers(64),
        "copied out first"
    );
    assert_eq!(zeroes(&mut w, view, 20, 9), Status::Ok);
    let mut shown = numbers(64);
    shown[20..29].fill(0);
    assert_eq!(w.read(view, 0, 64).unwrap(), shown);
    assert_eq!(origin_now(&w)[20..29], numbers(64)[20..29]);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Redirect);
    assert_eq!(zeroes(&mut w, origin, 2, 40), Status::Ok);
    shown[2..42].fill(0);
    assert_eq!(w.read(origin, 0, 64).unwrap(), shown);
    assert_eq!(w.flush(origin), Status::Ok);
    w.merge_background = true;
    w.control_wait(ControlRequest::ResumeMerge).unwrap();
    w.settle();
    assert_eq!(origin_now(&w), shown);
}
