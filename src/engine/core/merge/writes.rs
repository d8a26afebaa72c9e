//! Guest writes to the merge view.

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
        if self.wait_for_merge(id, shared, start, end) {
            let snapshot = shared.id;
            return self.notify(Notice::MergeWork { snapshot });
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

    /// Lets a write wait for those of its chunks that must be merged first. False if
    /// there are none.
    fn wait_for_merge(
        &mut self,
        id: RequestId,
        shared: &SharedSnapshot,
        start: u64,
        end: u64,
    ) -> bool {
        let (Some(merge), Some(request)) = (&mut self.merge, self.requests.get_mut(id)) else {
            return false;
        };
        let redirect = merge.writes == MergeWrites::Redirect || merge.failed.is_some();
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
        request.waits().add(waits);
        waits > 0
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
