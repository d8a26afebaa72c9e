//! Events for the log: snapshots are named, and failures are described, as users know
//! them.

use super::live::{LiveVolume, Service, Tables, lock};
use crate::control::api::{MergeOutcome, Retry};
use crate::control::events::{
    CancelCause, EventKind, FailedDevice, FailedIo, FailedOperation, InvalidCause,
};
use crate::daemon::cow::OpenRecord;
use crate::engine::{
    self, Failure, InvalidReason, MergeStop, Operation, SnapshotId, SnapshotState,
};

impl Tables {
    /// As [`LiveVolume::describe_failure`], for the origin at path `origin`.
    pub fn describe_failure(
        &self,
        failure: Failure,
        snapshot: Option<SnapshotId>,
        origin: &str,
    ) -> String {
        let found = || self.snapshots.iter().find(|s| Some(s.id) == snapshot);
        let cow = || found().map_or("the COW".to_owned(), |s| format!("the COW {}", s.spec.cow));
        let record = || {
            let path = found()
                .and_then(|s| s.deferral.as_ref())
                .map(OpenRecord::path);
            let path = path.map(|path| format!(" {}", path.display()));
            format!("the record of unflushed writes{}", path.unwrap_or_default())
        };
        failure.describe(match failure.device {
            engine::FailedDevice::Origin => format!("the origin {origin}"),
            engine::FailedDevice::Cow => cow(),
            engine::FailedDevice::Record => record(),
        })
    }
}

impl LiveVolume {
    /// Adds an event about a snapshot to the log, unless the snapshot is gone.
    pub fn publish(&self, snapshot: SnapshotId, event: EventKind) {
        let tables = lock(&self.tables);
        if let Some(name) = tables.name_of(snapshot) {
            self.events.publish(Some(name), event);
        }
    }

    pub fn publish_added(&self, snapshot: SnapshotId, at_start: bool) {
        let cow = {
            let tables = lock(&self.tables);
            let found = tables.snapshot_by_id(snapshot);
            found.map(|s| s.spec.cow.clone())
        };
        let Some(cow) = cow else { return };
        self.publish(snapshot, EventKind::SnapshotAdded { cow, at_start });
        let status = self.engine.status();
        let found = status.snapshots.iter().find(|s| s.snapshot == snapshot);
        if at_start && found.is_some_and(|s| s.state == SnapshotState::Invalid) {
            self.publish_invalid(snapshot, InvalidReason::Loaded);
        }
    }

    pub fn publish_invalid(&self, snapshot: SnapshotId, reason: InvalidReason) {
        let (reason, failure) = match reason {
            InvalidReason::Removed => return,
            InvalidReason::Full => (InvalidCause::Full, None),
            InvalidReason::Loaded => (InvalidCause::Loaded, None),
            InvalidReason::Io(failure) => (InvalidCause::Io, Some(failure)),
        };
        let event = EventKind::SnapshotInvalid {
            reason,
            error: failure.map(|f| self.describe_failure(f, Some(snapshot))),
            failed: failure.as_ref().map(failed_io),
        };
        self.publish(snapshot, event);
    }

    /// Describes a failure with the path of the file; `snapshot` is the one whose COW may
    /// have failed.
    pub fn describe_failure(&self, failure: Failure, snapshot: Option<SnapshotId>) -> String {
        lock(&self.tables).describe_failure(failure, snapshot, &self.facts.path)
    }

    pub fn publish_merge_failed(&self, snapshot: SnapshotId, stop: MergeStop) {
        let reason = self.describe_failure(stop.failure, Some(snapshot));
        let retry = retry(&stop);
        let mut tables = lock(&self.tables);
        let Some(merging) = tables.merging.clone().filter(|m| m.id == snapshot) else {
            return;
        };
        match self.facts.service {
            Service::Daemon => tracing::error!(snapshot = %merging.name,
                "{reason}: the merge has stopped; {}", retry.advice()),
            // The error with which the offline merge ends says what to do.
            Service::OfflineMerge => {
                tracing::error!(snapshot = %merging.name, "{reason}: the merge has stopped")
            }
        }
        tables.last_merge = Some(MergeOutcome {
            snapshot: merging.name.clone(),
            chunks: merging.chunks,
            error: Some(reason.clone()),
            cow: None,
        });
        tables.left_over = None;
        let event = EventKind::MergeFailed {
            reason,
            retry,
            failed: failed_io(&stop.failure),
        };
        self.events.publish(Some(&merging.name), event);
    }

    /// A pending rollback to `name` will not happen.
    pub fn publish_rollback_cancelled(&self, name: &str, reason: CancelCause) {
        self.events
            .publish(Some(name), EventKind::RollbackCancelled { reason });
    }

    /// Size of a snapshot's COW in bytes; 0 if the snapshot is gone.
    pub fn cow_size(&self, snapshot: SnapshotId) -> u64 {
        let tables = lock(&self.tables);
        let found = tables.snapshot_by_id(snapshot);
        found.and_then(|s| s.spec.size).unwrap_or(0)
    }
}

/// How a merge that stopped continues.
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
            engine::FailedDevice::Record => FailedDevice::Record,
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
