//! Small scenarios, each of them walked through crash by crash, fault by fault.

use super::areas;
use super::plan::{Action, Case, Store};
use crate::engine::MergeWrites::{Redirect, Wait};

fn copy_out() -> Case {
    Case::new("copy-out", 4)
        .store(Store::new(1, "P", 1, 40))
        .write(0, 0..2)
        .read(1, 0..4)
        .flush(0)
        .write(0, 1..3)
        .read(1, 0..2)
}

fn copy_out_for_two() -> Case {
    Case::new("copy-out for two snapshots", 4)
        .store(Store::new(1, "P", 1, 40))
        .store(Store::new(2, "P", 2, 80))
        .write(0, 0..1)
        .write(0, 2..4)
        .flush(0)
        .read(2, 0..4)
}

/// The area has one slot left; filling it needs the next one.
fn area_fills() -> Case {
    Case::new("an area fills", 36)
        .store(Store::new(1, "P", 1, 80).filled(30))
        .write(0, 0..1)
        .write(0, 1..2)
        .write(1, 2..3)
        .flush(1)
}

/// Three entries cross from one unit of the area to the next.
fn units_fill() -> Case {
    Case::new("a group crosses units", 68)
        .store(Store::new(1, "P", 2, 200).filled(31))
        .write(0, 0..6)
        .flush(0)
}

fn snapshot_writes() -> Case {
    Case::new("writes to the snapshot", 4)
        .store(Store::new(1, "P", 2, 80))
        .write(1, 0..2)
        .write(1, 2..3)
        .flush(1)
        .write(1, 1..2)
        .write(0, 2..4)
        .flush(1)
        .read(1, 0..4)
}

/// Its parts differ in their places within the request: a part of a chunk at each
/// end, whole chunks, and extents of the store in another order than in the view.
fn write_across_chunks() -> Case {
    Case::new("a write across several chunks", 6)
        .store(Store::new(1, "P", 2, 80))
        .write(1, 2..3)
        .rest()
        .write(1, 1..5)
        .read(1, 0..6)
        .rest()
        .write(1, 0..6)
        .read(1, 1..6)
        .flush(1)
}

fn deferred_writes() -> Case {
    Case::new("deferred writes to the snapshot", 4)
        .store(Store::new(1, "P", 1, 60).deferred())
        .write(1, 0..1)
        .write_through(1, 0..1)
        .write(1, 1..2)
        .flush(1)
        .write(1, 2..3)
        .write(0, 2..3)
        .flush(0)
        .then(Action::Sync)
}

fn write_through() -> Case {
    Case::new("writes through", 4)
        .store(Store::new(1, "P", 1, 60).deferred())
        .write_through(1, 1..2)
        .write(1, 2..3)
        .rest()
        .write_through(1, 2..3)
        .write_through(0, 0..1)
        .read(1, 0..4)
}

fn merge(writes: crate::engine::MergeWrites) -> Case {
    Case::new("a merge", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..1)
        .write(0, 2..4)
        .rest()
        .batch(512)
        .handover(1, writes, false)
        .write(0, 0..1)
        .flush(0)
        .write(0, 3..4)
        .read(0, 0..4)
        .flush(0)
}

fn merge_with_another() -> Case {
    Case::new("a merge beside another snapshot", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..2)
        .rest()
        .then(Action::Add(Store::new(2, "P", 2, 60)))
        .rest()
        .handover(1, Redirect, true)
        .write(0, 1..2)
        .read(2, 0..4)
        .flush(0)
}

/// The chunk of the log's first entry jumps the queue, so that the last entry moves.
fn hole() -> Case {
    Case::new("a merge from the middle of the log", 6)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..1)
        .rest()
        .write(0, 1..2)
        .rest()
        .write(0, 2..3)
        .rest()
        .batch(512)
        .handover(1, Wait, false)
        .write(0, 0..1)
        .flush(0)
        .write(0, 1..2)
        .write(0, 4..5)
}

/// As [`hole`], and the entries lie in different units.
fn hole_across_units() -> Case {
    Case::new("a merge from the first unit of a longer log", 68)
        .store(Store::new(1, "P", 2, 200).filled(34))
        .batch(1024)
        .handover(1, Wait, false)
        .write(0, 66..68)
        .flush(0)
        .write(0, 64..65)
}

/// Removal of many entries empties several units.
fn long_tail() -> Case {
    Case::new("a merge of several units at once", 68)
        .store(Store::new(1, "P", 2, 200).filled(34))
        .batch(34 << 10)
        .handover(1, Redirect, false)
        .write(0, 10..12)
        .flush(0)
}

/// Found: the snapshot's chunks that were not copied out showed origin data that
/// no flush had covered, and power loss took it back: the snapshot changed. A cut
/// flushes the origin now.
fn cut() -> Case {
    Case::new("a snapshot is taken and removed", 4)
        .write(0, 0..2)
        .write(0, 2..4)
        .then(Action::Add(Store::new(1, "P", 1, 60)))
        .write(0, 1..3)
        .read(1, 0..4)
        .flush(0)
        .then(Action::Remove { id: 1 })
        .write(0, 0..2)
        .flush(0)
}

