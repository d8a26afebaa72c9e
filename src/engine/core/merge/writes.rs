//! Guest writes to the merge view.

use super::Merge;
use crate::engine::api::*;
use crate::engine::core::Core;
use crate::engine::core::request::Stage;
use crate::engine::core::waiting::{RequestId, Waiter};
use crate::engine::registrations::{COW, WRITE};
use crate::engine::views::{Extent, SharedSnapshot};
use crate::mutation::{self, Mutation};

impl Core {
    /// A write to a merge view: waits for its chunks (`wait`) or goes to their COW
    /// copies (`redirect`); what is not in the store is an origin write.
    pub(in crate::engine::core) fn merge_write(&mut self, id: RequestId, shared: &SharedSnapshot) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        let (start, end, port) = (request.start(), request.end(), request.port());
        let Some(merge) = &self.merge else { return };
        // Before it waits anywhere: a request that has ended must be in no list.
        if shared.chunks(start, end).any(|c| merge.limbo.contains(&c)) {
            return self.fail(id);
        }
        let unmerged = self.must_be_merged(shared, start, end);
        if !unmerged.is_empty() {
            return self.wait_for_merge(id, shared, &unmerged);
        }
        let mut extents: Vec<Extent> = Vec::new();
        shared.resolve(start, end, |e| extents.push(e));
        if mutation::is(Mutation::UnmergedWriteReachesOrigin) {
            extents = vec![Extent::of_origin(start, end - start)];
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
        request.set_stage(Stage::Issued);
        let cow = extents.iter().any(|e| e.device.is_some());
        self.register(id, if cow { WRITE | COW } else { WRITE });
        for extent in extents {
            self.guest_io(id, extent, None, Vec::new());
        }
    }

    /// The chunks that must be merged before a write to this range: all that are not
    /// (`wait`), or those that the merge does not give back (`redirect`).
    fn must_be_merged(&mut self, shared: &SharedSnapshot, start: u64, end: u64) -> Vec<u64> {
        let redirect = self.is_redirecting();
        let mut unmerged = Vec::new();
        for chunk in shared.chunks(start, end) {
            let exception = shared.table.get(chunk);
            if !exception.is_some()
                || (redirect && !exception.is_fenced())
                || mutation::is(Mutation::UnmergedWriteReachesOrigin)
                || (redirect && mutation::is(Mutation::FenceIgnored))
                || (redirect && self.withdraw(chunk))
            {
                continue;
            }
            unmerged.push(chunk);
        }
        unmerged
    }

    fn is_redirecting(&self) -> bool {
        let redirects = |m: &Merge| m.writes == MergeWrites::Redirect || m.failed.is_some();
        self.merge.as_ref().is_some_and(redirects)
    }

    /// Lets a write wait until these chunks are merged, or do it itself.
    fn wait_for_merge(&mut self, id: RequestId, shared: &SharedSnapshot, chunks: &[u64]) {
        self.counts.merge.write_waits += 1;
        if !self.is_redirecting() && self.start_direct(id, shared, chunks) {
            return;
        }
        for chunk in chunks {
            let free = self.hurry(*chunk);
            let (Some(merge), Some(request)) = (&mut self.merge, self.requests.get_mut(id)) else {
                return;
            };
            let waiting = merge.waiting.entry(*chunk).or_default();
            let first = waiting.is_empty();
            waiting.push(id);
            request.waits().add(1);
            if first && free {
                merge.queue_urgent(*chunk);
            }
        }
        let snapshot = shared.id;
        self.notify(Notice::MergeWork { snapshot });
    }

    /// Lets every request that waits for a chunk decide again.
    pub(super) fn release_merge_waiters(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        merge.urgent.clear();
        for id in std::mem::take(&mut merge.waiting).into_values().flatten() {
            self.wake(Waiter::Request(id));
        }
    }
}
