//! The engine's notices, and what the volume does about them.

use std::sync::Arc;

use crate::control::events::{CancelCause, EventKind};
use crate::daemon::volume::{LiveVolume, Service, lock};
use crate::engine::{ControlRequest, FailedDevice, Failure, InvalidReason, Notice, SnapshotId};
use crate::executor::{Executor, Output};

/// The notice port of the volume. It belongs to the main thread, which never blocks on
/// the engine, so that the engine can rely on it to answer.
pub struct Notices {
    executor: Executor,
    /// Invalidations that are recorded neither in the store's header nor in the state
    /// file yet. Origin writes wait for them: the guest stalls, but a snapshot that
    /// missed a copy-out cannot become valid again.
    unrecorded: Vec<(SnapshotId, InvalidReason)>,
    /// Snapshots and merges that are announced now existed before this daemon.
    starting: bool,
}

impl Notices {
    pub fn new(executor: Executor) -> Self {
        Self {
            executor,
            unrecorded: Vec::new(),
            starting: true,
        }
    }

    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Something has to be repeated after [`RETRY`](crate::daemon::volume::RETRY).
    pub fn wants_retry(&self) -> bool {
        !self.unrecorded.is_empty()
    }

    /// The engine has everything that was recorded, and its notices about it have been
    /// processed.
    pub fn started(&mut self) {
        self.starting = false;
    }

    /// Processes the engine's notices, and repeats what failed.
    pub fn process(&mut self, volume: &Arc<LiveVolume>) {
        volume.notice_barrier.process(|| {
            self.process_notices(volume);
            self.record_invalidations(volume);
            // Carries out the I/O that the answers caused; there may be new notices, too.
            if !self.executor.is_idle() {
                self.process_notices(volume);
            }
        });
    }

    fn record_invalidations(&mut self, volume: &Arc<LiveVolume>) {
        self.unrecorded.retain(|&(snapshot, reason)| {
            let recorded = volume.record_invalid(snapshot);
            if let Some(recorded) = &recorded {
                self.executor
                    .start(ControlRequest::InvalidRecorded { snapshot });
                volume.publish_invalid(snapshot, reason);
                volume.publish_called_off(recorded);
            }
            recorded.is_none()
        });
    }

    fn process_notices(&mut self, volume: &Arc<LiveVolume>) {
        let mut outputs = Vec::new();
        self.executor.turn(&mut outputs);
        for output in outputs {
            match output {
                Output::Notice(notice) => self.process_notice(volume, notice),
                Output::ControlDone { id: _, result } => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "the engine refused an answer to its notice");
                    }
                }
            }
        }
    }

    fn process_notice(&mut self, volume: &Arc<LiveVolume>, notice: Notice) {
        match notice {
            Notice::Added { snapshot } => volume.publish_added(snapshot, self.starting),
            Notice::HandedOver { snapshot } => volume.publish_handover(snapshot, self.starting),
            Notice::MergePaused { snapshot } => volume.publish(snapshot, EventKind::MergePaused),
            Notice::MergeResumed { snapshot } => volume.publish(snapshot, EventKind::MergeResumed),
            Notice::Grown { snapshot } => {
                let size = volume.cow_size(snapshot);
                volume.publish(snapshot, EventKind::SnapshotGrown { size });
            }
            Notice::Usage { snapshot, percent } => {
                volume.log_usage(snapshot, percent);
                volume.publish(snapshot, EventKind::UsageThreshold { percent });
            }
            Notice::Invalid {
                snapshot,
                reason,
                durable,
            } => {
                volume.log_invalid(snapshot, reason);
                if !durable {
                    self.unrecorded.push((snapshot, reason));
                } else if reason != InvalidReason::Removed {
                    // The header is marked already, so the state file may fail.
                    volume.publish_invalid(snapshot, reason);
                    if let Some(recorded) = volume.record_invalid(snapshot) {
                        volume.publish_called_off(&recorded);
                    }
                }
            }
            Notice::Overflow { snapshot } => {
                volume.log_overflow(snapshot);
                volume.publish(snapshot, EventKind::SnapshotOverflow);
            }
            Notice::MergeDone { snapshot } => volume.spawn_merge_end(snapshot),
            Notice::MergeFailed { snapshot, stop } => volume.publish_merge_failed(snapshot, stop),
            Notice::OriginFlushFailed { failure } => volume.publish_flush_failed(failure),
            // The merger has a port of its own for these.
            Notice::MergeWork { .. } => {}
        }
    }
}

