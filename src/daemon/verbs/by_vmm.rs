//! A rollback with the help of QEMU's monitor: the guest is stopped while its disk
//! changes, and is then reset.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::control::api::{ApiError, ErrorKind, RollbackOutcome, RollbackReply, RollbackRequest};
use crate::control::events::EventKind;
use crate::daemon::cow::Given;
use crate::daemon::monitor::qmp::{ASLEEP, Qmp, QmpError};
use crate::daemon::state::StoppedGuest;
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};

/// How long the rings of a stopped guest may take to stop. QEMU stops them before it
/// answers.
const RINGS_STOP: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// A machine whose monitor is connected.
struct Vmm<'a> {
    path: &'a Path,
    qmp: Qmp,
    /// It was running before the rollback.
    ran: bool,
}

impl Vmm<'_> {
    /// Lets the guest continue, if it was running. Describes its state for the operator.
    fn release(&mut self) -> String {
        if !self.ran {
            return "the guest is paused, as it was".to_owned();
        }
        match self.qmp.run("cont") {
            Ok(_) => "the guest continues as before".to_owned(),
            Err(error) => format!(
                "AND THE GUEST MAY STILL BE STOPPED ({error}): its disk is unchanged; let it continue with `cont` in QEMU's monitor"
            ),
        }
    }
}

impl LiveVolume {
    /// Rolls back under a guest that its VMM has stopped.
    ///
    /// Order: 1 everything is checked → 2 it is recorded durably that the daemon stops the
    /// guest → 3 the guest is stopped, and none of its rings runs → 4 the handover → 5 the
    /// guest is reset → 6 it runs again, if it ran before. After a failure up to 4 the guest
    /// continues as before. After 4 nothing is undone, and the answer describes the state
    /// of the guest.
    ///
    /// `ops` is not held while the monitor is asked: QEMU answers when its devices have
    /// stopped, and the view of one of them may wait for `ops`.
    pub fn roll_back_with_vmm(
        &self,
        request: RollbackRequest,
        given: Option<&Given>,
        path: &Path,
    ) -> Result<RollbackReply, ApiError> {
        {
            let _turn = lock(&self.ops);
            self.check_rollback(&request, given)?;
        }
        let name = request.snapshot.clone();
        if !lock(&self.tables).origin_attached() {
            return Err(conflict(format!(
                "no guest is attached to the disk, so none has to be stopped: use snapback rollback {name} --now"
            )));
        }
        // The monitor serves one client at a time, so the watch disconnects first.
        *lock(&self.watch) = None;
        let result = self.roll_back_held(request, given, path);
        self.refresh_pending();
        result
    }

    fn roll_back_held(
        &self,
        request: RollbackRequest,
        given: Option<&Given>,
        path: &Path,
    ) -> Result<RollbackReply, ApiError> {
        let name = request.snapshot.clone();
        let unchanged = |e: QmpError| conflict(format!("nothing was changed: {e}"));
        let mut vmm = connect(path, &self.stopping).map_err(unchanged)?;
        self.record_stopped(vmm.ran.then(|| StoppedGuest {
            qmp: path.display().to_string(),
            snapshot: name.clone(),
        }))
        .map_err(|e| not_recorded(&e))?;
        let held = self.stop_guest(&mut vmm).and_then(|()| {
            let rate = request.rate.unwrap_or(0);
            let keep = (request.keep, given);
            self.roll_back_in_turn(&mut lock(&self.ops), &name, keep, rate)
        });
        let result = match held {
            Ok(()) => self.reset_guest(&mut vmm, &name),
            Err(mut error) => {
                error.message = format!(
                    "the disk was not rolled back: {}; {}",
                    error.message,
                    vmm.release()
                );
                Err(error)
            }
        };
        // The answer describes the state of the guest, so the record is not needed any more.
        if let Err(error) = self.record_stopped(None) {
            tracing::warn!(%error, "the next start will warn that the guest may be stopped");
        }
        result
    }

    fn record_stopped(
        &self,
        stopped: Option<StoppedGuest>,
    ) -> Result<(), crate::daemon::state::StateError> {
        lock(&self.state).update(|s| s.stopped_guest = stopped)
    }

    /// Stops the guest, and checks that it is the one that uses this disk.
    fn stop_guest(&self, vmm: &mut Vmm<'_>) -> Result<(), ApiError> {
        if vmm.ran {
            let stopped = vmm.qmp.run("stop");
            stopped.map_err(|e| conflict(e.to_string()))?;
        }
        let start = Instant::now();
        while let Some(at) = lock(&self.tables).running_at() {
            if start.elapsed() > RINGS_STOP {
                return Err(conflict(format!(
                    "the machine of the monitor {} is stopped, but the disk is still in use at {at}: the monitor belongs to another \
                     machine, or a second guest is attached",
                    vmm.path.display()
                )));
            }
            std::thread::sleep(PAUSE);
        }
        // A daemon that stops closes the rings, so they prove nothing about this machine.
        if self.is_stopping() {
            return Err(conflict("the daemon is stopping"));
        }
        Ok(())
    }

