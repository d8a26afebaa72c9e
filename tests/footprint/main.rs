//! What exceptions and requests cost in memory and instructions, by counts: bytes that are
//! allocated, allocations, and instructions under callgrind.
//!
//! The engine runs alone, on a disk that ends every operation at once. The tests run one
//! after the other, because the allocator's counts are of the whole process.
#![allow(
    unsafe_code, // The allocator that counts.
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod bench;
mod bounded;
mod busy;
mod farm;
mod idle;
mod instructions;
#[path = "../common/memory.rs"]
mod memory;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bench::{Bench, CHUNK_SECTORS, Pattern};
use snapback::engine::RequestKind;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes for each exception of a store that was loaded: log and table.
fn loaded(pattern: Pattern, count: u64) -> f64 {
    let (bench, bytes) = memory::growth(|| Bench::loaded(pattern, count));
    let (empty, without) = memory::growth(|| Bench::loaded(pattern, 0));
    let each = bytes.saturating_sub(without) as f64 / count as f64;
    println!("{pattern:?}, {count} loaded: {each:.1} bytes each");
    drop((bench, empty));
    each
}

/// The same for exceptions that a guest makes, one after the other.
fn written(pattern: Pattern, count: u64) -> f64 {
    let mut bench = Bench::loaded(pattern, 0);
    // The port's buffers have their sizes.
    bench.write(pattern.place(count) * CHUNK_SECTORS, CHUNK_SECTORS);
    let ((), bytes) = memory::growth(|| {
        for n in 0..count {
            bench.write(pattern.place(n) * CHUNK_SECTORS, CHUNK_SECTORS);
        }
    });
    let each = bytes as f64 / count as f64;
    println!("{pattern:?}, {count} written: {each:.1} bytes each");
    each
}

#[test]
fn clustered_exceptions_take_at_most_8_bytes_each() {
    let _alone = alone();
    for pattern in [Pattern::Row, Pattern::Cluster] {
        assert!(loaded(pattern, 500_000) <= 8.0);
        assert!(written(pattern, 500_000) <= 8.0);
    }
}

#[test]
fn exceptions_at_random_take_at_most_24_bytes_each() {
    let _alone = alone();
    assert!(loaded(Pattern::Random, 1_000_000) <= 24.0);
    for count in [100_000, 300_000, 500_000, 1_000_000] {
        assert!(written(Pattern::Random, count) <= 24.0);
    }
}

#[test]
fn far_apart_each_exception_takes_a_few_cells_and_not_a_leaf_for_its_region() {
    let _alone = alone();
    assert!(loaded(Pattern::Sparse, 100_000) <= 80.0);
}

#[test]
fn reads_and_rewrites_allocate_nothing() {
    let _alone = alone();
    for pattern in [Pattern::Row, Pattern::Random] {
        let mut bench = Bench::loaded(pattern, 100_000);
        let mut round = || {
            for n in 0..1000 {
                let sector = pattern.place(n * 97) * CHUNK_SECTORS;
                bench.read(sector, CHUNK_SECTORS);
                // Also what was never copied, and many chunks at once.
                bench.read(sector, 64 * CHUNK_SECTORS);
                bench.write(sector, CHUNK_SECTORS);
                bench.write(sector + 1, 1);
                bench.origin(RequestKind::Read, sector, 8);
                bench.origin(RequestKind::Write { durable: false }, sector, CHUNK_SECTORS);
                bench.origin(RequestKind::Flush, 0, 0);
            }
        };
        // Buffers and queues get their sizes.
        round();
        let ((), allocations) = memory::allocations(round);
        assert_eq!(allocations, 0, "{pattern:?}, 7000 requests");
    }
}
