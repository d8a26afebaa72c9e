//! A rollback with the help of QEMU's monitor: the guest stands still while its
//! disk changes, and begins anew on it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::control::api::{ApiError, ErrorKind, RollbackOutcome, RollbackReply, RollbackRequest};
use crate::control::events::Happening;
use crate::daemon::monitor::qmp::{ASLEEP, Qmp, QmpError};
use crate::daemon::state::StoppedGuest;
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};

/// How long the rings of a guest that was stopped may take to stop. QEMU stops
/// them before it answers.
const RINGS_STOP: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// A machine whose monitor answers.
struct Vmm<'a> {
    path: &'a Path,
    qmp: Qmp,
    /// It ran when it was found.
    ran: bool,
}

impl Vmm<'_> {
    /// Lets the guest go on, if it ran; in words how it is then.
    fn release(&mut self) -> String {
        if !self.ran {
            return "the guest is paused, as it was".to_owned();
        }
        match self.qmp.run("cont") {
            Ok(_) => "the guest goes on as before".to_owned(),
            Err(error) => format!(
                "AND THE GUEST MAY STILL BE STOPPED ({error}): its disk is as it was, let it go on with `cont` in QEMU's monitor"
            ),
        }
    }
}

impl LiveVolume {
    /// Rolls back under a guest that its VMM holds.
    ///
    /// Order: 1 what can be refused is refused → 2 noted durably that the guest is
    /// stopped by us → 3 it is stopped, and none of its rings runs → 4 the handover →
    /// 5 it is reset → 6 it runs again, if it ran. A failure up to 4 lets it go on as
    /// before. After 4 nothing is taken back, and the answer says how the guest is.
    ///
    /// `ops` is not held while the monitor is asked: QEMU answers when its devices
    /// have stopped, and one of them may wait for its turn here.
    pub fn roll_back_with_vmm(
        &self,
        request: RollbackRequest,
        path: &Path,
    ) -> Result<RollbackReply, ApiError> {
        {
            let _turn = lock(&self.ops);
            self.check_rollback(&request)?;
        }
        let name = request.snapshot.clone();
        if !lock(&self.tables).origin_attached() {
            return Err(conflict(format!(
                "no guest is attached to the disk, so that none has to be stopped: snapback rollback {name} --now does it at once"
            )));
        }
        // The monitor talks to one client at a time, and this may be the same one.
        *lock(&self.watch) = None;
        let result = self.roll_back_held(request, path);
        self.refresh_pending();
        result
    }

    fn roll_back_held(
        &self,
        request: RollbackRequest,
        path: &Path,
    ) -> Result<RollbackReply, ApiError> {
        let name = request.snapshot.clone();
        let unchanged = |e: QmpError| conflict(format!("nothing was changed: {e}"));
        let mut vmm = find(path, &self.stopping).map_err(unchanged)?;
        self.note_stopped(vmm.ran.then(|| StoppedGuest {
            qmp: path.display().to_string(),
            snapshot: name.clone(),
        }))
        .map_err(|e| not_recorded(&e))?;
        let held = self.hold(&mut vmm).and_then(|()| {
            let rate = request.rate.unwrap_or(0);
            self.roll_back_in_turn(&mut lock(&self.ops), &name, request.keep, rate)
        });
        let result = match held {
            Ok(()) => self.begin_anew(&mut vmm, &name),
            Err(mut error) => {
                error.message = format!(
                    "the disk was not rolled back: {}; {}",
                    error.message,
                    vmm.release()
                );
                Err(error)
            }
        };
        // Whatever it is, the answer says it.
        if let Err(error) = self.note_stopped(None) {
            tracing::warn!(%error, "the next start will say that the guest may be stopped");
        }
        result
    }

    fn note_stopped(
        &self,
        stopped: Option<StoppedGuest>,
    ) -> Result<(), crate::daemon::state::StateError> {
        lock(&self.state).update(|s| s.stopped_guest = stopped)
    }

