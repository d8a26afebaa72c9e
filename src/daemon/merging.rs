//! Handing a snapshot over to the merge view: rollback, live commit, and what
//! can be told to a merge under way.

use std::sync::atomic::Ordering;

use super::state::{MergeRecord, RollbackRecord, WritePolicy};
use super::volume::{LiveVolume, Merging, conflict, lock, not_recorded};
use crate::control::api::{
    ApiError, ErrorKind, MergeRequest, Retry, RollbackReply, RollbackRequest, RollbackWhen,
    SnapshotSpec, StoreType,
};
use crate::control::events::Happening;
use crate::engine::{ControlError, ControlRequest, SnapshotState};
use crate::executor::Executor;

impl LiveVolume {
    pub(super) fn roll_back(&self, request: RollbackRequest) -> Result<RollbackReply, ApiError> {
        let mut ops = lock(&self.ops);
        let name = &request.snapshot;
        self.check_mergeable(name)?;
        let rate = request.rate.unwrap_or(0);
        if request.keep.as_ref().is_some_and(|k| k.name == *name) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!("--keep {name} is the snapshot to roll back to: choose another name"),
            ));
        }
        let wait = match request.when {
            RollbackWhen::Now => false,
            RollbackWhen::AtReset => true,
            RollbackWhen::Auto => lock(&self.tables).origin_attached(),
        };
        if wait {
            if let Some(keep) = &request.keep {
                // Taken at the reset; what speaks against it is said now.
                self.check_snapshot(keep, &mut *self.one_thread_disk()?)?;
            }
            let record = RollbackRecord {
                snapshot: name.clone(),
                rate,
                keep: request.keep,
            };
            let mut replaced = None;
            lock(&self.state)
                .update(|s| replaced = s.rollback_at_reset.replace(record))
                .map_err(|e| not_recorded(&e))?;
            self.refresh_pending();
            if let Some(other) = replaced.filter(|r| r.snapshot != *name) {
                self.tell_cancelled(&other.snapshot, "replaced");
            }
            self.events.tell(Some(name), Happening::RollbackPending);
            tracing::info!(snapshot = %name, "rollback at the guest's next reset");
            return Ok(RollbackReply::AtNextReset);
        }
        if let Some(keep) = request.keep {
            self.create_snapshot_in_turn(&mut ops, keep)?;
        }
        self.hand_over(&mut ops, name, false, rate)?;
        Ok(RollbackReply::Started)
    }

    /// Calls the rollback off that waits for the guest's reset. Whoever was
    /// quicker, this or the reset, has its way.
    pub(super) fn call_rollback_off(&self) -> Result<(), ApiError> {
        let _turn = lock(&self.ops);
        let Some(pending) = lock(&self.state).state().rollback_at_reset.clone() else {
            let merging = lock(&self.state).state().merge.clone();
            return Err(conflict(match merging {
                Some(merge) => format!(
                    "no rollback waits for a reset; that to {} has been carried out, or is a merge, and cannot be called off",
                    merge.snapshot
                ),
                None => {
                    "no rollback waits for a reset; snapback status shows one that does".to_owned()
                }
            }));
        };
        lock(&self.state)
            .update(|s| s.rollback_at_reset = None)
            .map_err(|e| not_recorded(&e))?;
        self.refresh_pending();
        tracing::info!(snapshot = %pending.snapshot, "the rollback is called off");
        self.tell_cancelled(&pending.snapshot, "asked");
        Ok(())
    }

    pub(super) fn merge_now(&self, request: &MergeRequest) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.check_mergeable(&request.snapshot)?;
        self.hand_over(
            &mut ops,
            &request.snapshot,
            request.follow,
            request.rate.unwrap_or(0),
        )
    }

    /// Carries out the rollback that waited for this. The guest's rings start
    /// only when it returns, so the guest boots what the snapshot holds.
    pub(super) fn roll_back_at_reset(&self) {
        let mut ops = lock(&self.ops);
        // Between the look without a lock and here it may have been carried out.
        let Some(pending) = lock(&self.state).state().rollback_at_reset.clone() else {
            return;
        };
        let name = &pending.snapshot;
        let result = self
            .check_mergeable(name)
            .and_then(|()| self.keep_before_rollback(&mut ops, pending.keep))
            .and_then(|()| self.hand_over(&mut ops, name, false, pending.rate));
        match result {
            Ok(()) => {
                tracing::info!(snapshot = %name, "the guest was reset and finds the snapshot's content")
            }
            Err(error) => {
                tracing::error!(snapshot = %name, %error, "the guest was reset, but the rollback failed");
                let error = error.to_string();
                self.events
                    .tell(Some(name), Happening::RollbackFailed { error });
            }
        }
    }

    /// Takes the snapshot that makes the rollback reversible; without it there is
    /// no rollback. One that a crash left from an earlier try will do.
    fn keep_before_rollback(
        &self,
        ops: &mut Executor,
        keep: Option<SnapshotSpec>,
    ) -> Result<(), ApiError> {
        let Some(keep) = keep else { return Ok(()) };
        let taken = lock(&self.tables)
            .snapshot(&keep.name)
            .is_some_and(|s| s.spec.cow == keep.cow);
        if !taken {
            self.create_snapshot_in_turn(ops, keep)?;
        }
        Ok(())
    }

    /// What speaks against merging a snapshot, checked before anything is done.
    fn check_mergeable(&self, name: &str) -> Result<(), ApiError> {
        if self.facts.read_only {
            return Err(conflict(format!(
                "snapshot {name} cannot be merged: the origin is served read-only; serve it without --read-only"
            )));
        }
        let (id, store_type) = {
            let tables = lock(&self.tables);
            match tables.snapshot(name) {
                Some(snapshot) => (snapshot.id, snapshot.spec.store_type),
                None => {
                    drop(tables);
                    return Err(self.unknown(name));
                }
            }
        };
        if let Some(merge) = &lock(&self.state).state().merge {
            return Err(conflict(if merge.snapshot == name {
                format!(
                    "snapshot {name} is being merged already; snapback status shows how far it is"
                )
            } else {
                format!(
                    "the merge of {} is running, and an origin takes one at a time; wait for it",
                    merge.snapshot
                )
            }));
        }
        if store_type == StoreType::N {
            return Err(mapped(name, &ControlError::Transient));
        }
        let status = self.engine.status();
        match status
            .snapshots
            .iter()
            .find(|s| s.snapshot == id)
            .map(|s| s.state)
        {
            Some(SnapshotState::Invalid) | None => Err(mapped(name, &ControlError::Invalid)),
            Some(_) => Ok(()),
        }
    }

    /// Hands `name` over.
    ///
    /// Order: 1 the merge is in the state file, durable → 2 the engine hands over
    /// → 3 known to the status. If 2 fails, 1 is taken back.
    fn hand_over(
        &self,
        ops: &mut Executor,
        name: &str,
        follow: bool,
        rate: u64,
    ) -> Result<(), ApiError> {
        let writes = self.facts.merge_writes;
        let record = MergeRecord {
            snapshot: name.to_owned(),
            follow,
            writes: WritePolicy::from(writes),
            paused: false,
            rate,
        };
        let before = lock(&self.state).state().rollback_at_reset.clone();
        lock(&self.state)
            .update(|s| {
                s.merge = Some(record.clone());
                s.rollback_at_reset = None;
            })
            .map_err(|e| not_recorded(&e))?;
        let handed = self.start_merge(ops, &record);
        if let Err(error) = &handed {
            // Kept pending only if another try at the next reset can help.
            let again = before
                .clone()
                .filter(|_| matches!(error, ControlError::Busy | ControlError::Io(_)));
            let undone = lock(&self.state).update(|s| {
                s.merge = None;
                s.rollback_at_reset = again;
            });
            if let Err(error) = undone {
                tracing::error!(snapshot = %name, %error,
                    "the state file still says that this snapshot is being merged; the next start will do so");
            }
        }
        self.refresh_pending();
        let still = lock(&self.state).state().rollback_at_reset.is_some();
        if let Some(other) = before.filter(|_| !still) {
            match &handed {
                Ok(()) if other.snapshot == name => {}
                Ok(()) => self.tell_cancelled(&other.snapshot, "replaced"),
                Err(_) => self.tell_cancelled(&other.snapshot, "failed"),
            }
        }
        handed.map_err(|e| mapped(name, &e))
    }

    /// The engine's part of a handover, new or taken up again.
    pub(super) fn start_merge(
        &self,
        ops: &mut Executor,
        record: &MergeRecord,
    ) -> Result<(), ControlError> {
        let Some(id) = lock(&self.tables).snapshot(&record.snapshot).map(|s| s.id) else {
            return Err(ControlError::UnknownSnapshot);
        };
        self.set_merger_rate(record.rate);
        let chunks = self
            .engine
            .status()
            .snapshots
            .iter()
            .find(|s| s.snapshot == id)
            .map_or(0, |s| s.exceptions);
        // Known before it begins: its end may be told at any time after.
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
        let result = self.drive(ops, request);
        match &result {
            Ok(()) => {
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
                    tracing::debug!(%error, "nothing left to pause");
                }
                tracing::info!(snapshot = %record.snapshot, chunks, "handed over, merging");
            }
            Err(_) => lock(&self.tables).merging = None,
        }
        result
    }

    pub(super) fn set_paused(&self, paused: bool) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        let name = self.running_merge()?;
        let stopped = self.engine.status().merge.and_then(|m| m.stopped);
        if !paused && stopped.is_some_and(|stop| !stop.resumable) {
            return Err(self.not_resumed(&name)); // and nothing is recorded
        }
        lock(&self.state)
            .update(|s| {
                if let Some(merge) = &mut s.merge {
                    merge.paused = paused;
                }
            })
            .map_err(|e| not_recorded(&e))?;
        let request = if paused {
            ControlRequest::PauseMerge
        } else {
            ControlRequest::ResumeMerge
        };
        // What follows from it the engine tells, in its order.
        self.drive(&mut ops, request).map_err(|e| match e {
            ControlError::MergeFailed => self.not_resumed(&name),
            e => mapped(&name, &e),
        })
    }

    fn not_resumed(&self, name: &str) -> ApiError {
        let id = lock(&self.tables).snapshot(name).map(|s| s.id);
        let stopped = self.engine.status().merge.and_then(|m| m.stopped);
        let why = stopped.map(|stop| self.in_words(stop.failure, id));
        conflict(format!(
            "the merge of {name} cannot be resumed, because only loading the store again tells what is on disk \
             ({}); {}",
            why.unwrap_or_default(),
            Retry::Restart.advice()
        ))
    }

    pub(super) fn set_rate(&self, rate: u64) -> Result<(), ApiError> {
        let _turn = lock(&self.ops);
        self.running_merge()?;
        lock(&self.state)
            .update(|s| {
                if let Some(merge) = &mut s.merge {
                    merge.rate = rate;
                }
            })
            .map_err(|e| not_recorded(&e))?;
        self.set_merger_rate(rate);
        Ok(())
    }

    fn running_merge(&self) -> Result<String, ApiError> {
        lock(&self.state)
            .state()
            .merge
            .as_ref()
            .map(|m| m.snapshot.clone())
            .ok_or_else(|| conflict("no merge is running; start one with snapback merge NAME or snapback rollback NAME"))
    }

    fn set_merger_rate(&self, rate: u64) {
        if let Some(merger) = &*lock(&self.merger) {
            merger.set_rate(rate);
        }
    }

    /// Keeps the flag that resets look at in step with the state.
    pub(super) fn refresh_pending(&self) {
        let pending = lock(&self.state).state().rollback_at_reset.is_some();
        self.rollback_pending.store(pending, Ordering::Release);
    }
}

fn mapped(name: &str, error: &ControlError) -> ApiError {
    match error {
        ControlError::Transient => conflict(format!(
            "snapshot {name} is transient (type N), its store cannot be merged; take one of type P to merge it one day"
        )),
        ControlError::Invalid => conflict(format!(
            "snapshot {name} is invalid and holds nothing that could be merged; remove it with snapback remove {name}"
        )),
        ControlError::NoMerge => conflict(format!("the merge of {name} has just ended")),
        other => ApiError::new(ErrorKind::Io, format!("snapshot {name}: {other}")),
    }
}
