//! Small scenarios whose metadata areas end after 2, 3 or 4 entries, so that every
//! border between two areas is walked through crash by crash.

use super::plan::{Action, Case, Store};
use super::scenarios;
use crate::engine::MergeWrites::{Redirect, Wait};

/// Sizes of areas that [`of`] is called with.
pub const SIZES: [usize; 3] = [2, 3, 4];

/// Single exceptions fill an area, then a group crosses the next border.
fn copy_outs(n: u64) -> Case {
    Case::new("copy-outs fill one area after the other", 2 * n + 2)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..n - 1)
        .write(0, n - 1..n)
        .write(0, n..2 * n + 1)
        .flush(0)
        .read(1, 0..2 * n + 2)
}

/// The groups of two stores end at different borders.
fn two_stores(n: u64) -> Case {
    let other = (n as usize + 1) % 3 + 2;
    let mut case = Case::new("copy-outs for areas of two sizes", 2 * n)
        .store(Store::new(1, "P", 1, 60))
        .store(Store::new(2, "P", 2, 60))
        .write(0, 0..n + 1)
        .write(2, n..n + 1)
        .write(0, n + 1..2 * n)
        .flush(0)
        .areas_of(n as usize);
    case.stores[1].area = other;
    case
}

fn snapshot_writes(n: u64) -> Case {
    Case::new("a snapshot's writes fill areas", 2 * n + 1)
        .store(Store::new(1, "P", 1, 60))
        .write(1, 0..n + 1)
        .write(0, n..n + 2)
        .write_through(1, n..n + 1)
        .write(1, n + 1..2 * n + 1)
        .flush(1)
        .read(1, 0..2 * n + 1)
}

/// More entries wait for a flush than an area holds.
fn deferred(n: u64) -> Case {
    Case::new("deferred writes for several areas", 2 * n + 2)
        .store(Store::new(1, "P", 1, 60).deferred())
        .write(1, 0..n - 1)
        .write(1, n - 1..2 * n + 1)
        .flush(1)
        .write(0, 0..n)
        .flush(0)
}

/// The last slot cannot be used, because the next area would be beyond the end.
fn no_room(n: u64) -> Case {
    Case::new("no room for the next area, soon", 2 * n)
        .store(Store::new(1, "P", 1, n + 2))
        .store(Store::new(2, "PO", 1, n + 2))
        .write(0, 0..n - 1)
        .write(2, n..n + 1)
        .read(2, 0..n)
        .write(0, n - 1..n)
        .flush(0)
}

/// The device ends with an area that must never be full.
fn no_room_later(n: u64) -> Case {
    Case::new("no room for a third area", 2 * n + 1)
        .store(Store::new(1, "P", 1, 2 * (n + 1) + 1))
        .write(0, 0..n)
        .write(1, n..2 * n - 1)
        .flush(1)
        .write(0, n..2 * n)
        .flush(0)
}

/// An overflow at the end of an area ends when the device has room for the next area.
fn grown(n: u64) -> Case {
    Case::new("a store grows at the end of an area", 2 * n)
        .store(Store::new(1, "PO", 1, n + 2))
        .write(1, 0..n - 1)
        .rest()
        .write(1, n - 1..n)
        .rest()
        .then(Action::Grow { id: 1 })
        .rest()
        .write(1, n - 1..n)
        .write(0, n..n + 1)
        .write(1, n + 1..2 * n)
        .flush(1)
        .write(0, 0..n)
}

/// Batches of two entries empty one area after the other.
fn merge(n: u64, writes: crate::engine::MergeWrites) -> Case {
    let filled = 2 * n as usize + 1;
    Case::new("a merge across areas", 2 * n + 2)
        .store(Store::new(1, "P", 1, 60).filled(filled))
        .batch(1024)
        .handover(1, writes, false)
        .write(0, 1..3)
        .flush(0)
        .write(0, 0..2)
        .read(0, 0..2 * n + 2)
}

/// One batch takes entries from several areas, which are then zeroed from the end.
fn merge_of_areas(n: u64) -> Case {
    Case::new("a merge of several areas at once", 3 * n + 1)
        .store(Store::new(1, "P", 1, 60).filled(3 * n as usize))
        .batch(512 * (2 * n + 1))
        .handover(1, Wait, false)
        .write(0, n..n + 2)
        .flush(0)
}