    /// Stops the guest, and sees to it that it is the one on this disk.
    fn hold(&self, vmm: &mut Vmm<'_>) -> Result<(), ApiError> {
        if vmm.ran {
            let stopped = vmm.qmp.run("stop");
            stopped.map_err(|e| conflict(e.to_string()))?;
        }
        let start = Instant::now();
        while let Some(at) = lock(&self.tables).running_at() {
            if start.elapsed() > RINGS_STOP {
                return Err(conflict(format!(
                    "with the machine of the monitor {} stopped, the disk is still in use at {at}: it is the monitor of another \
                     machine, or a second guest is attached",
                    vmm.path.display()
                )));
            }
            std::thread::sleep(PAUSE);
        }
        // Its rings would stop whoever's machine was stopped.
        if self.is_stopping() {
            return Err(conflict("the daemon was told to stop"));
        }
        Ok(())
    }

    /// Resets the guest, whose disk was rolled back, and lets it run if it ran.
    fn begin_anew(&self, vmm: &mut Vmm<'_>, name: &str) -> Result<RollbackReply, ApiError> {
        let done = format!("the disk is rolled back to {name}");
        let failed = |what: String| {
            let error = ApiError::new(ErrorKind::Io, format!("{done}, {what}"));
            tracing::error!("{error}");
            let (qmp, note) = (vmm.path.display().to_string(), error.message.clone());
            self.events
                .tell(Some(name), Happening::GuestHeld { qmp, note });
            error
        };
        vmm.qmp.forget_events();
        let reset = vmm.qmp.run("system_reset");
        let told = reset.and_then(|_| vmm.qmp.event(&["RESET", "SHUTDOWN"]));
        match told {
            Ok("RESET") => {}
            Ok(_) => {
                return Ok(RollbackReply {
                    outcome: RollbackOutcome::Started,
                    notes: vec![
                        "QEMU ends at a reset (-no-reboot, or an action that was set): start it again, it boots the disk as rolled back"
                            .to_owned(),
                    ],
                });
            }
            Err(error) => {
                return Err(failed(format!(
                    "but the guest was not reset: {error}. IT STILL HAS THE OLD DISK IN MEMORY: do not let it go on before it is \
                     reset (`system_reset`, then `cont` in QEMU's monitor), or end that QEMU and start it again"
                )));
            }
        }
        if !vmm.ran {
            return Ok(RollbackOutcome::GuestResetPaused.into());
        }
        match vmm.qmp.run("cont") {
            Ok(_) => Ok(RollbackOutcome::GuestReset.into()),
            Err(error) => Err(failed(format!(
                "and the guest was reset, but it may not run: {error}. Let it run with `cont` in QEMU's monitor"
            ))),
        }
    }

    /// A daemon that died while it held a guest has left it stopped: says so.
    pub fn say_stopped_guest(&self) {
        let (stopped, handed) = {
            let state = lock(&self.state);
            let state = state.state();
            let Some(stopped) = state.stopped_guest.clone() else {
                return;
            };
            // Handed over and merged already, the snapshot is gone.
            let name = &stopped.snapshot;
            let merging = state.merge.as_ref().is_some_and(|m| m.snapshot == *name);
            let handed = merging || state.snapshot(name).is_none();
            (stopped, handed)
        };
        let StoppedGuest { qmp, snapshot } = stopped;
        let note = if handed {
            format!(
                "the last daemon ended while it rolled back to {snapshot} with the guest stopped: the disk is rolled back, and the \
                 guest may still have the old one in memory. Do not let it go on before it is reset: `system_reset`, then `cont` \
                 in QEMU's monitor at {qmp}"
            )
        } else {
            format!(
                "the last daemon ended before it had rolled back to {snapshot}, and may have left the guest stopped: its disk is as \
                 it was, let it go on with `cont` in QEMU's monitor at {qmp}, or ask for the rollback again"
            )
        };
        tracing::warn!("{note}");
        self.events
            .tell(Some(&snapshot), Happening::GuestHeld { qmp, note });
        if let Err(error) = self.note_stopped(None) {
            tracing::warn!(%error, "the next start will say this again");
        }
    }
}

/// Reaches the monitor and asks how its machine is.
fn find<'a>(path: &'a Path, hurry: &Arc<AtomicBool>) -> Result<Vmm<'a>, QmpError> {
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
                "the machine is on its way to or from somewhere else (its status is {status}); wait for that"
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
