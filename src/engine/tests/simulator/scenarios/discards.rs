//! Discards and writes of zeroes, also passed down to the origin.

use super::super::plan::{Action, Case, Store};
use crate::engine::MergeWrites::{Redirect, Wait};

pub fn discards() -> Case {
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

pub fn discard_across_a_cut() -> Case {
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

pub fn discards_of_a_snapshot() -> Case {
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

pub fn passed_down() -> Case {
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

/// A new snapshot and a handover, both while a discard through a snapshot's view is
/// passed down to the origin.
pub fn passed_down_across_a_cut() -> Case {
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
