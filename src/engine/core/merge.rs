//! Merging a snapshot back into its origin: the state, guest writes during it,
//! pause, failure and end. The batches are in [`super::merge_batch`].
//!
//! Content rule at any instant: a chunk with an exception → the COW copy; a chunk
//! without → the origin. No exception is ever added to a merging store.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Drain;
use super::merge_batch::Batch;
use super::request::{RequestId, Stage};
use super::{Core, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, WRITE};
use crate::engine::views::{Extent, ViewMode};
use crate::mutation::{self, Mutation};

#[derive(Debug)]
pub(super) struct Merge {
    pub(super) snapshot: SnapshotId,
    pub(super) writes: MergeWrites,
    pub(super) follow: bool,
    pub(super) paused: bool,
    /// Why it stopped. Guest writes then go by the redirect rule.
    pub(super) failed: Option<Failure>,
    /// It was told that only a new start can go on.
    pub(super) told_final: bool,
    /// Chunks of a batch whose removal failed: whether their entries are on disk
    /// is unknown, so writes to them are refused until the store is loaded again.
    pub(super) limbo: BTreeSet<u64>,
    pub(super) batch: Option<Batch>,
    /// Batches until now.
    pub(super) batches: u64,
    /// Chunks that guest writes wait for and no batch has yet, by their turn: first
    /// come first served. Some may have been merged since, in a background batch.
    pub(super) urgent: BTreeMap<u64, u64>,
    /// The turn that the next of them gets.
    next_turn: u64,
    /// Who waits for a chunk to be merged.
    pub(super) waiting: BTreeMap<u64, Vec<RequestId>>,
    pub(super) chunks_done: u64,
    pub(super) bytes_copied: u64,
    pub(super) ending: bool,
}

impl Merge {
    pub(super) fn new(snapshot: SnapshotId, writes: MergeWrites, follow: bool) -> Self {
        Self {
            snapshot,
            writes,
            follow,
            paused: false,
            failed: None,
            told_final: false,
            limbo: BTreeSet::new(),
            batch: None,
            batches: 0,
            urgent: BTreeMap::new(),
            next_turn: 0,
            waiting: BTreeMap::new(),
            chunks_done: 0,
            bytes_copied: 0,
            ending: false,
        }
    }
}

impl Core {
    /// A write to a merge view: waits for its chunks (`wait`) or goes to their COW
    /// copies (`redirect`); what is not in the store is an origin write.
    pub(super) fn merge_write(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        let (start, end, port, view) = (request.start(), request.end(), request.port, request.view);
        let mode = self.config.mode(view).clone();
        let ViewMode::Merge {
            snapshot: shared, ..
        } = &*mode
        else {
            return;
        };
        let Some(merge) = &mut self.merge else { return };
        let redirect = merge.writes == MergeWrites::Redirect || merge.failed.is_some();
        // Before it waits anywhere: a request that has ended must be in no list.
        if shared.chunks(start, end).any(|c| merge.limbo.contains(&c)) {
            return self.fail(id);
        }
        let mut waits = 0;
        for chunk in shared.chunks(start, end) {
            let exception = shared.table.get(chunk);
            if !exception.is_some()
                || (redirect && !exception.is_fenced())
                || mutation::is(Mutation::UnmergedWriteReachesOrigin)
                || (redirect && mutation::is(Mutation::FenceIgnored))
            {
                continue;
            }
            let waiting = merge.waiting.entry(chunk).or_default();
            if waiting.is_empty() && !exception.is_fenced() {
                merge.urgent.insert(merge.next_turn, chunk);
                merge.next_turn += 1;
            }
            waiting.push(id);
            waits += 1;
        }
        if waits > 0 {
            if let Some(request) = self.requests.get_mut(id) {
                request.waits += waits;
            }
            let snapshot = shared.id;
            return self.notify(Notice::MergeWork { snapshot });
        }
        let mut extents: Vec<Extent> = Vec::new();
        shared.resolve(start, end, |e| extents.push(e));
        if mutation::is(Mutation::UnmergedWriteReachesOrigin) {
            extents = vec![Extent {
                device: None,
                device_sector: start,
                sector: start,
                sectors: end - start,
            }];
        }
        let mut waits = 0;
        for e in extents.iter().filter(|e| e.device.is_none()) {
            waits += self.preserve(e.sector..e.sector + e.sectors, Waiter::Request(id), port);
        }
        if waits > 0 {
            return self.look_again(Waiter::Request(id));
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.stage = Stage::Issued;
        let cow = extents.iter().any(|e| e.device.is_some());
        self.register(id, if cow { WRITE | COW } else { WRITE });
        for extent in extents {
            self.guest_io(id, extent, None, Vec::new());
        }
    }

    /// Lets everybody who waits for a chunk decide again.
    pub(super) fn release_merge_waiters(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        merge.urgent.clear();
        for id in std::mem::take(&mut merge.waiting).into_values().flatten() {
            self.wake(Waiter::Request(id));
        }
    }

    pub(super) fn pause_merge(&mut self, pause: bool) -> Result<(), ControlError> {
        let stopped = self.merge_stopped();
        let merge = self.merge.as_mut().ok_or(ControlError::NoMerge)?;
        if !pause && stopped.is_some_and(|stop| !stop.resumable) {
            return Err(ControlError::MergeFailed);
        }
        let (snapshot, was_paused) = (merge.snapshot, merge.paused);
        merge.paused = pause;
        let failed = !pause && merge.failed.take().is_some();
        if failed {
            self.release_merge_waiters();
        }
        if pause && !was_paused {
            self.notify(Notice::MergePaused { snapshot });
        }
        if !pause {
            if failed || was_paused {
                self.notify(Notice::MergeResumed { snapshot });
            }
            self.notify(Notice::MergeWork { snapshot });
        }
        Ok(())
    }

    /// Why the merge stopped. It cannot be resumed where it is unknown what is on
    /// disk: after a failed flush or metadata write only loading the store tells.
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
        // A later failure is told if it takes away the way to go on.
        if first || !resumable && !merge.told_final {
            merge.failed = Some(failure);
            merge.told_final = !resumable;
            let snapshot = merge.snapshot;
            let stop = MergeStop { failure, resumable };
            self.notify(Notice::MergeFailed { snapshot, stop });
        }
    }

    /// The log is empty: the store can go once nobody reads it any more.
    pub(super) fn end_merge(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        if !merge.ending {
            merge.ending = true;
            // From here on nothing new touches the store, flushes neither.
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