/// An invalidation is in the state file.
#[derive(Debug, Default)]
struct Recorded {
    /// The snapshot whose rollback was pending until then.
    called_off: Option<String>,
}

impl LiveVolume {
    fn publish_handover(&self, snapshot: SnapshotId, at_start: bool) {
        let merging = lock(&self.tables).merging.clone();
        if let Some(merging) = merging.filter(|m| m.id == snapshot) {
            let handover = EventKind::Handover {
                follow: merging.follow,
                chunks: merging.chunks,
                at_start,
            };
            self.events.publish(Some(&merging.name), handover);
        }
    }

    fn publish_flush_failed(&self, failure: Failure) {
        let error = self.describe_failure(failure, None);
        match self.facts.service {
            Service::Daemon => {
                tracing::error!("{error}; guests' flushes fail until the daemon is restarted")
            }
            Service::OfflineMerge => tracing::error!("{error}"),
        }
        let failed = EventKind::OriginFlushFailed { error };
        self.events.publish(None, failed);
    }

    fn publish_called_off(&self, recorded: &Recorded) {
        if let Some(name) = &recorded.called_off {
            self.publish_rollback_cancelled(name, CancelCause::Invalid);
        }
    }

    /// The snapshot's name for the log.
    fn log_name(&self, snapshot: SnapshotId) -> String {
        let tables = lock(&self.tables);
        tables.name_of(snapshot).unwrap_or("?").to_owned()
    }

    fn log_usage(&self, snapshot: SnapshotId, percent: u64) {
        let name = self.log_name(snapshot);
        tracing::warn!(snapshot = %name,
            "{percent} % of the COW is used; enlarge it with `snapback grow {name} SIZE`");
    }

    fn log_overflow(&self, snapshot: SnapshotId) {
        let name = self.log_name(snapshot);
        tracing::warn!(snapshot = %name,
            "the COW is full: reads of the snapshot succeed, writes fail; enlarge it with `snapback grow {name} SIZE`");
    }

    fn log_invalid(&self, snapshot: SnapshotId, reason: InvalidReason) {
        let name = self.log_name(snapshot);
        match reason {
            InvalidReason::Removed => {}
            InvalidReason::Loaded => {
                tracing::warn!(snapshot = %name, "the snapshot was already invalid at the start")
            }
            InvalidReason::Full => tracing::error!(snapshot = %name,
                "the COW is full: the snapshot is invalid for good; remove it with `snapback remove {name}`. \
                 The origin is not affected"),
            InvalidReason::Io(failure) => {
                let error = self.describe_failure(failure, Some(snapshot));
                let origin = match failure.device {
                    FailedDevice::Origin => {
                        "The data that the snapshot needed from the origin could not be saved"
                    }
                    FailedDevice::Cow | FailedDevice::Record => "The origin is not affected",
                };
                tracing::error!(snapshot = %name,
                    "{error}: the snapshot is invalid for good; remove it with `snapback remove {name}`. {origin}");
            }
        }
    }

    /// Records durably that a snapshot is invalid; `None` if that failed, which is
    /// logged.
    fn record_invalid(&self, snapshot: SnapshotId) -> Option<Recorded> {
        let Some(name) = lock(&self.tables).name_of(snapshot).map(str::to_owned) else {
            return Some(Recorded::default());
        };
        let mut called_off = None;
        let recorded = lock(&self.state).update(|s| {
            called_off = s.rollback_at_reset.take_if(|r| r.snapshot == name);
            if let Some(record) = s.snapshot_mut(&name) {
                record.valid = false;
            }
        });
        self.refresh_pending();
        match recorded {
            Ok(()) => Some(Recorded {
                called_off: called_off.map(|r| r.snapshot),
            }),
            Err(error) => {
                tracing::error!(snapshot = %name, %error,
                    "the snapshot is invalid, but the state file could not be written; this is repeated every second, and \
                     guests' writes to the disk may wait until it succeeds");
                None
            }
        }
    }
}
