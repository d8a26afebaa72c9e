//! Handover: a snapshot's store moves to the merge view, which replaces the origin
//! view.
//!
//! Order: 1 new requests on the views of both wait → 2 older ones have ended and the
//! snapshot's pending exceptions are settled → 3 the views show the merge → 4 the
//! requests go on.

use super::Core;
use super::gate::Change;
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