/// Header, area and one data chunk.
fn full() -> Case {
    Case::new("a full store", 4)
        .store(Store::new(1, "P", 1, 3))
        .store(Store::new(2, "PO", 1, 3))
        .write(0, 0..1)
        .read(1, 0..2)
        .write(0, 1..2)
        .read(2, 0..2)
        .write(0, 2..3)
        .flush(0)
}

fn overflow() -> Case {
    Case::new("a snapshot's own write overflows", 4)
        .store(Store::new(1, "P", 1, 3))
        .store(Store::new(2, "PO", 1, 3))
        .write(1, 0..1)
        .write(2, 0..1)
        .flush(2)
        .write(1, 1..2)
        .write(2, 1..2)
        .read(2, 0..2)
        .write(0, 3..4)
        .read(2, 0..4)
        .flush(0)
}

fn filled_to_the_last_area() -> Case {
    Case::new("no room for the next area", 36)
        .store(Store::new(1, "P", 1, 34).filled(30))
        .write(0, 0..1)
        .write(0, 1..2)
        .flush(0)
}

fn transient() -> Case {
    Case::new("a transient store", 4)
        .store(Store::new(1, "N", 1, 40))
        .write(0, 0..2)
        .write(1, 1..3)
        .read(1, 0..4)
        .flush(1)
}

fn large_blocks() -> Case {
    let mut case = Case::new("blocks of 4096", 16)
        .store(Store::new(1, "P", 8, 200))
        .write(0, 0..8)
        .flush(0)
        .handover(1, Wait, false)
        .write(0, 0..8)
        .flush(0);
    case.block = 4096;
    case
}

fn junk() -> Case {
    let mut store = Store::new(1, "P", 1, 60).filled(2);
    store.junk = true;
    Case::new("stale entries behind the terminator", 4)
        .store(store)
        .write(0, 0..1)
        .flush(0)
}

/// Power and process end in turns while a merge runs.
fn interrupted() -> Case {
    Case::new("a merge interrupted", 6)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..1)
        .write(0, 1..2)
        .write(0, 2..4)
        .flush(0)
        .rest()
        .batch(512)
        .handover(1, Wait, false)
        .write(0, 0..1)
        .then(Action::PowerLoss)
        .write(0, 1..2)
        .then(Action::ProcessDeath)
        .write(0, 2..3)
        .flush(0)
        .then(Action::PowerLoss)
        .write(0, 3..4)
}

/// A store lives on after the death of its process.
///
/// Found: the new process believed an entry (or an invalid header) that the dead
/// one had written and not made durable, overwrote the origin on the strength of
/// it, and power loss took the entry back. Settling a store begins with a flush now.
fn reopened() -> Case {
    Case::new("a store taken up again", 6)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..1)
        .write(1, 1..2)
        .then(Action::ProcessDeath)
        .write(0, 1..2)
        .write(0, 0..1)
        .flush(0)
        .write(1, 3..4)
        .then(Action::ProcessDeath)
        .write(0, 4..5)
        .flush(0)
}

/// Found by the sweep: the flush of a clean stop that was called off failed, and a
/// later flush of the guest was believed though the device had dropped the data.
fn synced() -> Case {
    Case::new("a sync, and life goes on", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..2)
        .write(1, 1..3)
        .rest()
        .then(Action::Sync)
        .rest()
        .flush(0)
        .flush(1)
        .write(0, 3..4)
}

/// Found by the sweep: while a merge stood still, a flush of its store failed, and
/// the guest's next flush was believed.
fn paused() -> Case {
    Case::new("a merge that is paused", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..4)
        .rest()
        .batch(512)
        .handover(1, Redirect, false)
        .then(Action::Pause)
        .write(0, 0..1)
        .rest()
        .flush(0)
        .rest()
        .flush(0)
        .rest()
        .then(Action::MergeWrites(Wait))
        .write(0, 1..2)
        .rest()
        .then(Action::Resume)
        .read(0, 0..4)
}

/// Found by random world 10048: the clean stop's flush of a store was under way
/// when the end of the store's merge let go of it.
fn synced_at_the_end() -> Case {
    Case::new("a sync at the end of a merge", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..2)
        .handover(1, Wait, false)
        .then(Action::Sync)
        .flush(0)
        .then(Action::Sync)
}

fn discards() -> Case {
    Case::new("discards of the origin", 6)
        .store(Store::new(1, "P", 1, 60))
        .store(Store::new(2, "P", 2, 60))
        .write(0, 0..2)
        .rest()
        .discard(0, 0..4)
        .read(1, 0..4)
        .flush(0)
        .zero(0, 3..5)
        .read(2, 0..6)
        .discard(0, 1..6)
        .write(0, 1..2)
        .flush(0)
        .read(1, 0..6)
}

fn discard_across_a_cut() -> Case {
    Case::new("a discard, and a snapshot is taken", 4)
        .write(0, 0..2)
        .discard(0, 0..4)
        .then(Action::Add(Store::new(1, "P", 1, 60)))
        .discard(0, 1..3)
        .read(1, 0..4)
        .rest()
        .read(1, 0..4)
        .flush(0)
}

