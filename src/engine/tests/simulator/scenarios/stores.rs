//! Copy-outs, snapshot writes, new snapshots, and stores that fill, overflow and are
//! loaded again.

use super::super::plan::{Action, Case, Store};
use crate::engine::MergeWrites::Wait;

pub fn copy_out() -> Case {
    Case::new("copy-out", 4)
        .store(Store::new(1, "P", 1, 40))
        .write(0, 0..2)
        .read(1, 0..4)
        .flush(0)
        .write(0, 1..3)
        .read(1, 0..2)
}

pub fn copy_out_for_two() -> Case {
    Case::new("copy-out for two snapshots", 4)
        .store(Store::new(1, "P", 1, 40))
        .store(Store::new(2, "P", 2, 80))
        .write(0, 0..1)
        .write(0, 2..4)
        .flush(0)
        .read(2, 0..4)
}

/// The area has one slot left; filling it needs the next one.
pub fn area_fills() -> Case {
    Case::new("an area fills", 36)
        .store(Store::new(1, "P", 1, 80).filled(30))
        .write(0, 0..1)
        .write(0, 1..2)
        .write(1, 2..3)
        .flush(1)
}

/// Three entries cross from one unit of the area to the next.
pub fn units_fill() -> Case {
    Case::new("a group crosses units", 68)
        .store(Store::new(1, "P", 2, 200).filled(31))
        .write(0, 0..6)
        .flush(0)
}

/// The first of three units is padded with the entry that it ends in, the second as well.
pub fn units_fill_at_once() -> Case {
    Case::new("a group of three units", 272)
        .store(Store::new(1, "P", 4, 600).filled(31))
        .write(0, 0..136)
        .flush(0)
}

pub fn snapshot_writes() -> Case {
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

/// Parts of the request lie at different offsets: partial chunks at both ends, whole
/// chunks between them, and extents of the store in another order than in the view.
pub fn write_across_chunks() -> Case {
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

pub fn deferred_writes() -> Case {
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

pub fn write_through() -> Case {
    Case::new("writes through", 4)
        .store(Store::new(1, "P", 1, 60).deferred())
        .write_through(1, 1..2)
        .write(1, 2..3)
        .rest()
        .write_through(1, 2..3)
        .write_through(0, 0..1)
        .read(1, 0..4)
}

/// Chunks are allocated behind, in and in front of what is being zeroed.
pub fn zeroed_ahead(chunks: u64) -> Case {
    Case::new("zeroes ahead of the data", 4)
        .store(Store::new(1, "P", 1, 60).zeroed_ahead(chunks))
        .write(0, 0..1)
        .write(1, 1..2)
        .write(0, 2..4)
        .read(1, 0..4)
}

/// A bug that was found: chunks that were not copied out showed origin data that no
/// flush had covered. Power loss reverted it, so the snapshot changed. Taking a
/// snapshot now flushes the origin.
pub fn cut() -> Case {
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
pub fn full() -> Case {
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

pub fn overflow() -> Case {
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

pub fn filled_to_the_last_area() -> Case {
    Case::new("no room for the next area", 36)
        .store(Store::new(1, "P", 1, 34).filled(30))
        .write(0, 0..1)
        .write(0, 1..2)
        .flush(0)
}

pub fn transient() -> Case {
    Case::new("a transient store", 4)
        .store(Store::new(1, "N", 1, 40))
        .write(0, 0..2)
        .write(1, 1..3)
        .read(1, 0..4)
        .flush(1)
}

pub fn large_blocks() -> Case {
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

pub fn junk() -> Case {
    let mut store = Store::new(1, "P", 1, 60).filled(2);
    store.junk = true;
    Case::new("stale entries behind the terminator", 4)
        .store(store)
        .write(0, 0..1)
        .flush(0)
}

/// A store is loaded again after the death of its process.
///
/// A bug that was found: the new process relied on an entry (or an invalid header)
/// that the dead one had written but not made durable, and overwrote the origin. Then
/// power loss reverted the entry. Settling a store now begins with a flush.
pub fn reopened() -> Case {
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
