//! The rollback that waits for the guest's reset: a copy of what the state file says
//! of it, for the threads that start rings, and the watch of QEMU's monitor.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::live::{LiveVolume, Tables, lock};
use crate::control::api::{PendingRollback, SnapshotSpec};
use crate::daemon::cow::Given;
use crate::daemon::monitor::watch::Watch;
use crate::daemon::state::VolumeState;

impl LiveVolume {
    pub fn is_rollback_pending(&self) -> bool {
        self.rollback_pending.load(Ordering::Acquire)
    }

    /// Brings the flag and the watch of the monitor in line with the state file.
    pub fn refresh_pending(&self) {
        let pending = lock(&self.state).state().rollback_at_reset.clone();
        self.rollback_pending
            .store(pending.is_some(), Ordering::Release);
        self.forget_other_cow(pending.as_ref().and_then(|r| r.keep.as_ref()));
        let path = pending.and_then(|r| r.qmp);
        let mut watch = lock(&self.watch);
        let path = path.as_deref().map(Path::new);
        if watch.as_ref().map(Watch::path) == path {
            return;
        }
        *watch = None;
        if let Some(path) = path {
            match Watch::start(path, None, &self.stopping) {
                Ok(started) => *watch = Some(started),
                Err(error) => tracing::error!(%error, "cannot watch QEMU's monitor for resets"),
            }
        }
    }

    /// Closes the COW that a client has given for a rollback that is not pending any more.
    fn forget_other_cow(&self, keep: Option<&SnapshotSpec>) {
        let mut given = lock(&self.kept_cow);
        let is_kept = |given: &Given| keep.is_some_and(|keep| given.path() == Path::new(&keep.cow));
        *given = given.take().filter(is_kept);
    }

    /// The pending rollback, for the status.
    pub fn pending_rollback(state: &VolumeState, tables: &Tables) -> Option<PendingRollback> {
        let record = state.rollback_at_reset.clone()?;
        let postponed = tables.postponed.clone();
        Some(PendingRollback {
            snapshot: record.snapshot,
            reset: record.reset,
            keep: record.keep.map(|k| k.name),
            qmp: record.qmp,
            seen: postponed.as_ref().map(|p| p.seen),
            note: postponed.map(|p| p.reason),
        })
    }
}
