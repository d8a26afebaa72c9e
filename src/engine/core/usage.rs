//! Notices of how full a store is, before it is full.
//!
//! The use is checked where it changes, which is in the critical section (a commit, a
//! growth): this costs one division per commit, and nothing on the fast path.

use super::Core;
use crate::engine::api::*;

/// The first step with a notice, in percent, as in LVM's dmeventd.
pub const USAGE_FIRST: u64 = 80;
/// The distance of the steps, in percent.
pub const USAGE_STEP: u64 = 5;

impl Core {
    /// The COW device of a snapshot was enlarged to this size.
    pub(super) fn grow(&mut self, id: SnapshotId, cow_sectors: u64) -> Result<(), ControlError> {
        let snap = self
            .snaps
            .get_mut(&id)
            .ok_or(ControlError::UnknownSnapshot)?;
        snap.metadata.set_cow_sectors(cow_sectors);
        if snap.end_overflow() {
            self.publish_views();
        }
        self.notify(Notice::Grown { snapshot: id });
        self.watch_usage(id);
        Ok(())
    }

    /// Sends a notice when the use of a snapshot's store reaches a higher step. Each
    /// step has one notice, until the use has fallen below it (the COW grew).
    pub(super) fn watch_usage(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id).filter(|s| s.is_usable()) else {
            return;
        };
        let usage = snap.metadata.usage();
        let percent = percent(usage.allocated, usage.total);
        let step = if percent < USAGE_FIRST {
            0
        } else {
            percent / USAGE_STEP * USAGE_STEP
        };
        if snap.reach_usage_step(step) {
            self.notify(Notice::Usage {
                snapshot: id,
                percent,
            });
        }
    }
}

/// Rounded down; 0 if `whole` is 0.
fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}
