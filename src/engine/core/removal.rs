//! Removing a snapshot.
//!
//! Order: 1 the snapshot is invalidated, and its header marked if it was invalid before
//! → 2 nothing uses the store any more → 3 the snapshot is gone.
//!
//! The header says invalid afterwards, because without copy-outs the store would soon
//! be silently wrong. The caller has recorded that the snapshot is invalid, so that
//! nothing waits for a header that cannot be written; the record must outlive it.

use super::Core;
use super::drains::Drain;
use super::ports::ControlCall;
use super::snap::Removal;
use crate::engine::api::*;
use crate::engine::failure::{FailedDevice, Failure};
use crate::io::Errno;
use crate::mutation::{self, Mutation};

impl Core {
    /// Steps 1 and 2.
    pub(super) fn remove_snapshot(
        &mut self,
        call: ControlCall,
        snapshot: SnapshotId,
        force: bool,
    ) -> Result<(), ControlError> {
        if self.gate.is_some() {
            return Err(ControlError::Busy);
        }
        if self.is_merging(snapshot) {
            return Err(ControlError::MergeRunning);
        }
        let snap = self
            .snaps
            .get_mut(&snapshot)
            .ok_or(ControlError::UnknownSnapshot)?;
        if snap.removal.is_some() {
            return Err(ControlError::Busy);
        }
        snap.removal = Some(Removal {
            call,
            force,
            failed: None,
        });
        if !snap.is_usable()
            && !snap.is_marked()
            && !mutation::is(Mutation::HeaderLeftValid)
            && let Some(write) = snap.metadata.invalidate_write()
        {
            let device = snap.shared.device;
            self.write_header(snapshot, device, write);
        }
        self.invalidate(snapshot, InvalidReason::Removed);
        self.publish_views();
        self.add_drain(Drain::Removal { snapshot });
        Ok(())
    }

    /// Step 3.
    pub(super) fn removed(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(removal) = snap.removal.take() else {
            return;
        };
        let unmarked = !snap.is_marked() && !snap.metadata.is_transient();
        if unmarked && !removal.force && !mutation::is(Mutation::HeaderLeftValid) {
            let unknown = Failure::flush(FailedDevice::Cow, Errno::EIO);
            let result = Err(ControlError::NotMarked(removal.failed.unwrap_or(unknown)));
            return self.control_done(removal.call, result);
        }
        self.snaps.remove(&id);
        self.publish_views();
        self.control_done(removal.call, Ok(()));
    }
}
