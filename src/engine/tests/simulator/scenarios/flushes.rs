//! Flushes that fail beside or before others: of guests, of a clean stop, of a handover.

use super::super::plan::{Action, Case, Store};
use crate::engine::MergeWrites::{Redirect, Wait};

/// Found by the sweep: the flush of a cancelled clean stop failed, and a later flush of
/// the guest succeeded although the device had dropped the data.
pub fn synced() -> Case {
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

/// Found by random world 10048: the clean stop's flush of a store was under way when
/// the end of the store's merge released it.
pub fn synced_at_the_end() -> Case {
    Case::new("a sync at the end of a merge", 4)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..2)
        .handover(1, Wait, false)
        .then(Action::Sync)
        .flush(0)
        .then(Action::Sync)
}

/// Found by the sweep: of two flushes under way at once the first failed, and the
/// second succeeded although the device had dropped what both covered.
pub fn flushes_at_once() -> Case {
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

pub fn flushes_at_once_in_a_merge() -> Case {
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
/// the merge view's next flush succeeded.
pub fn flush_at_a_handover() -> Case {
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
