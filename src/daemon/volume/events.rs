//! Events in the words of users: names for numbers, and what they need beside.

use super::live::{LiveVolume, Tables, lock};
use crate::control::api::{MergeOutcome, Retry};
use crate::control::events::{FailedDevice, FailedIo, FailedOperation, Happening, InvalidCause};
use crate::engine::{
    self, Failure, InvalidReason, MergeStop, Operation, SnapshotId, SnapshotState,
};

impl Tables {
    /// As [`LiveVolume::in_words`], for the origin at `origin`.
    pub fn in_words(&self, failure: Failure, snapshot: Option<SnapshotId>, origin: &str) -> String {
        let cow = || {
            let found = self.snapshots.iter().find(|s| Some(s.id) == snapshot);
            found.map_or("the COW".to_owned(), |s| format!("the COW {}", s.spec.cow))
        };
        failure.describe(match failure.device {
            engine::FailedDevice::Origin => format!("the origin {origin}"),
            engine::FailedDevice::Cow => cow(),
        })
    }
}

impl LiveVolume {
    /// Tells what happened to a snapshot; of one that is gone nothing is told.
    pub fn tell(&self, snapshot: SnapshotId, what: Happening) {
        let tables = lock(&self.tables);
        if let Some(name) = tables.name_of(snapshot) {
            self.events.tell(Some(name), what);
        }
    }

    pub fn tell_added(&self, snapshot: SnapshotId, at_start: bool) {
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

    pub fn tell_invalid(&self, snapshot: SnapshotId, reason: InvalidReason) {
        let (reason, failure) = match reason {
            InvalidReason::Removed => return,
            InvalidReason::Full => (InvalidCause::Full, None),
            InvalidReason::Loaded => (InvalidCause::Loaded, None),
            InvalidReason::Io(failure) => (InvalidCause::Io, Some(failure)),
        };
        let what = Happening::SnapshotInvalid {
            reason,
            error: failure.map(|f| self.in_words(f, Some(snapshot))),
            failed: failure.as_ref().map(failed_io),
        };
        self.tell(snapshot, what);
    }

    /// A failure with the names of the files; `snapshot` is whose COW it may be.
    pub fn in_words(&self, failure: Failure, snapshot: Option<SnapshotId>) -> String {
        lock(&self.tables).in_words(failure, snapshot, &self.facts.path)
    }

    pub fn tell_merge_failed(&self, snapshot: SnapshotId, stop: MergeStop) {
        let reason = self.in_words(stop.failure, Some(snapshot));
        let retry = retry(&stop);
        let mut tables = lock(&self.tables);
        let Some(merging) = tables.merging.clone().filter(|m| m.id == snapshot) else {
            return;
        };
        tracing::error!(snapshot = %merging.name,
            "{reason}: the merge has stopped; {}", retry.advice());
        tables.last_merge = Some(MergeOutcome {
            snapshot: merging.name.clone(),
            chunks: merging.chunks,
            error: Some(reason.clone()),
        });
        let what = Happening::MergeFailed {
            reason,
            retry,
            failed: failed_io(&stop.failure),
        };
        self.events.tell(Some(&merging.name), what);
    }

    /// A pending rollback to `name` will not happen.
    pub fn tell_cancelled(&self, name: &str, reason: &str) {
        let reason = reason.to_owned();
        self.events
            .tell(Some(name), Happening::RollbackCancelled { reason });
    }

    /// Bytes; 0 for a snapshot that is gone.
    pub fn cow_size(&self, snapshot: SnapshotId) -> u64 {
        let tables = lock(&self.tables);
        let found = tables.snapshots.iter().find(|s| s.id == snapshot);
        found.and_then(|s| s.spec.size).unwrap_or(0)
    }
}

/// How a merge that stopped goes on.
pub const fn retry(stop: &MergeStop) -> Retry {
    if stop.resumable {
        Retry::Resume
    } else {
        Retry::Restart
    }
}

const fn failed_io(failure: &Failure) -> FailedIo {
    FailedIo {
        device: match failure.device {
            engine::FailedDevice::Origin => FailedDevice::Origin,
            engine::FailedDevice::Cow => FailedDevice::Cow,
        },
        operation: match failure.operation {
            Operation::Read => FailedOperation::Read,
            Operation::Write => FailedOperation::Write,
            Operation::WriteMetadata => FailedOperation::WriteMetadata,
            Operation::Flush => FailedOperation::Flush,
        },
        offset: failure.offset,
    }
}