    /// Resets the guest, whose disk was rolled back, and lets it run if it was running.
    fn reset_guest(&self, vmm: &mut Vmm<'_>, name: &str) -> Result<RollbackReply, ApiError> {
        let done = format!("the disk is rolled back to {name}");
        let failed = |what: String| {
            let error = ApiError::new(ErrorKind::Io, format!("{done}, {what}"));
            tracing::error!("{error}");
            let (qmp, note) = (vmm.path.display().to_string(), error.message.clone());
            self.events
                .publish(Some(name), EventKind::GuestHeld { qmp, note });
            error
        };
        vmm.qmp.forget_events();
        let reset = vmm.qmp.run("system_reset");
        let event = reset.and_then(|_| vmm.qmp.event(&["RESET", "SHUTDOWN"]));
        match event {
            Ok("RESET") => {}
            Ok(_) => {
                return Ok(RollbackReply {
                    outcome: RollbackOutcome::Started,
                    notes: vec![
                        "QEMU exits at a reset (-no-reboot, or a configured action): start it again; it boots the disk as rolled back"
                            .to_owned(),
                    ],
                });
            }
            Err(error) => {
                return Err(failed(format!(
                    "but the guest was not reset: {error}. IT STILL HAS THE OLD DISK IN MEMORY: do not let it continue before it is \
                     reset (`system_reset`, then `cont` in QEMU's monitor), or terminate QEMU and start it again"
                )));
            }
        }
        if !vmm.ran {
            return Ok(RollbackOutcome::GuestResetPaused.into());
        }
        match vmm.qmp.run("cont") {
            Ok(_) => Ok(RollbackOutcome::GuestReset.into()),
            Err(error) => Err(failed(format!(
                "and the guest was reset, but it may not be running: {error}. Let it run with `cont` in QEMU's monitor"
            ))),
        }
    }

    /// Reports a guest that the previous daemon may have left stopped, because it ended
    /// during a rollback.
    pub fn report_stopped_guest(&self) {
        let (stopped, handed) = {
            let state = lock(&self.state);
            let state = state.state();
            let Some(stopped) = state.stopped_guest.clone() else {
                return;
            };
            // If the snapshot is gone, it was handed over and is merged already.
            let name = &stopped.snapshot;
            let merging = state.merge.as_ref().is_some_and(|m| m.snapshot == *name);
            let handed = merging || state.snapshot(name).is_none();
            (stopped, handed)
        };
        let StoppedGuest { qmp, snapshot } = stopped;
        let note = if handed {
            format!(
                "the last daemon ended while it rolled back to {snapshot} with the guest stopped: the disk is rolled back, and the \
                 guest may still have the old disk in memory. Do not let it continue before it is reset: `system_reset`, then \
                 `cont` in QEMU's monitor at {qmp}"
            )
        } else {
            format!(
                "the last daemon ended before it had rolled back to {snapshot}, and may have left the guest stopped: its disk is \
                 unchanged; let it continue with `cont` in QEMU's monitor at {qmp}, or ask for the rollback again"
            )
        };
        tracing::warn!("{note}");
        self.events
            .publish(Some(&snapshot), EventKind::GuestHeld { qmp, note });
        if let Err(error) = self.record_stopped(None) {
            tracing::warn!(%error, "the next start will report this again");
        }
    }
}

/// Connects to the monitor and asks for the state of its machine.
fn connect<'a>(path: &'a Path, hurry: &Arc<AtomicBool>) -> Result<Vmm<'a>, QmpError> {
    let mut qmp = Qmp::connect(path, hurry)?;
    let answer = qmp.run("query-status")?;
    let running = answer.get("running").and_then(Value::as_bool);
    let status = answer.get("status").and_then(Value::as_str);
    let (Some(running), Some(status)) = (running, status) else {
        return Err(QmpError::Foreign {
            path: path.to_owned(),
            reason: "`query-status` does not say whether the guest runs".to_owned(),
        });
    };
    let moving = ["inmigrate", "finish-migrate", "postmigrate", "colo"];
    let saving = ["save-vm", "restore-vm"];
    if moving.contains(&status) || saving.contains(&status) {
        return Err(QmpError::Refused {
            command: "stop",
            reason: format!(
                "the machine is being migrated or saved (its status is {status}); wait until this is over"
            ),
        });
    }
    if status == ASLEEP {
        return Err(QmpError::Asleep);
    }
    Ok(Vmm {
        path,
        qmp,
        ran: running,
    })
}