/// The same, without a guest's flush, which would flush the store as well.
fn merge_of_areas_without_flushes(n: u64) -> Case {
    Case::new("a merge of several areas and writes through", 3 * n + 1)
        .store(Store::new(1, "P", 1, 60).filled(3 * n as usize))
        .batch(512 * (2 * n + 1))
        .handover(1, Wait, false)
        .write_through(0, n..n + 2)
        .write_through(0, 1..2)
        .write_through(0, n..n + 2)
}

/// The first entry's chunk is merged first: the last entry moves to another area and
/// leaves its own area empty.
fn hole(n: u64) -> Case {
    let origin = 2 * n + 2;
    Case::new("the last entry moves to another area", origin)
        .store(Store::new(1, "P", 1, 60).filled(2 * n as usize + 1))
        .batch(512)
        .handover(1, Wait, false)
        .write(0, origin - 1..origin)
        .flush(0)
        .write(0, origin - 2..origin - 1)
        .write(0, 0..1)
}

/// As [`hole`], but only guests' writes drive the merge, so they must find entries that
/// have moved.
fn hole_paused(n: u64) -> Case {
    let origin = 2 * n + 2;
    Case::new("a paused merge from the middle of the log", origin)
        .store(Store::new(1, "P", 1, 60).filled(2 * n as usize + 1))
        .batch(512)
        .handover(1, Wait, false)
        .then(Action::Pause)
        .write(0, origin - 1..origin)
        .rest()
        .write(0, 1..3)
        .rest()
        .write(0, n..n + 2)
        .flush(0)
        .rest()
        .then(Action::Resume)
}

/// As [`hole`], interrupted several times; each start settles the store and continues.
fn hole_interrupted(n: u64) -> Case {
    let origin = 2 * n + 2;
    Case::new("a move to another area interrupted", origin)
        .store(Store::new(1, "P", 1, 60).filled(2 * n as usize + 1))
        .batch(1024)
        .handover(1, Wait, false)
        .write(0, origin - 2..origin)
        .then(Action::PowerLoss)
        .write(0, origin - 1..origin)
        .then(Action::ProcessDeath)
        .write(0, origin - n - 1..origin - 2)
        .flush(0)
        .then(Action::PowerLoss)
}

/// The copy-outs of a merge's batches fill the other snapshot's areas.
fn merge_fills_another(n: u64) -> Case {
    let filled = n as usize + 1;
    Case::new("a merge fills another snapshot's area", n + 2)
        .store(Store::new(1, "P", 1, 60).filled(filled))
        .then(Action::Add(Store::new(2, "P", 1, 60)))
        .rest()
        .write(0, 0..1)
        .batch(512 * n)
        .handover(1, Redirect, true)
        .read(2, 0..n + 2)
        .write(0, 0..2)
        .flush(0)
}

/// The process ends right before and right after a border.
fn reopened(n: u64) -> Case {
    Case::new("a store taken up again at a border", 2 * n + 1)
        .store(Store::new(1, "P", 1, 60))
        .write(0, 0..n - 1)
        .then(Action::ProcessDeath)
        .write(0, n - 1..n)
        .then(Action::ProcessDeath)
        .write(1, n..n + 1)
        .then(Action::PowerLoss)
        .write(0, n..2 * n)
        .flush(0)
}

/// Stale entries behind a terminator that is the first of its area.
fn junk(n: u64) -> Case {
    let mut store = Store::new(1, "P", 1, 60).filled(n as usize);
    store.junk = true;
    Case::new("stale entries in an area that was begun", 2 * n + 1)
        .store(store)
        .write(0, 0..n)
        .write(1, n + 1..n + 2)
        .flush(0)
}

/// Every small scenario, with areas of `size` entries.
pub fn of(size: usize) -> Vec<Case> {
    let n = size as u64;
    let own = [
        copy_outs(n),
        snapshot_writes(n),
        deferred(n),
        no_room(n),
        no_room_later(n),
        grown(n),
        merge(n, Wait),
        merge(n, Redirect),
        merge_of_areas(n),
        merge_of_areas_without_flushes(n),
        hole(n),
        hole_paused(n),
        hole_interrupted(n),
        merge_fills_another(n),
        reopened(n),
        junk(n),
    ];
    let mut all = vec![two_stores(n)];
    let rest = scenarios::small().into_iter().chain(own);
    all.extend(rest.map(|case| case.areas_of(size)));
    all
}
