//! Merges: both policies, holes in the log, several units, interruptions, pauses.

use super::super::plan::{Action, Case, Store};
use crate::engine::MergeWrites;
use crate::engine::MergeWrites::{Redirect, Wait};

pub fn merge(writes: MergeWrites) -> Case {
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

pub fn merge_with_another() -> Case {
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

/// The chunk of the log's first entry is merged first, so that the last entry moves.
pub fn hole() -> Case {
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
pub fn hole_across_units() -> Case {
    Case::new("a merge from the first unit of a longer log", 68)
        .store(Store::new(1, "P", 2, 200).filled(34))
        .batch(1024)
        .handover(1, Wait, false)
        .write(0, 66..68)
        .flush(0)
        .write(0, 64..65)
}

/// One batch takes three units off the end of the log: they are padded, then zeroed.
pub fn padded_tail() -> Case {
    Case::new("a merge of three units at once", 400)
        .store(Store::new(1, "P", 4, 600).filled_in_order(100))
        .batch(75 * 2048)
        .handover(1, Wait, false)
        .flush(0)
}

/// As [`padded_tail`], to the first entry, which goes by itself.
pub fn emptied_at_once() -> Case {
    Case::new("a merge of all units at once", 400)
        .store(Store::new(1, "P", 4, 600).filled_in_order(100))
        .batch(100 * 2048)
        .handover(1, Wait, false)
        .flush(0)
}

/// The same from the middle of the log: entries move, then the tail is padded.
pub fn padded_after_moves() -> Case {
    Case::new("a merge of several units with a hole", 400)
        .store(Store::new(1, "P", 4, 600).filled_in_order(100))
        .batch(75 * 2048)
        .handover(1, Wait, false)
        .write(0, 0..4)
        .write(0, 396..400)
        .flush(0)
}

/// Removal of many entries empties several units.
pub fn long_tail() -> Case {
    Case::new("a merge of several units at once", 68)
        .store(Store::new(1, "P", 2, 200).filled(34))
        .batch(34 << 10)
        .handover(1, Redirect, false)
        .write(0, 10..12)
        .flush(0)
}

/// Power loss and process death alternate while a merge runs.
pub fn interrupted() -> Case {
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

/// Found by the sweep: while a merge was paused, a flush of its store failed, and the
/// guest's next flush succeeded.
pub fn paused() -> Case {
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

/// The origin grew since the snapshot was taken. The snapshot's last chunk extends
/// beyond its end, where the origin has other data by the time of the merge.
pub fn shorter(writes: MergeWrites) -> Case {
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

/// More chunks are waited for than a batch takes, the last chunk first. The writes keep a
/// part of their chunks, which are copied therefore.
pub fn queue() -> Case {
    Case::new("a merge with a queue of waiting writes", 8)
        .store(Store::new(1, "P", 2, 80))
        .write(0, 0..8)
        .rest()
        .batch(1024)
        .handover(1, Wait, false)
        .write(0, 6..7)
        .write(0, 3..4)
        .write(0, 1..5)
        .write(0, 0..1)
        .flush(0)
}

/// Writes that replace whole chunks share flush and removal, while the background copies,
/// flushes and removes; some meet chunks that are being copied.
pub fn replaced() -> Case {
    Case::new("a merge of chunks that writes replace", 6)
        .store(Store::new(1, "P", 1, 60))
        .store(Store::new(2, "P", 2, 60))
        .write(0, 0..6)
        .rest()
        .batch(1024)
        .handover(1, Wait, false)
        .write_through(0, 4..6)
        .write(0, 1..2)
        .write(0, 0..2)
        .flush(0)
        .write(0, 2..5)
        .read(2, 0..6)
}

/// Redirected writes come again and again to chunks that are being copied.
pub fn withdrawn() -> Case {
    Case::new("a merge of chunks that are written meanwhile", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..4)
        .rest()
        .batch(2048)
        .handover(1, Redirect, false)
        .write(0, 2..4)
        .write(0, 1..3)
        .write(0, 2..4)
        .flush(0)
        .write(0, 3..4)
}
