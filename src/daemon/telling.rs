//! Events in the words of users: names for numbers, and what they need beside.

use super::volume::{LiveVolume, lock};
use crate::control::events::{Happening, InvalidCause};
use crate::engine::{InvalidReason, SnapshotId, SnapshotState};

impl LiveVolume {
    /// Tells what happened to a snapshot; of one that is gone nothing is told.
    pub(super) fn tell(&self, snapshot: SnapshotId, what: Happening) {
        let tables = lock(&self.tables);
        if let Some(name) = tables.name_of(snapshot) {
            self.events.tell(Some(name), what);
        }
    }

    pub(super) fn tell_added(&self, snapshot: SnapshotId, at_start: bool) {
        let cow = {
            let tables = lock(&self.tables);
            let found = tables.snapshots.iter().find(|s| s.id == snapshot);
            found.map(|s| s.spec.cow.clone())
        };
        let Some(cow) = cow else { return };
        self.tell(snapshot, Happening::SnapshotAdded { cow, at_start });
        let status = self.engine.status();
        let found = status.snapshots.iter().find(|s| s.snapshot == snapshot);
        if at_start && found.is_some_and(|s| s.state == SnapshotState::Invalid) {
            self.tell_invalid(snapshot, InvalidReason::Loaded);
        }
    }

    pub(super) fn tell_invalid(&self, snapshot: SnapshotId, reason: InvalidReason) {
        let (reason, error) = match reason {
            InvalidReason::Removed => return,
            InvalidReason::Full => (InvalidCause::Full, None),
            InvalidReason::Loaded => (InvalidCause::Loaded, None),
            InvalidReason::Io(errno) => {
                let error = std::io::Error::from_raw_os_error(errno.0);
                (InvalidCause::Io, Some(error.to_string()))
            }
        };
        self.tell(snapshot, Happening::SnapshotInvalid { reason, error });
    }

    /// A pending rollback to `name` will not happen.
    pub(super) fn tell_cancelled(&self, name: &str, reason: &str) {
        let reason = reason.to_owned();
        self.events
            .tell(Some(name), Happening::RollbackCancelled { reason });
    }

    /// Bytes; 0 for a snapshot that is gone.
    pub(super) fn cow_size(&self, snapshot: SnapshotId) -> u64 {
        let tables = lock(&self.tables);
        let found = tables.snapshots.iter().find(|s| s.id == snapshot);
        found.and_then(|s| s.spec.size).unwrap_or(0)
    }
}
