//! A clean stop: every acknowledged write becomes durable.
//!
//! Order: 1 the entries of acknowledged writes are durable → 2 every device is
//! flushed → 3 stores that a failed flush has cost are marked invalid, or their
//! owner has been notified that this is impossible.

use super::Core;
use super::accounting::IoPurpose;
use super::ports::ControlCall;
use super::waiting::Task;
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::mutation::{self, Mutation};

#[derive(Debug)]
pub(super) struct Syncing {
    call: ControlCall,
    /// Flushes that have not ended; `None` before step 2.
    flushes: Option<usize>,
    failed: Option<Failure>,
}

impl Syncing {
    pub(super) const fn port(&self) -> usize {
        self.call.port
    }
}

impl Core {
    /// Step 1.
    pub(super) fn start_sync(&mut self, call: ControlCall) -> Result<(), ControlError> {
        if self.syncing.is_some() {
            return Err(ControlError::Busy);
        }
        for (id, snap) in &mut self.snaps {
            if let Some(chunk) = snap.unsettled.newest_ready()
                && !mutation::is(Mutation::SyncForgetsEntries)
            {
                snap.unsettled.demand(chunk);
                self.tasks.push_back(Task::Commit(*id));
            }
        }
        self.syncing = Some(Syncing {
            call,
            flushes: None,
            failed: None,
        });
        self.advance_sync();
        Ok(())
    }

    pub(super) fn advance_sync(&mut self) {
        let Some(syncing) = &self.syncing else { return };
        if syncing.flushes.is_some() {
            return self.end_sync();
        }
        let mut snaps = self.snaps.values();
        if snaps.all(|s| !s.is_usable() || s.unsettled.is_demand_met()) {
            self.flush_all();
        }
    }

    /// Step 2.
    fn flush_all(&mut self) {
        let usable = self.snaps.values().filter(|s| s.is_usable());
        let stores = usable.map(|s| (s.shared.device, Some(s.shared.id)));
        let origin = [(self.origin_device(), None)];
        let devices: Vec<_> = origin.into_iter().chain(stores).collect();
        let Some(syncing) = &mut self.syncing else {
            return;
        };
        syncing.flushes = Some(devices.len());
        let port = syncing.call.port;
        for (device, snapshot) in devices {
            let purpose = IoPurpose::SyncFlush { snapshot };
            self.issue(port, purpose, |tag| Command::Flush { tag, device });
        }
    }

    pub(super) fn sync_flush_done(
        &mut self,
        snapshot: Option<SnapshotId>,
        result: Result<(), Failure>,
    ) {
        // As for a guest's flush: no later flush brings back what is lost now.
        if let Err(failure) = result
            && !mutation::is(Mutation::FailedSyncForgotten)
        {
            self.flush_failed(snapshot, failure);
        }
        // A store that was given up since then promises nothing and fails nothing.
        let merging = self.merging();
        let counts = snapshot.is_none() || snapshot == merging;
        let lost = self.flush_lost(snapshot).filter(|_| counts);
        let result = result.and(lost.map_or(Ok(()), Err));
        let Some(syncing) = &mut self.syncing else {
            return;
        };
        if let Err(failure) = result {
            syncing.failed = Some(failure);
        }
        syncing.flushes = syncing.flushes.map(|left| left.saturating_sub(1));
    }

    /// Step 3, and the end.
    fn end_sync(&mut self) {
        let mut snaps = self.snaps.values();
        let giving_up = snaps.any(|s| s.is_invalidating() && s.has_io());
        if giving_up {
            return;
        }
        let Some(syncing) = self.syncing.take_if(|s| s.flushes == Some(0)) else {
            return;
        };
        let failed = syncing.failed.or(self.flush_lost(None));
        let result = failed.map_or(Ok(()), |e| Err(ControlError::Io(e)));
        self.control_done(syncing.call, result);
    }
}
