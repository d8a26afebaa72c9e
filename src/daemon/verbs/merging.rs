//! Handing a snapshot over to the merge view, and what can be told to a merge
//! under way.

use super::snapshots::NewSnapshot;
use crate::control::api::{ApiError, ErrorKind, MergeRequest, Retry, StoreType};
use crate::daemon::running::notices::RETRY;
use crate::daemon::state::{MergeRecord, RollbackRecord, VolumeState, WritePolicy};
use crate::daemon::volume::{LiveVolume, Merging, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest, SnapshotState};
use crate::executor::Executor;

/// How a snapshot is handed over.
#[derive(Default)]
pub struct Handover {
    pub follow: bool,
    /// Of the merge, in bytes per second, 0: no limit.
    pub rate: u64,
    /// To be taken right before.
    pub keep: Option<NewSnapshot>,
}

/// A handover that was recorded and did not happen.
#[derive(Clone, Debug)]
pub struct Undo {
    snapshot: String,
    kept: Option<String>,
    /// The rollback that waits again.
    again: Option<RollbackRecord>,
}

impl Undo {
    pub fn apply(&self, state: &mut VolumeState) {
        state.merge.take_if(|m| m.snapshot == self.snapshot);
        if let Some(kept) = &self.kept {
            state.drop_snapshot(kept);
        }
        if state.snapshot(&self.snapshot).is_some() {
            state.rollback_at_reset.clone_from(&self.again);
        }
    }
}

impl LiveVolume {
    pub fn merge_now(&self, request: &MergeRequest) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.check_mergeable(&request.snapshot)?;
        if !request.now {
            self.check_unused(request)?;
        }
        let handover = Handover {
            follow: request.follow,
            rate: request.rate.unwrap_or(0),
            keep: None,
        };
        self.hand_over(&mut ops, &request.snapshot, handover)
    }

    /// A guest that is attached to the origin would find another disk there from
    /// one read to the next.
    fn check_unused(&self, request: &MergeRequest) -> Result<(), ApiError> {
        let name = &request.snapshot;
        let tables = lock(&self.tables);
        let Some(view) = tables.origin_views.iter().find(|v| v.is_attached()) else {
            return Ok(());
        };
        let at = view.socket.as_deref().unwrap_or("the given descriptor");
        Err(conflict(if request.follow {
            format!(
                "a guest is attached to the disk at {at}: the merge of {name} would change the disk while it runs, and the \
                 snapshot's guest would be a second one on the same disk. Shut the guest at {at} down first, or insist with \
                 snapback merge {name} --follow --now"
            )
        } else {
            format!(
                "a guest is attached to the disk at {at}, and the merge of {name} would change the disk while it runs. Use \
                 snapback rollback {name}, which does the same when the guest is reset, or insist with snapback merge {name} \
                 --now"
            )
        }))
    }

    /// What speaks against merging a snapshot, checked before anything is done.
    pub fn check_mergeable(&self, name: &str) -> Result<(), ApiError> {
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

    /// Hands a snapshot over.
    ///
    /// Order: 1 the merge is in the state file, durable, together with the snapshot
    /// that is to be kept → 2 that one's cut → 3 the engine hands over → 4 known to
    /// the status. If 2 or 3 fails, all of it is taken back.
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
        let recorded = lock(&self.state).update(|s| {
            s.snapshots
                .extend(kept.as_ref().map(|new| new.record.clone()));
            s.merge = Some(record.clone());
            s.rollback_at_reset = None;
        });
        if let Err(error) = recorded {
            if let Some(new) = &kept {
                self.put_back(new);
            }
            return Err(not_recorded(&error));
        }
        if kept.is_some() {
            self.mark_origin();
        }
        let cut = kept.as_mut().map_or(Ok(()), |new| self.cut(ops, new));
        let (handed, again) = match cut {
            Ok(()) => {
                #[cfg(not(test))]
                let started = self.start_merge(ops, &record);
                #[cfg(test)]
                let started = match self
                    .fail_handover
                    .swap(false, std::sync::atomic::Ordering::AcqRel)
                {
                    true => Err(ControlError::Busy),
                    false => self.start_merge(ops, &record),
                };
                // Kept pending only if another try at the next reset can help.
                let again = matches!(started, Err(ControlError::Busy | ControlError::Io(_)));
                (started.map_err(|e| mapped(name, &e)), again)
            }
            Err(error) => (Err(error), true),
        };
        if handed.is_err() {
            let undo = Undo {
                snapshot: name.to_owned(),
                kept: kept.as_ref().map(|new| new.record.spec.name.clone()),
                again: before.clone().filter(|_| again),
            };
            self.take_back(undo);
            if let Some(new) = &kept {
                self.uncut(ops, new);
            }
        }
        self.refresh_pending();
        if let Some(other) = before {
            match &handed {
                Ok(()) if other.snapshot == name => {}
                Ok(()) => self.tell_cancelled(&other.snapshot, "replaced"),
                Err(_) if again => {}
                Err(_) => self.tell_cancelled(&other.snapshot, "failed"),
            }
        }
        handed?;
        kept.map_or(Ok(()), |new| self.settle_snapshot(new))
    }

    /// Takes a handover back that did not happen; again and again until that is
    /// recorded: a start before it would hand over.
    fn take_back(&self, undo: Undo) {
        let Err(error) = lock(&self.state).update(|s| undo.apply(s)) else {
            return;
        };
        tracing::error!(snapshot = %undo.snapshot, %error,
            "the state file still says that this snapshot is being merged, which it is not; it is tried again");
        lock(&self.tables).undo = Some(undo);
        let this = self.this.clone();
        let spawned = std::thread::Builder::new()
            .name("undo".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(RETRY);
                    let Some(volume) = this.upgrade().filter(|v| !v.is_stopping()) else {
                        return;
                    };
                    if volume.is_taken_back() {
                        return;
                    }
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "it is taken back when the daemon stops");
        }
    }

    /// Tries to record what [`Self::take_back`] could not.
    pub fn is_taken_back(&self) -> bool {
        let _turn = lock(&self.ops);
        let Some(undo) = lock(&self.tables).undo.clone() else {
            return true;
        };
        let recorded = lock(&self.state).update(|s| undo.apply(s)).is_ok();
        if recorded {
            lock(&self.tables).undo = None;
            self.refresh_pending();
        }
        recorded
    }

    /// The engine's part of a handover, new or taken up again.
    pub fn start_merge(
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

    pub fn set_paused(&self, paused: bool) -> Result<(), ApiError> {
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

    pub fn set_rate(&self, rate: u64) -> Result<(), ApiError> {
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
