//! Handover: a snapshot's store moves to the merge view, which replaces the origin
//! view.
//!
//! Order: 1 new requests on the views of both wait → 2 older ones have ended, with all of
//! their parts, and the snapshot's pending exceptions are settled → 3 the views show the merge → 4 the
//! requests go on.

use super::Core;
use super::gate::{Change, Gate};
use super::merge::Merge;
use super::snap::Snap;
use super::waiting::Task;
use crate::engine::api::*;

impl Core {
    /// The change for steps 1 and 2.
    pub(super) fn start_handover(
        &mut self,
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    ) -> Result<Change, ControlError> {
        if self.gate.is_some() {
            return Err(ControlError::Busy);
        }
        if self.merge.is_some() {
            return Err(ControlError::MergeRunning);
        }
        let snap = self
            .snaps
            .get_mut(&snapshot)
            .ok_or(ControlError::UnknownSnapshot)?;
        if snap.metadata.is_transient() {
            return Err(ControlError::Transient);
        }
        if !snap.is_usable() || snap.removal.is_some() {
            return Err(ControlError::Invalid);
        }
        snap.unsettled.demand_all();
        self.tasks.push_back(Task::Commit(snapshot));
        Ok(Change::Handover {
            snapshot,
            writes,
            follow,
        })
    }

    /// A write of several parts goes on while the gate is closed, see `decide.rs`. What it
    /// adds to the store in step 2 is to be settled as well.
    pub(super) fn demand_for_handover(&mut self) {
        if let Some(Change::Handover { snapshot, .. }) = self.gate.as_ref().map(Gate::change) {
            let snapshot = *snapshot;
            if let Some(snap) = self.snaps.get_mut(&snapshot) {
                snap.unsettled.demand_all();
                self.tasks.push_back(Task::Commit(snapshot));
            }
        }
    }

    /// Step 3.
    pub(super) fn hand_over(
        &mut self,
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    ) -> Result<(), ControlError> {
        if !self.snaps.get(&snapshot).is_some_and(Snap::is_usable) {
            return Err(ControlError::Invalid);
        }
        self.merge = Some(Merge::new(snapshot, writes, follow));
        self.buffers.set_merging(true);
        self.notify(Notice::HandedOver { snapshot });
        self.notify(Notice::MergeWork { snapshot });
        Ok(())
    }
}
