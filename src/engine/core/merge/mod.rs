//! Merging a snapshot back into its origin: the state, pause, failure and end.
//!
//! Content rule at any instant: a chunk with an exception → the COW copy; a chunk
//! without → the origin. No exception is ever added to a merging store.

mod batch;
mod choose;
mod copy;
mod direct;
mod removal;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::batch::{Batch, Batches, Kind};
use self::copy::Pace;
use self::removal::Pipeline;
use super::Core;
use super::drains::Drain;
use super::waiting::{RequestId, Waiter, Waits};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::views::SharedSnapshot;
use crate::store::Entry;

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
    /// Chunks of a removal that failed: whether their entries are on disk is unknown,
    /// so writes to them are refused until the store is loaded again.
    limbo: BTreeSet<u64>,
    /// The merger's thread, as soon as it has asked for work.
    port: Option<usize>,
    batches: Batches,
    /// What batches have brought to the origin.
    pipeline: Pipeline,
    /// Batches until now.
    started: u64,
    /// Chunks in a batch or behind it: no other batch takes them.
    taken: BTreeSet<u64>,
    /// Chunks that redirected writes have taken out of the merge once.
    withdrawn: BTreeSet<u64>,
    pace: Pace,
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
    pub(super) fn new(snapshot: SnapshotId, writes: MergeWrites, follow: bool) -> Self {
        Self {
            snapshot,
            writes,
            follow,
            paused: false,
            failed: None,
            notified_final: false,
            limbo: BTreeSet::new(),
            port: None,
            batches: Batches::new(),
            pipeline: Pipeline::default(),
            started: 0,
            taken: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            pace: Pace::default(),
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

    /// Whether chunks are under way from the store to the origin.
    pub(super) fn has_work(&self) -> bool {
        !self.batches.is_empty() || !self.pipeline.is_empty()
    }

    /// Whether any of that is on the merger's thread. The end of a direct write's part
    /// notifies it.
    fn has_mergers_work(&self) -> bool {
        let mergers = |b: &Batch| !matches!(b.kind, Kind::Direct(_));
        self.batches.values().any(mergers) || !self.pipeline.is_empty()
    }

    /// The waits of a batch that is under way.
    pub(super) fn waits_of_batch(&mut self, number: u64) -> Option<&mut Waits> {
        Some(&mut self.batches.get_mut(&number)?.waits)
    }

    pub(super) const fn chunks_done(&self) -> u64 {
        self.chunks_done
    }

    /// Takes these chunks into a new batch, and returns its number.
    fn start_batch(&mut self, port: usize, kind: Kind, entries: Vec<Entry>) -> u64 {
        self.started += 1;
        self.taken.extend(entries.iter().map(|e| e.old));
        let batch = Batch::new(port, self.started, kind, entries);
        self.batches.insert(self.started, batch);
        self.started
    }

    /// Gives a chunk that guest writes wait for the next turn.
    fn queue_urgent(&mut self, chunk: u64) {
        self.urgent.insert(self.next_turn, chunk);
        self.next_turn += 1;
    }

    /// Walks the invariants: no chunk is in two places of the merge, and no chunk that is
    /// waited for longer than one of a batch was left out of it.
    pub(super) fn check(&self) -> Result<(), String> {
        let newest = self.batches.values().filter_map(|b| b.newest_turn).max();
        let oldest = self.urgent.keys().next().copied();
        if newest
            .zip(oldest)
            .is_some_and(|(newest, oldest)| oldest < newest)
        {
            return Err("a chunk that is waited for longer is not in the batch".into());
        }
        let batches = self.batches.values().flat_map(Batch::chunks);
        let mut found = BTreeSet::new();
        for chunk in batches.chain(self.pipeline.chunks()) {
            if !found.insert(chunk) {
                return Err(format!("chunk {chunk} is twice in the merge"));
            }
        }
        match found
            .symmetric_difference(&self.taken)
            .find(|c| !self.limbo.contains(c))
        {
            Some(chunk) => Err(format!(
                "chunk {chunk} is in the merge, or taken, but not both"
            )),
            None => Ok(()),
        }
    }
}

impl Core {
    fn merged_store(&self) -> Option<&Arc<SharedSnapshot>> {
        let snap = self.snaps.get(&self.merging()?)?;
        Some(&snap.shared)
    }

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

    /// Stops the merge. What is merged is merged, and a removal under way goes on; the
    /// rest stays in the store.
    pub(super) fn fail_merge(&mut self, failure: Failure) {
        let Some(merge) = &mut self.merge else { return };
        let first = merge.failed.is_none();
        if first {
            self.counts.merge.failures += 1;
            merge.failed = Some(failure);
            let batches: Vec<u64> = merge.batches.keys().copied().collect();
            let (entries, writes) = merge.pipeline.give_up();
            for number in batches {
                self.abandon_batch(number);
            }
            self.give_up_copied(entries, writes, true);
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

    /// A batch does not go on; its entries stay. What its copies leave in the origin is
    /// not shown, so that writes may go to the COW copies at once; but no other batch
    /// takes its chunks before its I/O has ended.
    fn abandon_batch(&mut self, number: u64) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let Some(batch) = self.batch(number).filter(|b| !b.abandoned) else {
            return;
        };
        batch.abandoned = true;
        let kind = batch.kind;
        for entry in &batch.entries {
            shared.table.unfence(entry.old);
        }
        self.drop_batch_drain(number);
        if let Kind::Direct(id) = kind {
            self.decide_again(id);
        }
        self.end_abandoned(number);
    }

    fn end_abandoned(&mut self, number: u64) {
        let Some(merge) = &mut self.merge else { return };
        let ended = |b: &Batch| b.abandoned && b.ios == 0;
        if !merge.batches.get(&number).is_some_and(ended) {
            return;
        }
        let Some(batch) = merge.batches.remove(&number) else {
            return;
        };
        let chunks = batch.entries.iter().map(|e| e.old).chain(batch.withdrawn);
        let mut waiting = Vec::new();
        for chunk in chunks {
            merge.taken.remove(&chunk);
            waiting.extend(merge.waiting.remove(&chunk).unwrap_or_default());
        }
        let (snapshot, resumed) = (merge.snapshot, merge.failed.is_none());
        for id in waiting {
            self.wake(Waiter::Request(id));
        }
        if resumed {
            self.notify(Notice::MergeWork { snapshot });
        }
    }

    /// Copied chunks are not removed: they stay in the store.
    fn give_up_copied(&mut self, entries: Vec<Entry>, writes: Vec<RequestId>, unfence: bool) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let Some(merge) = &mut self.merge else { return };
        for entry in entries.iter().filter(|_| unfence) {
            shared.table.unfence(entry.old);
            merge.taken.remove(&entry.old);
        }
        for id in writes {
            self.unregister(id);
            self.decide_again(id);
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
        self.buffers.set_merging(false);
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
