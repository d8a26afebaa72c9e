//! Rolling back: now, or at the guest's next reset.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::create::given;
use super::handover::Handover;
use crate::control::api::{
    ApiError, ErrorKind, ResetKind, RollbackOutcome, RollbackReply, RollbackRequest, RollbackWhen,
    SnapshotSpec,
};
use crate::control::events::{CancelCause, EventKind};
use crate::daemon::cow::Given;
use crate::daemon::monitor::qmp::Qmp;
use crate::daemon::monitor::watch::Watch;
use crate::daemon::state::RollbackRecord;
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};
use crate::executor::Executor;

impl LiveVolume {
    /// `cow`: the descriptor of the COW of the snapshot that is kept, if the client has opened it.
    pub fn roll_back(
        &self,
        request: RollbackRequest,
        cow: Option<OwnedFd>,
    ) -> Result<RollbackReply, ApiError> {
        let name = request.snapshot.clone();
        if request.keep.as_ref().is_some_and(|k| k.name == name) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!("--keep {name} names the snapshot to roll back to: choose another name"),
            ));
        }
        let qmp = request
            .qmp
            .clone()
            .or_else(|| lock(&self.state).state().qmp.clone());
        if let Some(path) = qmp.as_deref().filter(|p| !Path::new(p).is_absolute()) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!(
                    "qmp: the path {path} must be absolute, because the daemon has another working directory"
                ),
            ));
        }
        let given = match &request.keep {
            Some(keep) => given(keep, cow)?,
            None => None,
        };
        self.await_leaving_guests();
        let away = self.may_come_back.load(Ordering::Acquire);
        let attached = lock(&self.tables).origin_attached();
        match (request.when, qmp) {
            (RollbackWhen::Now, _) => self.roll_back_now(request, given.as_ref()),
            (RollbackWhen::Auto, _) if !attached && away => {
                let mut reply = self.roll_back_later(request, None, given)?;
                reply.notes.insert(
                    0,
                    format!(
                        "A guest may have been attached when the last daemon ended, and none has connected since, so the rollback \
                         waits for its reset or for the start of the next guest. If the guest is off: snapback rollback {name} --now"
                    ),
                );
                Ok(reply)
            }
            (RollbackWhen::Auto, _) if !attached => self.roll_back_now(request, given.as_ref()),
            (RollbackWhen::AtReset, qmp) => self.roll_back_later(request, qmp, given),
            (RollbackWhen::Auto | RollbackWhen::Vmm, Some(qmp)) => {
                self.roll_back_with_vmm(request, given.as_ref(), Path::new(&qmp))
            }
            (RollbackWhen::Auto, None) => self.roll_back_later(request, None, given),
            (RollbackWhen::Vmm, None) => Err(ApiError::new(
                ErrorKind::BadRequest,
                "the daemon does not know the socket of QEMU's monitor: give it with --qmp, or once with snapback serve --qmp",
            )),
        }
    }

    fn roll_back_now(
        &self,
        request: RollbackRequest,
        given: Option<&Given>,
    ) -> Result<RollbackReply, ApiError> {
        let mut ops = lock(&self.ops);
        let rate = request.rate.unwrap_or(0);
        let keep = (request.keep, given);
        self.roll_back_in_turn(&mut ops, &request.snapshot, keep, rate)?;
        Ok(RollbackOutcome::Started.into())
    }

    /// Takes the snapshot that `--keep` asks for, in a COW that may be given, and hands over: both or
    /// neither.
    /// `ops` proves that no other operation is running.
    pub fn roll_back_in_turn(
        &self,
        ops: &mut Executor,
        name: &str,
        (keep, given): (Option<SnapshotSpec>, Option<&Given>),
        rate: u64,
    ) -> Result<(), ApiError> {
        self.check_mergeable(name)?;
        let keep = keep.map(|spec| self.make_snapshot(spec, given));
        let keep = keep.transpose()?;
        let handover = Handover {
            follow: false,
            rate,
            keep,
        };
        self.hand_over(ops, name, handover)
    }

    /// Refuses a rollback that cannot succeed, as far as this is known before.
    pub fn check_rollback(
        &self,
        request: &RollbackRequest,
        given: Option<&Given>,
    ) -> Result<(), ApiError> {
        self.check_mergeable(&request.snapshot)?;
        if let Some(keep) = &request.keep {
            self.check_snapshot(keep, given, &mut *self.one_thread_disk()?)?;
        }
        Ok(())
    }

    /// Records a rollback that waits for the guest's reset.
    fn roll_back_later(
        &self,
        request: RollbackRequest,
        qmp: Option<String>,
        given: Option<Given>,
    ) -> Result<RollbackReply, ApiError> {
        let RollbackRequest {
            snapshot: name,
            reset,
            ..
        } = &request;
        let (name, reset) = (name.clone(), *reset);
        {
            let _turn = lock(&self.ops);
            self.check_rollback(&request, given.as_ref())?;
        }
        // A monitor serves one client at a time, so the watch disconnects first. `ops` is
        // not held while the monitor is asked, because QEMU may wait for a view that waits
        // for `ops`.
        *lock(&self.watch) = None;
        let monitor = qmp
            .as_deref()
            .map(|path| Qmp::connect_and_look(Path::new(path), &self.stopping))
            .transpose();
        let _turn = lock(&self.ops);
        let checked = monitor
            .map_err(|e| conflict(format!("nothing was changed: {e}")))
            .and_then(|monitor| {
                let checked = self.check_rollback(&request, given.as_ref());
                checked.map(|()| monitor)
            });
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
        if recorded.is_ok() {
            *lock(&self.kept_cow) = given;
        }
        if let Some((monitor, path)) = monitor.zip(qmp.as_deref()).filter(|_| recorded.is_ok()) {
            match Watch::start(Path::new(path), Some(monitor), &self.stopping) {
                Ok(watch) => *lock(&self.watch) = Some(watch),
                Err(error) => tracing::error!(%error, "cannot watch QEMU's monitor for resets"),
            }
        }
        self.refresh_pending();
        recorded.map_err(|e| not_recorded(&e))?;
        lock(&self.tables).postponed = None;
        if let Some(other) = replaced.filter(|r| r.snapshot != name) {
            self.publish_rollback_cancelled(&other.snapshot, CancelCause::Replaced);
        }
        self.events.publish(Some(&name), EventKind::RollbackPending);
        tracing::info!(snapshot = %name, "rollback at the guest's next reset");
        Ok(RollbackReply {
            outcome: RollbackOutcome::AtNextReset,
            notes: self.notes_on_waiting(&name, reset, qmp.is_some()),
        })
    }

    /// What the operator must know about a pending rollback.
    fn notes_on_waiting(&self, name: &str, reset: ResetKind, monitor: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if lock(&self.tables).in_firmware() {
            notes.push(
                "The guest is in its boot loader: it boots the disk as it is now, and the reset after that rolls back. To roll back \
                 at once, reset it now, before it boots"
                    .to_owned(),
            );
        }
        notes.push(match reset {
            ResetKind::Any => {
                "The start of any driver counts as the reset: also that of a driver that is restarted under a running guest (suspend \
                 and resume, unbind and bind, kexec), and that of a program that opens the disk. In these cases the guest's file \
                 systems are corrupted"
                    .to_owned()
            }
            ResetKind::Machine if monitor => {
                "QEMU's monitor reports the reset".to_owned()
            }
            ResetKind::Machine => format!(
                "A reset is recognized by the firmware that starts before the system, or by a new guest. A machine that resets \
                 without firmware looks like a driver that was restarted, and does not count: for such a machine use snapback \
                 rollback {name} --qmp SOCKET, or --at-reset=any"
            ),
        });
        notes
    }

    /// Cancels the rollback that waits for the guest's reset. If the guest resets first,
    /// the rollback happens, and this is refused.
    pub fn cancel_pending_rollback(&self) -> Result<(), ApiError> {
        let _turn = lock(&self.ops);
        let Some(pending) = lock(&self.state).state().rollback_at_reset.clone() else {
            let merging = lock(&self.state).state().merge.clone();
            return Err(conflict(match merging {
                Some(merge) => format!(
                    "no rollback waits for a reset; that to {} has been carried out, or is a merge, and cannot be cancelled",
                    merge.snapshot
                ),
                None => "no rollback waits for a reset; snapback status would show it".to_owned(),
            }));
        };
        lock(&self.state)
            .update(|s| s.rollback_at_reset = None)
            .map_err(|e| not_recorded(&e))?;
        self.refresh_pending();
        tracing::info!(snapshot = %pending.snapshot, "the rollback is cancelled");
        self.publish_rollback_cancelled(&pending.snapshot, CancelCause::Asked);
        Ok(())
    }
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