fn discards_of_a_snapshot() -> Case {
    Case::new("discards and zeroes of a snapshot", 4)
        .store(Store::new(1, "P", 2, 60).discards(false))
        .write(1, 0..2)
        .zero(1, 2..3)
        .discard(1, 0..4)
        .flush(1)
        .write(0, 0..4)
        .discard(1, 1..2)
        .flush(1)
        .handover(1, Redirect, true)
        .discard(0, 0..4)
        .zero(0, 0..1)
        .flush(0)
}

fn passed_down() -> Case {
    Case::new("a discard is passed down", 4)
        .store(Store::new(1, "P", 1, 60).discards(true))
        .store(Store::new(2, "P", 1, 60))
        .write(2, 0..2)
        .write(0, 1..3)
        .rest()
        .discard(1, 0..4)
        .read(2, 0..4)
        .read(0, 0..4)
        .rest()
        .read(2, 0..4)
        .flush(0)
}

/// Both kinds of change that a discard of the origin must not be astride of, when
/// the discard comes through a snapshot's view.
fn passed_down_across_a_cut() -> Case {
    Case::new("a discard is passed down, and a snapshot is taken", 4)
        .store(Store::new(1, "P", 1, 60).discards(true))
        .write(0, 0..2)
        .rest()
        .discard(1, 0..4)
        .then(Action::Add(Store::new(2, "P", 1, 60)))
        .read(2, 0..4)
        .discard(1, 0..4)
        .rest()
        .read(2, 0..4)
        .handover(2, Wait, false)
        .discard(1, 1..3)
        .flush(0)
}

/// The origin grew since the snapshot was taken. Its last chunk goes on behind its
/// end, where the origin has something else by the time of the merge.
fn shorter(writes: crate::engine::MergeWrites) -> Case {
    Case::new("a snapshot shorter than its origin", 6)
        .store(Store::new(1, "P", 2, 80).shorter_by(3))
        .store(Store::new(2, "P", 1, 60))
        .write(0, 2..6)
        .rest()
        .write(0, 3..5)
        .write(1, 2..3)
        .rest()
        .batch(512)
        .handover(1, writes, false)
        .read(0, 0..6)
        .write(0, 2..4)
        .write(0, 3..4)
        .read(0, 0..6)
        .flush(0)
        .read(2, 0..6)
}

/// Found by the sweep: of two flushes under way at once the first failed, and the
/// second was believed though the device had dropped what both covered.
fn flushes_at_once() -> Case {
    Case::new("flushes at once", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(1, 0..2)
        .write(0, 2..3)
        .rest()
        .write(1, 0..2)
        .write(0, 0..1)
        .rest()
        .flush(0)
        .flush(1)
        .flush(0)
        .write(0, 3..4)
        .flush(1)
        .rest()
        .write(0, 0..1)
}

fn flushes_at_once_in_a_merge() -> Case {
    Case::new("flushes at once in a merge", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..4)
        .rest()
        .batch(512)
        .handover(1, Redirect, false)
        .write(0, 0..2)
        .flush(0)
        .flush(0)
        .write(0, 2..4)
        .flush(0)
        .flush(0)
}

/// Found: the flush of a snapshot's store failed while a handover waited for it, and
/// the merge view's next flush was believed.
fn flush_at_a_handover() -> Case {
    Case::new("a flush at a handover", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(1, 0..4)
        .rest()
        .write(1, 0..4)
        .rest()
        .batch(512)
        .flush(1)
        .handover(1, Redirect, true)
        .then(Action::Pause)
        .flush(0)
        .rest()
        .write(0, 0..1)
}

/// Those that write little enough to be worth walking with short areas as well.
pub fn small() -> Vec<Case> {
    vec![
        copy_out(),
        copy_out_for_two(),
        snapshot_writes(),
        write_across_chunks(),
        deferred_writes(),
        write_through(),
        merge(Wait),
        merge(Redirect),
        merge_with_another(),
        hole(),
        cut(),
        full(),
        overflow(),
        large_blocks(),
        interrupted(),
        reopened(),
        synced(),
        paused(),
        synced_at_the_end(),
        discards(),
        discard_across_a_cut(),
        discards_of_a_snapshot(),
        passed_down(),
        passed_down_across_a_cut(),
        shorter(Wait),
        shorter(Redirect),
        flushes_at_once(),
        flushes_at_once_in_a_merge(),
        flush_at_a_handover(),
    ]
}

/// Those that fill areas and units of the size that they have on real disks.
fn whole() -> Vec<Case> {
    vec![
        area_fills(),
        units_fill(),
        hole_across_units(),
        long_tail(),
        filled_to_the_last_area(),
        transient(),
        junk(),
    ]
}

/// All scenarios; the seed chooses how short the short areas are.
pub fn all(seed: u64) -> Vec<Case> {
    let size = areas::SIZES[seed as usize % areas::SIZES.len()];
    let whole = small().into_iter().chain(whole());
    whole.chain(areas::of(size)).collect()
}
