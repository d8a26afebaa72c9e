//! The critical section's side of a snapshot.

use std::sync::Arc;

use super::commit::Commit;
use super::ports::ControlCall;
use super::record::Recorder;
use super::unsettled::Unsettled;
use super::waiting::Waiter;
use super::zero_ahead::ZeroAhead;
use crate::engine::api::{InvalidReason, SnapshotId, SnapshotStore};
use crate::engine::counts::SnapshotCounts;
use crate::engine::failure::Failure;
use crate::engine::table::ExceptionTable;
use crate::engine::views::SharedSnapshot;
use crate::store::Metadata;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreState {
    Valid,
    Overflow,
    /// Its header is being written; origin writes that it needs to see wait.
    Invalidating(InvalidReason),
    Invalid,
}

/// The control request that removes a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    pub(super) call: ControlCall,
    /// Also if the header still says valid.
    pub(super) force: bool,
    /// Why the header could not be written.
    pub(super) failed: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Snap {
    pub(super) shared: Arc<SharedSnapshot>,
    pub(super) metadata: Metadata,
    pub(super) unsettled: Unsettled,
    /// What the store's record lists, if there is one.
    pub(super) recorder: Option<Recorder>,
    /// The commit under way.
    pub(super) commit: Option<Commit>,
    pub(super) removal: Option<Removal>,
    pub(super) zero_ahead: Option<ZeroAhead>,
    keep_on_overflow: bool,
    state: StoreState,
    /// The header says invalid, durably.
    marked: bool,
    /// Waiters for the invalidation to be durable.
    on_invalid: Vec<Waiter>,
    /// I/O of the critical section that counts for this snapshot.
    ios: usize,
    pub(super) counts: SnapshotCounts,
    /// The step of its use that was notified last, in percent; 0: none.
    usage_step: u64,
}

impl Snap {
    pub(super) fn new(id: SnapshotId, store: SnapshotStore, origin_sectors: u64) -> Self {
        let chunk_size = store.metadata.layout().chunk_size;
        // For the whole origin: Linux may have left entries behind the snapshot's end.
        // Entries that were loaded are durable, and nothing reads the origin for them.
        let table = ExceptionTable::of_settled(chunk_size.chunks_covering(origin_sectors), || {
            store.metadata.entries().iter().map(|e| (e.old, e.new))
        });
        let zero_ahead = ZeroAhead::new(&store);
        // A transient store does not outlive the process anyway.
        let record = store.record.filter(|_| !store.metadata.is_transient());
        Self {
            shared: Arc::new(SharedSnapshot {
                id,
                device: store.device,
                chunk_size,
                sectors: store.sectors.min(origin_sectors),
                covers: origin_sectors,
                table,
                defer_commits: record.is_some(),
                discards: store.discards,
                flush_failed: false.into(),
            }),
            metadata: store.metadata,
            unsettled: Unsettled::default(),
            recorder: record.map(Recorder::new),
            commit: None,
            removal: None,
            zero_ahead,
            keep_on_overflow: store.keep_on_overflow,
            state: if store.valid {
                StoreState::Valid
            } else {
                StoreState::Invalid
            },
            marked: store.marked,
            on_invalid: Vec::new(),
            ios: 0,
            counts: SnapshotCounts::default(),
            usage_step: 0,
        }
    }

    pub(super) const fn keeps_on_overflow(&self) -> bool {
        self.keep_on_overflow
    }

    // ---- validity

    pub(super) const fn state(&self) -> StoreState {
        self.state
    }

    pub(super) const fn is_usable(&self) -> bool {
        matches!(self.state, StoreState::Valid | StoreState::Overflow)
    }

    pub(super) const fn is_invalidating(&self) -> bool {
        matches!(self.state, StoreState::Invalidating(_))
    }

    /// A valid snapshot takes no new exceptions any more. False if it was not valid.
    pub(super) fn overflow(&mut self) -> bool {
        self.step(StoreState::Valid, StoreState::Overflow)
    }

    /// A snapshot that overflowed takes new exceptions again. False if it had not.
    pub(super) fn end_overflow(&mut self) -> bool {
        self.step(StoreState::Overflow, StoreState::Valid)
    }

    fn step(&mut self, from: StoreState, to: StoreState) -> bool {
        let steps = self.state == from;
        if steps {
            self.state = to;
        }
        steps
    }

    pub(super) const fn start_invalidating(&mut self, reason: InvalidReason) {
        self.state = StoreState::Invalidating(reason);
    }

    /// The invalidation is durable. Returns its reason, and those who waited for it.
    pub(super) fn end_invalidating(&mut self) -> Option<(InvalidReason, Vec<Waiter>)> {
        let StoreState::Invalidating(reason) = self.state else {
            return None;
        };
        self.state = StoreState::Invalid;
        Some((reason, std::mem::take(&mut self.on_invalid)))
    }

    pub(super) fn wait_for_invalid(&mut self, waiter: Waiter) {
        self.on_invalid.push(waiter);
    }

    pub(super) fn first_waiter_for_invalid(&self) -> Option<Waiter> {
        self.on_invalid.first().copied()
    }

    pub(super) const fn is_marked(&self) -> bool {
        self.marked
    }

    pub(super) const fn set_marked(&mut self, marked: bool) {
        self.marked = marked;
    }

    // ---- I/O and use

    pub(super) const fn start_io(&mut self) {
        self.ios += 1;
    }

    pub(super) const fn end_io(&mut self) {
        self.ios = self.ios.saturating_sub(1);
    }

    pub(super) const fn has_io(&self) -> bool {
        self.ios > 0
    }

    /// Remembers the step that its use has come to; true if it is a higher one.
    pub(super) const fn reach_usage_step(&mut self, step: u64) -> bool {
        let higher = step > self.usage_step;
        self.usage_step = step;
        higher
    }

    // ---- exceptions

    /// Gives `waiter` a wait if one of the next `count` chunks is being zeroed; whether it
    /// did. The waiter counts it.
    pub(super) fn wait_for_zeroes(&mut self, count: usize, waiter: Waiter) -> bool {
        let usable = self.is_usable();
        let Some(ahead) = self.zero_ahead.as_mut().filter(|_| usable) else {
            return false;
        };
        let zeroing = ahead.is_zeroing(&self.metadata, count);
        if zeroing {
            ahead.wait(waiter);
        }
        zeroing
    }

    /// Allocates a COW chunk for `chunk`; `None` if there is no space.
    pub(super) fn allocate(&mut self, chunk: u64) -> Option<u64> {
        let cow_chunk = self.metadata.allocate().ok()?;
        self.unsettled.allocated(chunk, cow_chunk);
        Some(cow_chunk)
    }

    /// The slot of the log that the first uncommitted exception will have.
    pub(super) fn log_len(&self) -> u64 {
        self.metadata.entries().len() as u64
    }
}
