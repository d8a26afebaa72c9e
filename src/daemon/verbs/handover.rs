//! Handing a snapshot over to the merge view.

use super::create::NewSnapshot;
use crate::control::api::{ApiError, ErrorKind};
use crate::control::events::CancelCause;
use crate::daemon::state::{MergeRecord, RollbackRecord, WritePolicy};
use crate::daemon::volume::undo::Undo;
use crate::daemon::volume::{LiveVolume, Merging, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest};
use crate::executor::Executor;

/// How a snapshot is handed over.
#[derive(Default)]
pub struct Handover {
    pub follow: bool,
    /// Limit of the merge in bytes per second, 0: no limit.
    pub rate: u64,
    /// A snapshot that is taken immediately before.
    pub keep: Option<NewSnapshot>,
}

/// Why a handover failed, and whether another attempt at the next reset can succeed.
struct FailedHandover {
    error: ApiError,
    retry: bool,
}

impl LiveVolume {
    /// Hands a snapshot over.
    ///
    /// Order: 1 the merge is in the state file, durably, together with the snapshot that
    /// is to be kept → 2 the cut of that snapshot → 3 the engine hands over → 4 the status
    /// shows it. If 2 or 3 fails, everything is undone.
    pub fn hand_over(
        &self,
        ops: &mut Executor,
        name: &str,
        handover: Handover,
    ) -> Result<(), ApiError> {
        let Handover {
            follow,
            rate,
            keep: mut kept,
        } = handover;
        let record = MergeRecord {
            snapshot: name.to_owned(),
            follow,
            writes: WritePolicy::from(self.facts.merge_writes),
            paused: false,
            rate,
        };
        let before = lock(&self.state).state().rollback_at_reset.clone();
        self.record_handover(&record, kept.as_ref())?;
        let handed = self.cut_and_start(ops, &record, kept.as_mut());
        if let Err(failed) = &handed {
            self.undo_record(Undo {
                not_taken: kept.as_ref().map(|new| new.record.spec.name.clone()),
                not_merged: Some(name.to_owned()),
                rollback: before.clone().filter(|_| failed.retry),
            });
            if let Some(new) = &kept {
                self.undo_cut(ops, new);
            }
        }
        self.refresh_pending();
        self.publish_end_of_pending(before, name, &handed);
        handed.map_err(|failed| failed.error)?;
        kept.map_or(Ok(()), |new| self.finish_snapshot(new))
    }

    /// Step 1.
    fn record_handover(
        &self,
        record: &MergeRecord,
        kept: Option<&NewSnapshot>,
    ) -> Result<(), ApiError> {
        let recorded = lock(&self.state).update(|s| {
            s.snapshots.extend(kept.map(|new| new.record.clone()));
            s.merge = Some(record.clone());
            s.rollback_at_reset = None;
        });
        if let Err(error) = recorded {
            if let Some(new) = kept {
                self.restore_cow(new);
            }
            return Err(not_recorded(&error));
        }
        if kept.is_some() {
            self.mark_origin();
        }
        Ok(())
    }

    /// Steps 2 to 4.
    fn cut_and_start(
        &self,
        ops: &mut Executor,
        record: &MergeRecord,
        kept: Option<&mut NewSnapshot>,
    ) -> Result<(), FailedHandover> {
        kept.map_or(Ok(()), |new| self.cut(ops, new))
            .map_err(|error| FailedHandover { error, retry: true })?;
        #[cfg(test)]
        let is_injected = self
            .fail_handover
            .swap(false, std::sync::atomic::Ordering::AcqRel);
        #[cfg(not(test))]
        let is_injected = false;
        let started = match is_injected {
            true => Err(ControlError::Busy),
            false => self.start_merge(ops, record),
        };
        started.map_err(|error| FailedHandover {
            retry: matches!(error, ControlError::Busy | ControlError::Io(_)),
            error: refusal(&record.snapshot, &error),
        })
    }

    /// Publishes the end of the rollback that was pending before a handover of `name`,
    /// unless the handover was this rollback or the rollback is still pending.
    fn publish_end_of_pending(
        &self,
        before: Option<RollbackRecord>,
        name: &str,
        handed: &Result<(), FailedHandover>,
    ) {
        let Some(pending) = before else { return };
        match handed {
            Ok(()) if pending.snapshot == name => {}
            Ok(()) => self.publish_rollback_cancelled(&pending.snapshot, CancelCause::Replaced),
            Err(failed) if failed.retry => {}
            Err(_) => self.publish_rollback_cancelled(&pending.snapshot, CancelCause::Failed),
        }
    }

    /// The engine's part of a handover, of a new merge or of one that a start resumes.
    pub fn start_merge(
        &self,
        ops: &mut Executor,
        record: &MergeRecord,
    ) -> Result<(), ControlError> {
        let Some(id) = lock(&self.tables).snapshot(&record.snapshot).map(|s| s.id) else {
            return Err(ControlError::UnknownSnapshot);
        };
        self.set_merger_rate(record.rate);
        let status = self.engine.status();
        let found = status.snapshots.iter().find(|s| s.snapshot == id);
        let chunks = found.map_or(0, |s| s.exceptions);
        // It is in the tables before it begins, because it may end at any time after.
        lock(&self.tables).merging = Some(Merging {
            name: record.snapshot.clone(),
            id,
            follow: record.follow,
            chunks,
        });
        let request = ControlRequest::Handover {
            snapshot: id,
            writes: record.writes.into(),
            follow: record.follow,
        };
        if let Err(error) = self.drive(ops, request) {
            lock(&self.tables).merging = None;
            return Err(error);
        }
        if record.follow
            && let Some(view) = lock(&self.tables)
                .snapshot(&record.snapshot)
                .and_then(|s| s.view.as_ref())
        {
            view.follow_origin();
        }
        if record.paused
            && let Err(error) = self.drive(ops, ControlRequest::PauseMerge)
        {
            tracing::debug!(%error, "the merge has ended before it could be paused");
        }
        tracing::info!(snapshot = %record.snapshot, chunks, "handed over, merging");
        Ok(())
    }

    pub fn set_merger_rate(&self, rate: u64) {
        if let Some(merger) = &*lock(&self.merger) {
            merger.set_rate(rate);
        }
    }
}

/// The engine's error, for a client.
pub fn refusal(name: &str, error: &ControlError) -> ApiError {
    match error {
        ControlError::Transient => conflict(format!(
            "snapshot {name} is transient (type N), and its store cannot be merged; only snapshots of type P or PO can"
        )),
        ControlError::Invalid => conflict(format!(
            "snapshot {name} is invalid and holds nothing that could be merged; remove it with snapback remove {name}"
        )),
        ControlError::NoMerge => conflict(format!("the merge of {name} has just ended")),
        ControlError::UnknownSnapshot
        | ControlError::MergeRunning
        | ControlError::MergeFailed
        | ControlError::Busy
        | ControlError::Shrinks
        | ControlError::NotMarked(_)
        | ControlError::Io(_) => ApiError::new(ErrorKind::Io, format!("snapshot {name}: {error}")),
    }
}
