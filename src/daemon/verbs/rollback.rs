//! Rolling back: now, at the guest's next reset, or with the help of its VMM.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::merging::Handover;
use crate::control::api::{
    ApiError, ErrorKind, PendingRollback, ResetKind, RollbackOutcome, RollbackReply,
    RollbackRequest, RollbackWhen, Seen, SnapshotSpec,
};
use crate::control::events::Happening;
use crate::daemon::monitor::qmp::Qmp;
use crate::daemon::monitor::watch::Watch;
use crate::daemon::state::{RollbackRecord, VolumeState};
use crate::daemon::volume::{LiveVolume, Tables, conflict, lock, not_recorded};
use crate::executor::Executor;

impl LiveVolume {
    pub fn roll_back(&self, request: RollbackRequest) -> Result<RollbackReply, ApiError> {
        let name = request.snapshot.clone();
        if request.keep.as_ref().is_some_and(|k| k.name == name) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!("--keep {name} is the snapshot to roll back to: choose another name"),
            ));
        }
        let qmp = request
            .qmp
            .clone()
            .or_else(|| lock(&self.state).state().qmp.clone());
        if let Some(path) = qmp.as_deref().filter(|p| !Path::new(p).is_absolute()) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!("qmp: the path {path} must be absolute: the daemon has another directory"),
            ));
        }
        let away = self.may_come_back.load(Ordering::Acquire);
        let attached = lock(&self.tables).origin_attached();
        match (request.when, qmp) {
            (RollbackWhen::Now, _) => self.roll_back_now(request),
            (RollbackWhen::Auto, _) if !attached && away => {
                let mut reply = self.roll_back_later(request, None)?;
                reply.notes.insert(
                    0,
                    format!(
                        "A guest may have been attached when the last daemon ended, and none has come since, so that the rollback \
                         waits for its reset or for the next guest's start. If it is off: snapback rollback {name} --now"
                    ),
                );
                Ok(reply)
            }
            (RollbackWhen::Auto, _) if !attached => self.roll_back_now(request),
            (RollbackWhen::AtReset, qmp) => self.roll_back_later(request, qmp),
            (RollbackWhen::Auto | RollbackWhen::Vmm, Some(qmp)) => {
                self.roll_back_with_vmm(request, Path::new(&qmp))
            }
            (RollbackWhen::Auto, None) => self.roll_back_later(request, None),
            (RollbackWhen::Vmm, None) => Err(ApiError::new(
                ErrorKind::BadRequest,
                "the daemon knows no monitor of QEMU's: name its socket with --qmp, or once with snapback serve --qmp",
            )),
        }
    }

    fn roll_back_now(&self, request: RollbackRequest) -> Result<RollbackReply, ApiError> {
        let mut ops = lock(&self.ops);
        let rate = request.rate.unwrap_or(0);
        self.roll_back_in_turn(&mut ops, &request.snapshot, request.keep, rate)?;
        Ok(RollbackOutcome::Started.into())
    }

    /// Takes the snapshot that makes the rollback reversible, and hands over: both,
    /// or neither of them.
    pub fn roll_back_in_turn(
        &self,
        ops: &mut Executor,
        name: &str,
        keep: Option<SnapshotSpec>,
        rate: u64,
    ) -> Result<(), ApiError> {
        self.check_mergeable(name)?;
        let keep = keep.map(|spec| self.make_snapshot(spec)).transpose()?;
        let handover = Handover {
            follow: false,
            rate,
            keep,
        };
        self.hand_over(ops, name, handover)
    }

    /// What speaks against a rollback, as far as it can be told before.
    pub fn check_rollback(&self, request: &RollbackRequest) -> Result<(), ApiError> {
        self.check_mergeable(&request.snapshot)?;
        if let Some(keep) = &request.keep {
            self.check_snapshot(keep, &mut *self.one_thread_disk()?)?;
        }
        Ok(())
    }

    /// Records a rollback that waits for the guest's reset.
    fn roll_back_later(
        &self,
        request: RollbackRequest,
        qmp: Option<String>,
    ) -> Result<RollbackReply, ApiError> {
        let RollbackRequest {
            snapshot: name,
            reset,
            ..
        } = &request;
        let (name, reset) = (name.clone(), *reset);
        {
            let _turn = lock(&self.ops);
            self.check_rollback(&request)?;
        }
        // A monitor talks to one client at a time, and this may be the same one. It
        // is not waited for in our turn: QEMU may wait for a view that waits for it.
        *lock(&self.watch) = None;
        let monitor = qmp
            .as_deref()
            .map(|path| Qmp::connect_and_look(Path::new(path), &self.stopping))
            .transpose();
        let _turn = lock(&self.ops);
        let checked = monitor
            .map_err(|e| conflict(format!("nothing was changed: {e}")))
            .and_then(|monitor| self.check_rollback(&request).map(|()| monitor));
        let monitor = checked.inspect_err(|_| self.refresh_pending())?;
        let record = RollbackRecord {
            snapshot: name.clone(),
            rate: request.rate.unwrap_or(0),
            reset,
            qmp: qmp.clone(),
            keep: request.keep,
        };
        let mut replaced = None;
        let recorded = lock(&self.state).update(|s| replaced = s.rollback_at_reset.replace(record));
        if let Some((monitor, path)) = monitor.zip(qmp.as_deref()).filter(|_| recorded.is_ok()) {
            match Watch::start(Path::new(path), Some(monitor), &self.stopping) {
                Ok(watch) => *lock(&self.watch) = Some(watch),
                Err(error) => tracing::error!(%error, "cannot listen to QEMU's monitor"),
            }
        }
        self.refresh_pending();
        recorded.map_err(|e| not_recorded(&e))?;
        lock(&self.tables).waited = None;
        if let Some(other) = replaced.filter(|r| r.snapshot != name) {
            self.tell_cancelled(&other.snapshot, "replaced");
        }
        self.events.tell(Some(&name), Happening::RollbackPending);
        tracing::info!(snapshot = %name, "rollback at the guest's next reset");
        Ok(RollbackReply {
            outcome: RollbackOutcome::AtNextReset,
            notes: self.notes_on_waiting(&name, reset, qmp.is_some()),
        })
    }

    /// What the operator must know about a rollback that waits.
    fn notes_on_waiting(&self, name: &str, reset: ResetKind, monitor: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if lock(&self.tables).in_firmware() {
            notes.push(
                "The guest is in its boot loader: what it boots now is the disk as it is, the reset after that rolls back. To have \
                 it at once reset it now, before it boots"
                    .to_owned(),
            );
        }
        notes.push(match reset {
            ResetKind::Any => {
                "Any driver that starts counts as the reset: also one that was restarted under a running guest (suspend and resume, \
                 unbind and bind, kexec), and a program that looks at the disk. The guest's file systems are lost then"
                    .to_owned()
            }
            ResetKind::Machine if monitor => {
                "QEMU's monitor tells of the reset".to_owned()
            }
            ResetKind::Machine => format!(
                "A reset is known by the firmware that starts before the system, or by a new guest. A machine that resets without \
                 firmware looks like a driver that was restarted, and does not count: for such a one use snapback rollback {name} \
                 --qmp SOCKET, or --at-reset=any"
            ),
        });
        notes
    }

    /// Calls the rollback off that waits for the guest's reset. Whoever was
    /// quicker, this or the reset, has its way.
    pub fn call_rollback_off(&self) -> Result<(), ApiError> {
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

    /// Carries out the rollback that waited for this. The guest's rings start
    /// only when it returns, so the guest boots what the snapshot holds.
    pub fn roll_back_at_reset(&self, seen: Seen) {
        let mut ops = lock(&self.ops);
        // Between the look without a lock and here it may have been carried out.
        let Some(pending) = lock(&self.state).state().rollback_at_reset.clone() else {
            return;
        };
        let name = &pending.snapshot;
        match self.roll_back_in_turn(&mut ops, name, pending.keep, pending.rate) {
            Ok(()) => {
                tracing::info!(snapshot = %name, "the guest was reset and finds the snapshot's content")
            }
            Err(error) => {
                tracing::error!(snapshot = %name, %error, "the guest was reset, but the rollback failed");
                let error = error.to_string();
                lock(&self.tables).waited = Some(super::resets::Waited {
                    seen,
                    reason: format!("it failed at the last reset: {error}"),
                });
                self.events
                    .tell(Some(name), Happening::RollbackFailed { error });
            }
        }
    }

    pub fn is_rollback_pending(&self) -> bool {
        self.rollback_pending.load(Ordering::Acquire)
    }

    /// Keeps what resets look at in step with the state: the flag, and the monitor
    /// that is listened to.
    pub fn refresh_pending(&self) {
        let pending = lock(&self.state).state().rollback_at_reset.clone();
        self.rollback_pending
            .store(pending.is_some(), Ordering::Release);
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
                Err(error) => tracing::error!(%error, "cannot listen to QEMU's monitor"),
            }
        }
    }

    /// The rollback that waits, for the status.
    pub fn pending_rollback(state: &VolumeState, tables: &Tables) -> Option<PendingRollback> {
        let record = state.rollback_at_reset.clone()?;
        let waited = tables.waited.clone();
        Some(PendingRollback {
            snapshot: record.snapshot,
            reset: record.reset,
            keep: record.keep.map(|k| k.name),
            qmp: record.qmp,
            seen: waited.as_ref().map(|w| w.seen),
            note: waited.map(|w| w.reason),
        })
    }
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
