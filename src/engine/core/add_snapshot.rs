//! A new snapshot, which is a cut between the writes of the guests.
//!
//! Order: 1 new writes to the origin wait → 2 older ones have ended, with all of their parts → 3 the origin
//! is flushed, or power loss would take from the snapshot what it shows → 4 the
//! snapshot is there → 5 the writes go on.

use super::Core;
use super::accounting::IoPurpose;
use super::gate::Change;
use super::snap::Snap;
use crate::engine::api::*;

impl Core {
    /// The change for steps 1 and 2.
    pub(super) fn add_snapshot(
        &self,
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    ) -> Result<Change, ControlError> {
        if self.gate.is_some() || self.snaps.contains_key(&snapshot) || snapshot == ViewId::ORIGIN {
            return Err(ControlError::Busy);
        }
        if self.merge.is_some() {
            // It would see the raw origin, which is neither the old nor the new image.
            return Err(ControlError::MergeRunning);
        }
        Ok(Change::Cut { snapshot, store })
    }

    /// Step 3.
    pub(super) fn flush_cut(&mut self, port: usize) {
        let device = self.origin_device();
        self.issue(port, IoPurpose::CutFlush, |tag| Command::Flush {
            tag,
            device,
        });
    }

    /// Step 4.
    pub(super) fn install(&mut self, id: SnapshotId, store: SnapshotStore) {
        let snap = Snap::new(id, store, self.origin_sectors());
        self.snaps.insert(id, snap);
        self.notify(Notice::Added { snapshot: id });
        self.watch_usage(id);
    }
}
