//! What the queues of a view count of their guest's requests.
//!
//! Each queue has a block of its own, in cache lines of its own, that only its worker writes.
//! So counting needs no lock and no instruction that locks the bus: who reads adds up the
//! blocks. The blocks belong to the view, not to the worker, so that the numbers do not go
//! back when a front end connects again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    GetId,
    /// A request that was refused before anything was known of it but that it is wrong.
    Other,
}

impl Operation {
    pub const ALL: [Self; OPERATIONS] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::GetId,
        Self::Other,
    ];

    /// The value of its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write_zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::GetId => "get_id",
            Self::Other => "other",
        }
    }
}

const OPERATIONS: usize = 7;

/// Why a request was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCause {
    /// A disk, or a view that has no data any more.
    Io,
    /// The request itself: malformed, outside of the disk, or a write to a read-only disk.
    Invalid,
    /// Its type is not one that the disk offers.
    Unsupported,
}

impl ErrorCause {
    pub const ALL: [Self; CAUSES] = [Self::Io, Self::Invalid, Self::Unsupported];

    /// The value of its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
        }
    }
}

const CAUSES: usize = 3;

/// Ranges of latencies: bucket `i` has those below `2^(i + 12)` ns that no bucket before it
/// has (4 µs at first, 17 s at last), the last one all others.
pub const BUCKETS: usize = 24;
/// Logarithm of the end of the first bucket in nanoseconds.
const FIRST_BITS: u32 = 12;

/// The end of a bucket in nanoseconds; `None`: the last one has no end.
pub fn bucket_end(bucket: usize) -> Option<u64> {
    let bits = u32::try_from(bucket).ok()?;
    (bucket + 1 < BUCKETS).then(|| 1 << (FIRST_BITS + bits))
}

/// The bucket of a latency; [`BUCKETS`] or more stands for the last one.
const fn bucket_of(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.leading_zeros();
    // At most 52.
    bits.saturating_sub(FIRST_BITS) as usize
}

/// A number that one thread at a time writes.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        let now = self.0.load(Ordering::Relaxed).wrapping_add(more);
        self.0.store(now, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct OperationCounters {
    bytes: Counter,
    nanoseconds: Counter,
    errors: [Counter; CAUSES],
    latencies: [Counter; BUCKETS],
}

/// The numbers of one queue. Only its worker writes them. The alignment keeps them away from
/// what other threads write: processors fetch pairs of lines of 64 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    operations: [OperationCounters; OPERATIONS],
    in_flight: Counter,
    ring_faults: Counter,
}

impl QueueCounters {
    /// A request has ended, `nanoseconds` after it was taken. `bytes` is what it transferred.
    pub fn ended(&self, operation: Operation, bytes: u64, nanoseconds: u64) {
        let Some(counters) = self.operations.get(operation as usize) else {
            return;
        };
        counters.bytes.add(bytes);
        counters.nanoseconds.add(nanoseconds);
        let [.., last] = &counters.latencies;
        let bucket = counters.latencies.get(bucket_of(nanoseconds));
        bucket.unwrap_or(last).add(1);
    }

    /// A request is answered with an error; [`Self::ended`] counts it as well.
    pub fn failed(&self, operation: Operation, cause: ErrorCause) {
        let counters = self.operations.get(operation as usize);
        if let Some(errors) = counters.and_then(|c| c.errors.get(cause as usize)) {
            errors.add(1);
        }
    }

    /// So many requests are under way now.
    pub fn set_in_flight(&self, requests: usize) {
        let requests = u64::try_from(requests).unwrap_or(u64::MAX);
        self.in_flight.0.store(requests, Ordering::Relaxed);
    }

    /// The ring has been stopped, because it is malformed.
    pub fn ring_fault(&self) {
        self.ring_faults.add(1);
    }
}

/// The sums of one operation over the queues of a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationTotals {
    /// Of the requests that succeeded.
    pub bytes: u64,
    /// From when a request was taken from the ring to its answer, of all together.
    pub nanoseconds: u64,
    /// As in [`ErrorCause::ALL`].
    pub errors: [u64; CAUSES],
    /// Requests by latency, see [`bucket_end`].
    pub latencies: [u64; BUCKETS],
}

impl OperationTotals {
    /// Requests that have ended, also those that failed.
    pub fn requests(&self) -> u64 {
        self.latencies.iter().sum()
    }

