//! Flushes of guests, and what follows from one that failed.

use super::Core;
use super::accounting::IoPurpose;
use super::merge::Merge;
use super::request::Stage;
use super::unsettled::When;
use super::waiting::{RequestId, Task, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, OTHER};
use crate::engine::views::SharedSnapshot;
use crate::io::DeviceId;
use crate::mutation::{self, Mutation};
use crate::sync::atomic::Ordering;

impl Core {
    /// A flush of the origin (`None`) or a store failed.
    pub(super) fn flush_failed(&mut self, store: Option<SnapshotId>, failure: Failure) {
        match store {
            None => self.origin_flush_failed(failure),
            Some(id) => self.store_flush_failed(id, failure),
        }
    }

    pub(super) fn origin_flush_failed(&mut self, failure: Failure) {
        if !mutation::is(Mutation::FailedFlushForgotten) {
            self.shared
                .origin_flush_failed
                .store(true, Ordering::Release);
        }
        if self.origin_failure.is_none() {
            self.origin_failure = Some(failure);
            self.notify(Notice::OriginFlushFailed { failure });
            if self.merge.as_ref().is_some_and(Merge::has_failed) {
                self.fail_merge(failure);
            }
        }
    }

    /// A store's device lost what a flush should have kept. A store that merges
    /// cannot be given up: it is all that there is of its chunks.
    pub(super) fn store_flush_failed(&mut self, id: SnapshotId, failure: Failure) {
        if self.is_merging(id)
            && let Some(snap) = self.snaps.get(&id)
        {
            let failed = !mutation::is(Mutation::FailedStoreFlushForgotten);
            snap.shared.flush_failed.store(failed, Ordering::Release);
            self.fail_merge(failure);
        } else {
            self.invalidate(id, InvalidReason::Io(failure));
        }
    }

    pub(super) fn flush_origin(&mut self, id: RequestId) {
        self.flush_device(id, self.origin_device(), None);
    }

    /// Order: 1 the entries of acknowledged writes are durable, their data with them
    /// → 2 the COW device is flushed, for writes in place → 3 complete.
    pub(super) fn flush_snapshot(&mut self, id: RequestId, shared: &SharedSnapshot) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        if request.stage() == Stage::Waiting
            && let Some(snap) = self.snaps.get_mut(&shared.id)
            && let Some(chunk) = snap.unsettled.newest_ready()
            && !mutation::is(Mutation::FlushForgetsEntries)
        {
            request.set_stage(Stage::Flushing);
            request.waits().add(1);
            snap.unsettled.demand(chunk);
            snap.unsettled
                .wait(chunk, When::Committed, Waiter::Request(id));
            self.tasks.push_back(Task::Commit(shared.id));
            return;
        }
        self.flush_device(id, shared.device, Some(shared.id));
    }

    pub(super) fn flush_merge(&mut self, id: RequestId, shared: &SharedSnapshot) {
        if self.is_flush_lost(Some(shared.id)) {
            return self.fail(id);
        }
        self.flush_device(id, self.origin_device(), None);
        self.flush_device(id, shared.device, Some(shared.id));
    }

    fn flush_device(&mut self, id: RequestId, device: DeviceId, store: Option<SnapshotId>) {
        self.register(id, if store.is_some() { OTHER | COW } else { OTHER });
        let lost = store.is_none() && self.is_flush_lost(None);
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.set_stage(Stage::Issued);
        request.waits().add(1);
        if lost {
            request.set_failed();
            return self.wake(Waiter::Request(id));
        }
        let port = request.port();
        let purpose = IoPurpose::RequestFlush { request: id, store };
        self.issue(port, purpose, |tag| Command::Flush { tag, device });
    }

    pub(super) fn request_flush_done(
        &mut self,
        id: RequestId,
        store: Option<SnapshotId>,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            self.flush_failed(store, failure);
        }
        // One that failed beside it lost what this one covers, too.
        let lost = self.is_flush_lost(store) && !mutation::is(Mutation::FlushBesideFailedOne);
        if result.is_err() || lost {
            self.set_failed(id);
        }
        self.wake(Waiter::Request(id));
    }
}
