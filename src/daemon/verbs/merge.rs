//! Starting a merge now, and controlling a merge that runs.

use super::handover::{Handover, refusal};
use crate::control::api::{ApiError, MergeRequest, Retry, StoreType};
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest, SnapshotState};

impl LiveVolume {
    pub fn merge_now(&self, request: &MergeRequest) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.check_mergeable(&request.snapshot)?;
        if !request.now {
            self.await_leaving_guests();
            self.check_unused(request)?;
        }
        let handover = Handover {
            follow: request.follow,
            rate: request.rate.unwrap_or(0),
            keep: None,
        };
        self.hand_over(&mut ops, &request.snapshot, handover)
    }

    /// Refuses a merge under a guest that is attached to the origin: its disk would change
    /// between two reads.
    fn check_unused(&self, request: &MergeRequest) -> Result<(), ApiError> {
        let name = &request.snapshot;
        let tables = lock(&self.tables);
        let Some(view) = tables.origin_views.iter().find(|v| v.is_attached()) else {
            return Ok(());
        };
        let at = view.place();
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

    /// Refuses a merge that cannot succeed, before anything is changed.
    pub fn check_mergeable(&self, name: &str) -> Result<(), ApiError> {
        if self.facts.read_only {
            return Err(conflict(format!(
                "snapshot {name} cannot be merged: the origin is served read-only; serve it without --read-only"
            )));
        }
        let (id, store_type) = {
            let tables = lock(&self.tables);
            let Some(snapshot) = tables.snapshot(name) else {
                drop(tables);
                return Err(self.unknown(name));
            };
            (snapshot.id, snapshot.spec.store_type)
        };
        if let Some(merge) = &lock(&self.state).state().merge {
            return Err(conflict(if merge.snapshot == name {
                format!(
                    "snapshot {name} is being merged already; snapback status shows the progress"
                )
            } else {
                format!(
                    "the merge of {} is running, and the merges of an origin run one at a time; wait for it",
                    merge.snapshot
                )
            }));
        }
        if store_type == StoreType::N {
            return Err(refusal(name, &ControlError::Transient));
        }
        let status = self.engine.status();
        let found = status.snapshots.iter().find(|s| s.snapshot == id);
        match found.map(|s| s.state) {
            Some(SnapshotState::Invalid) | None => Err(refusal(name, &ControlError::Invalid)),
            Some(
                SnapshotState::Active
                | SnapshotState::Overflow
                | SnapshotState::Merging
                | SnapshotState::MergePaused
                | SnapshotState::MergeFailed,
            ) => Ok(()),
        }
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
        // The events of the change come with the engine's notices, in order.
        self.drive(&mut ops, request).map_err(|e| match e {
            ControlError::MergeFailed => self.not_resumed(&name),
            e => refusal(&name, &e),
        })
    }

    fn not_resumed(&self, name: &str) -> ApiError {
        let id = lock(&self.tables).snapshot(name).map(|s| s.id);
        let stopped = self.engine.status().merge.and_then(|m| m.stopped);
        let why = stopped.map(|stop| self.describe_failure(stop.failure, id));
        conflict(format!(
            "the merge of {name} cannot be resumed, because what is on disk is only known after the store is loaded again \
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
}
