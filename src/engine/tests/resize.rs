//! An origin that grows while guests use it.

use super::helpers::*;
use super::world::*;
use crate::engine::*;

/// Sectors before and after. The snapshot ends within its chunk 2.
const BEFORE: u64 = 20;
const AFTER: u64 = 64;
const CHUNK: u64 = 8;

fn resize(w: &mut World, sectors: u64) -> Result<(), ControlError> {
    if sectors > w.devices.sectors(w.origin) {
        w.devices.resize(w.origin, sectors);
    }
    w.control_wait(ControlRequest::ResizeOrigin { sectors })
}

fn with_snapshot() -> (World, usize, SnapshotId, usize) {
    let (mut w, origin) = world(BEFORE);
    let s = w.add_snapshot(1, CHUNK, 400, "P", false);
    let view = w.add_actor(PortRole::View(s));
    (w, origin, s, view)
}

#[test]
fn guests_reach_the_new_sectors_and_snapshots_keep_their_lengths() {
    let (mut w, origin, s, view) = with_snapshot();
    assert_eq!(w.write(origin, BEFORE, 1, 900), Status::IoError);
    resize(&mut w, AFTER).unwrap();
    assert_eq!(w.engine.origin_sectors(), AFTER);
    // Across the old end: only what lies before it is copied.
    assert_eq!(
        w.write(origin, BEFORE - 1, AFTER - BEFORE + 1, 900),
        Status::Ok
    );
    assert_eq!(w.write(origin, AFTER, 1, 901), Status::IoError);
    let kept = entries(&w.devices, w.origin, w.cows[&s]);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(w.read(view, 0, BEFORE).unwrap(), numbers(BEFORE));
    assert_eq!(w.read(view, BEFORE, 1), Err(Status::IoError));
    assert_eq!(w.write(view, BEFORE - 1, 1, 902), Status::Ok);
    assert_eq!(w.read(view, BEFORE - 1, 1).unwrap(), [902]);
    let later = w.add_snapshot(2, CHUNK, 400, "P", false);
    let later = w.add_actor(PortRole::View(later));
    assert_eq!(w.read(later, BEFORE, 1).unwrap(), [900]);
    assert_eq!(w.read(later, AFTER - 1, 1).unwrap(), [900]);
}

#[test]
fn an_origin_never_becomes_smaller() {
    let (mut w, origin, _, _) = with_snapshot();
    resize(&mut w, AFTER).unwrap();
    assert_eq!(resize(&mut w, AFTER - 1), Err(ControlError::Shrinks));
    assert_eq!(resize(&mut w, AFTER), Ok(()));
    assert_eq!(w.write(origin, AFTER - 1, 1, 900), Status::Ok);
}

/// The chunk in which the snapshot ends is read up to the old end. If it were written up to
/// the new one, the copy would have bytes that nobody has read.
#[test]
fn a_chunk_that_is_copied_while_the_origin_grows_is_copied_up_to_the_old_end() {
    let (mut w, origin, s, view) = with_snapshot();
    submitted(&w);
    start_write(&mut w, origin, 0, (BEFORE - 1, 1), 900);
    start_write(&mut w, view, 0, (0, 1), 800);
    resize(&mut w, AFTER).unwrap();
    start_write(&mut w, origin, 1, (BEFORE, AFTER - BEFORE), 901);
    while w.advance() {}
    assert_done(&mut w, origin, [0, 1]);
    assert_done(&mut w, view, [0]);
    let mut expected = numbers(BEFORE);
    expected[0] = 800;
    assert_eq!(w.read(view, 0, BEFORE).unwrap(), expected);
    for entry in entries(&w.devices, w.origin, w.cows[&s]) {
        let end = BEFORE.min((entry.old + 1) * CHUNK);
        let sectors = end - entry.old * CHUNK;
        let copy = w
            .devices
            .read_now(w.cows[&s], entry.new * CHUNK * 512, sectors * 512);
        let first = (entry.old * CHUNK) as usize;
        assert_eq!(
            stamps_from(entry.old * CHUNK, &copy),
            expected[first..end as usize]
        );
    }
}

#[test]
fn a_merge_under_way_leaves_what_lies_behind_its_snapshot() {
    for (seed, writes) in (0..20).zip(
        [MergeWrites::Wait, MergeWrites::Redirect]
            .into_iter()
            .cycle(),
    ) {
        let (mut w, origin, s, view) = with_snapshot();
        w.rng = crate::io::sim::Rng::new(seed);
        assert_eq!(w.write(view, 0, BEFORE, 800), Status::Ok);
        hand_over(&mut w, s, writes);
        for _ in 0..seed {
            w.advance();
        }
        resize(&mut w, AFTER).unwrap();
        start_write(&mut w, origin, 0, (BEFORE, AFTER - BEFORE), 901);
        start_write(&mut w, origin, 1, (3, 2), 902);
        while w.advance() {}
        assert_done(&mut w, origin, [0, 1]);
        let mut expected = vec![800; BEFORE as usize];
        expected.resize(AFTER as usize, 901);
        expected[3..5].fill(902);
        assert_eq!(origin_now(&w), expected, "{seed} {writes:?}");
    }
}