    fn add(&mut self, counters: &OperationCounters) {
        self.bytes = self.bytes.wrapping_add(counters.bytes.get());
        self.nanoseconds = self.nanoseconds.wrapping_add(counters.nanoseconds.get());
        for (sum, counter) in self.errors.iter_mut().zip(&counters.errors) {
            *sum = sum.wrapping_add(counter.get());
        }
        for (sum, counter) in self.latencies.iter_mut().zip(&counters.latencies) {
            *sum = sum.wrapping_add(counter.get());
        }
    }
}

/// The sums over the queues of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewTotals {
    operations: [OperationTotals; OPERATIONS],
    /// Requests that were taken and have not ended.
    pub in_flight: u64,
    /// Rings that were stopped, because they were malformed.
    pub ring_faults: u64,
}

impl ViewTotals {
    pub fn operation(&self, operation: Operation) -> OperationTotals {
        let found = self.operations.get(operation as usize);
        found.copied().unwrap_or_default()
    }
}

/// The blocks of a view's queues.
#[derive(Debug, Default)]
pub struct ViewCounters(Mutex<Vec<Arc<QueueCounters>>>);

impl ViewCounters {
    /// The block of a queue, for its worker. The queue may have only one worker at a time.
    pub fn queue(&self, index: usize) -> Arc<QueueCounters> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.len() <= index {
            queues.resize_with(index + 1, Arc::default);
        }
        queues.get(index).map(Arc::clone).unwrap_or_default()
    }

    /// Adds up the blocks. The workers go on meanwhile: a request whose guest has seen its
    /// end is counted.
    pub fn totals(&self) -> ViewTotals {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut totals = ViewTotals::default();
        for queue in queues.iter() {
            for (sum, counters) in totals.operations.iter_mut().zip(&queue.operations) {
                sum.add(counters);
            }
            totals.in_flight = totals.in_flight.wrapping_add(queue.in_flight.get());
            totals.ring_faults = totals.ring_faults.wrapping_add(queue.ring_faults.get());
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_bucket_whose_end_is_above_it() {
        let longest = 1 << (FIRST_BITS + 22);
        for nanoseconds in [0, 1, 4095, 4096, 8191, 8192, 1 << 20, longest - 1, longest] {
            let counters = ViewCounters::default();
            counters.queue(0).ended(Operation::Flush, 0, nanoseconds);
            let latencies = counters.totals().operation(Operation::Flush).latencies;
            let expected =
                (0..BUCKETS).find(|bucket| bucket_end(*bucket).is_none_or(|end| nanoseconds < end));
            assert_eq!(latencies.iter().position(|n| *n == 1), expected);
            assert_eq!(latencies.iter().sum::<u64>(), 1, "{nanoseconds}");
        }
        let counters = ViewCounters::default();
        counters.queue(0).ended(Operation::Read, 0, u64::MAX);
        let latencies = counters.totals().operation(Operation::Read).latencies;
        assert_eq!(latencies.last(), Some(&1));
    }

    #[test]
    fn queues_are_added_up_and_share_no_cache_line() {
        let counters = ViewCounters::default();
        for (index, bytes) in [(0, 512), (5, 1024), (0, 2048)] {
            let queue = counters.queue(index);
            queue.ended(Operation::Write, bytes, 10_000);
            queue.failed(Operation::Write, ErrorCause::Invalid);
            queue.set_in_flight(3);
            queue.ring_fault();
        }
        let totals = counters.totals();
        let writes = totals.operation(Operation::Write);
        assert_eq!((writes.requests(), writes.bytes), (3, 3584));
        assert_eq!((writes.nanoseconds, writes.errors), (30_000, [0, 3, 0]));
        assert_eq!((totals.in_flight, totals.ring_faults), (6, 3));
        assert_eq!(totals.operation(Operation::Read).requests(), 0);
        let places: Vec<usize> = (0..6)
            .map(|index| Arc::as_ptr(&counters.queue(index)).addr())
            .collect();
        for place in places {
            assert!(place.is_multiple_of(128));
        }
        assert!(size_of::<QueueCounters>().is_multiple_of(128));
        for (operation, index) in Operation::ALL.into_iter().zip(0..) {
            assert_eq!(operation as usize, index);
        }
    }
}
