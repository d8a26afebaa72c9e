//! Merging a snapshot back into its origin: the state, pause, failure and end.
//!
//! Content rule at any instant: a chunk with an exception → the COW copy; a chunk
//! without → the origin. No exception is ever added to a merging store.

mod batch;
mod choose;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use self::batch::Batch;
use super::Core;
use super::drains::Drain;
use super::waiting::{RequestId, Waiter, Waits};
use crate::engine::api::*;
use crate::engine::failure::Failure;

#[derive(Debug)]
pub(super) struct Merge {
    snapshot: SnapshotId,
    writes: MergeWrites,
    follow: bool,
    paused: bool,
    /// Why it stopped. Guest writes then go by the redirect rule.
    failed: Option<Failure>,
    /// The owner was notified that only a new start can go on.
    notified_final: bool,
    /// Chunks of a batch whose removal failed: whether their entries are on disk
    /// is unknown, so writes to them are refused until the store is loaded again.
    limbo: BTreeSet<u64>,
    batch: Option<Batch>,
    /// Batches until now.
    batches: u64,
    /// Chunks that guest writes wait for and no batch has yet, by their turn: first
    /// come first served. Some may have been merged since, in a background batch.
    urgent: BTreeMap<u64, u64>,
    /// The turn that the next of them gets.
    next_turn: u64,
    /// Requests that wait for a chunk to be merged.
    waiting: BTreeMap<u64, Vec<RequestId>>,
    chunks_done: u64,
    ending: bool,
}

impl Merge {
    pub(super) const fn new(snapshot: SnapshotId, writes: MergeWrites, follow: bool) -> Self {
        Self {
            snapshot,
            writes,
            follow,
            paused: false,
            failed: None,
            notified_final: false,
            limbo: BTreeSet::new(),
            batch: None,
            batches: 0,
            urgent: BTreeMap::new(),
            next_turn: 0,
            waiting: BTreeMap::new(),
            chunks_done: 0,
            ending: false,
        }
    }

    pub(super) const fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    pub(super) const fn writes(&self) -> MergeWrites {
        self.writes
    }

    /// Whether the snapshot's view shows the merge view, too.
    pub(super) const fn is_followed(&self) -> bool {
        self.follow
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Everything is merged, and only old uses of the store are waited for.
    pub(super) const fn is_ending(&self) -> bool {
        self.ending
    }

    pub(super) const fn has_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// The port that carries out the running batch.
    pub(super) fn batch_port(&self) -> Option<usize> {
        self.batch.as_ref().map(Batch::port)
    }

    /// The waits of the running batch, if it is that one.
    pub(super) fn waits_of_batch(&mut self, number: u64) -> Option<&mut Waits> {
        let batch = self.batch.as_mut()?;
        (batch.number() == number).then(|| batch.waits())
    }

    pub(super) const fn chunks_done(&self) -> u64 {
        self.chunks_done
    }

    /// Whether no chunk that is waited for longer than one of the batch was left out
    /// of it.
    pub(super) fn is_in_turn(&self) -> bool {
        let newest = self.batch.as_ref().and_then(Batch::newest_turn);
        let oldest = self.urgent.keys().next();
        newest.is_none_or(|newest| oldest.is_none_or(|oldest| *oldest >= newest))
    }
}

impl Core {
    pub(super) fn set_merge_writes(&mut self, writes: MergeWrites) -> Result<(), ControlError> {
        self.merge.as_mut().ok_or(ControlError::NoMerge)?.writes = writes;
        self.publish_views();
        // What waited under the other rule is decided again.
        self.release_merge_waiters();
        Ok(())
    }

    pub(super) fn pause_merge(&mut self) -> Result<(), ControlError> {
        let merge = self.merge.as_mut().ok_or(ControlError::NoMerge)?;
        let snapshot = merge.snapshot;
        if !std::mem::replace(&mut merge.paused, true) {
            self.notify(Notice::MergePaused { snapshot });
        }
        Ok(())
    }

    pub(super) fn resume_merge(&mut self) -> Result<(), ControlError> {
        let stopped = self.merge_stopped();
        let merge = self.merge.as_mut().ok_or(ControlError::NoMerge)?;
        if stopped.is_some_and(|stop| !stop.resumable) {
            return Err(ControlError::MergeFailed);
        }
        let snapshot = merge.snapshot;
        let was_paused = std::mem::replace(&mut merge.paused, false);
        let failed = merge.failed.take().is_some();
        if failed {
            self.release_merge_waiters();
        }
        if failed || was_paused {
            self.notify(Notice::MergeResumed { snapshot });
        }
        self.notify(Notice::MergeWork { snapshot });
        Ok(())
    }

    /// Why the merge stopped. It cannot be resumed where it is unknown what is on
    /// disk: after a failed flush or metadata write only loading the store can show it.
    pub(super) fn merge_stopped(&self) -> Option<MergeStop> {
        let merge = self.merge.as_ref()?;
        let failure = merge.failed?;
        let unknown = self.is_flush_lost(None)
            || self.is_flush_lost(Some(merge.snapshot))
            || !merge.limbo.is_empty();
        Some(MergeStop {
            failure,
            resumable: !unknown,
        })
    }

    /// Stops the merge. What is merged is merged; the rest stays in the store.
    pub(super) fn fail_merge(&mut self, failure: Failure) {
        let Some(merge) = &mut self.merge else { return };
        let first = merge.failed.is_none();
        if first {
            merge.failed = Some(failure);
            self.abandon_batch();
            self.release_merge_waiters();
        }
        let resumable = self.merge_stopped().is_some_and(|stop| stop.resumable);
        let Some(merge) = &mut self.merge else { return };
        // A later failure matters if the merge cannot be resumed because of it.
        if first || !resumable && !merge.notified_final {
            merge.failed = Some(failure);
            merge.notified_final = !resumable;
            let snapshot = merge.snapshot;
            let stop = MergeStop { failure, resumable };
            self.notify(Notice::MergeFailed { snapshot, stop });
        }
    }

    /// The log is empty: the store can go once nothing reads it any more.
    pub(super) fn end_merge(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        if !merge.ending {
            merge.ending = true;
            // From here on nothing new touches the store, not even a flush.
            self.publish_views();
            self.add_drain(Drain::MergeEnd);
        }
    }

    pub(super) fn merge_ended(&mut self) {
        let Some(merge) = self.merge.take() else {
            return;
        };
        self.snaps.remove(&merge.snapshot);
        if merge.follow {
            self.followers.insert(merge.snapshot);
        }
        self.publish_views();
        for id in merge.waiting.into_values().flatten() {
            self.wake(Waiter::Request(id));
        }
        self.notify(Notice::MergeDone {
            snapshot: merge.snapshot,
        });
    }
}
