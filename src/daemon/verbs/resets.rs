//! Whether a rollback that waits happens when the rings of an origin's view
//! start, and what to say if it does not.

use std::sync::atomic::Ordering;

use crate::control::api::{ResetKind, Seen};
use crate::control::events::Happening;
use crate::daemon::monitor::watch::Told;
use crate::daemon::volume::{LiveVolume, lock};
use crate::vhost::Start;

/// Why a rollback did not happen, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    pub seen: Seen,
    pub reason: String,
}

/// Who begins; `None`: nobody, the driver goes on.
pub const fn seen(start: Start) -> Option<Seen> {
    Some(match start {
        Start::Resume => return None,
        Start::Firmware => Seen::Firmware,
        Start::Boot => Seen::Boot,
        Start::DriverRestart => Seen::DriverRestart,
        Start::NewGuest => Seen::NewGuest,
        Start::Unclear => Seen::Unclear,
        Start::Program => Seen::Program,
    })
}

/// A machine was reset or is new, as far as the rings show it.
const fn is_machines(seen: Seen) -> bool {
    matches!(seen, Seen::Firmware | Seen::NewGuest)
}

/// Whether a rollback that waits for `reset` happens when `seen` begins, with
/// what the VMM's monitor told. The monitor knows better than the rings do, but
/// it says nothing of the start of its own machine, nor of programs.
pub const fn happens(reset: ResetKind, seen: Seen, told: Told) -> bool {
    if matches!(reset, ResetKind::Any) {
        return true;
    }
    match (seen, told) {
        (Seen::Program, _) => false,
        (_, Told::Reset) => true,
        (_, Told::NoReset) => false,
        (_, Told::Unknown) => is_machines(seen),
    }
}

/// What was seen, and what to do, in the words of an operator.
fn reason(name: &str, seen: Seen, told: Told) -> String {
    let what = match seen {
        Seen::Firmware | Seen::NewGuest => "a guest started",
        Seen::Boot => {
            "the machine went on from its boot loader to its system, and what the loader read was the disk as it is"
        }
        Seen::DriverRestart => {
            "the guest's driver started again without a firmware before it, as after suspend and resume, unbind and bind or \
             kexec, and the guest may still have the disk in memory"
        }
        Seen::Unclear => {
            "a guest's driver started without a firmware before it, and how the last front end left is not known, so that it \
             may be an old guest that still has the disk in memory"
        }
        Seen::Program => {
            return format!(
                "a program without a guest looked at the disk, which is no reset. Start or reset the guest, or, with none \
                 attached, roll back with snapback rollback {name} --now"
            );
        }
    };
    let monitor = match told {
        Told::NoReset => ", and QEMU's monitor told of no reset (is it that of another machine?)",
        Told::Reset | Told::Unknown => "",
    };
    let again = match seen {
        Seen::Boot => "Reset the machine once more",
        _ => {
            "Reset the machine. If that was its reset, roll back with snapback rollback NAME --qmp SOCKET (QEMU's monitor), or \
             ask again with --at-reset=any, with which any driver's start counts, and reset it once more"
        }
    };
    format!("{what}{monitor}. {}", again.replace("NAME", name))
}

impl LiveVolume {
    /// The rings of an origin's view start; no guest is told of anything before
    /// this returns, so a rollback that waited for this happens before the guest
    /// reads.
    pub fn rings_start(&self, start: Start) {
        // Asked at every start: what was told before a pause belongs to no later one.
        let told = lock(&self.watch)
            .as_ref()
            .map_or(Told::Unknown, crate::daemon::monitor::watch::Watch::told);
        if start != Start::Program {
            self.may_come_back.store(false, Ordering::Release);
        }
        let Some(seen) = seen(start) else { return };
        if !self.is_rollback_pending() {
            return;
        }
        let pending = lock(&self.state).state().rollback_at_reset.clone();
        let Some(pending) = pending else { return };
        if happens(pending.reset, seen, told) {
            self.roll_back_at_reset(seen);
            return;
        }
        let reason = reason(&pending.snapshot, seen, told);
        tracing::warn!(snapshot = %pending.snapshot, "the rollback still waits: {reason}");
        lock(&self.tables).waited = Some(Waited {
            seen,
            reason: reason.clone(),
        });
        self.events.tell(
            Some(&pending.snapshot),
            Happening::RollbackWaits { seen, reason },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Seen; 6] = [
        Seen::Firmware,
        Seen::Boot,
        Seen::DriverRestart,
        Seen::NewGuest,
        Seen::Unclear,
        Seen::Program,
    ];

    fn happening(reset: ResetKind, told: Told) -> Vec<Seen> {
        let all = ALL.into_iter();
        all.filter(|seen| happens(reset, *seen, told)).collect()
    }

    #[test]
    fn without_a_monitor_only_a_firmware_and_a_new_guest_are_resets() {
        assert_eq!(
            happening(ResetKind::Machine, Told::Unknown),
            [Seen::Firmware, Seen::NewGuest]
        );
    }

    #[test]
    fn a_monitor_that_was_heard_all_the_time_knows_better() {
        assert_eq!(happening(ResetKind::Machine, Told::NoReset), []);
        let with_reset = happening(ResetKind::Machine, Told::Reset);
        assert_eq!(with_reset, ALL[..5], "all but the program");
    }

    #[test]
    fn any_start_counts_if_the_operator_says_so() {
        for told in [Told::Unknown, Told::NoReset, Told::Reset] {
            assert_eq!(happening(ResetKind::Any, told), ALL);
        }
    }

    #[test]
    fn what_was_seen_is_said_with_what_to_do() {
        for seen in ALL {
            let reason = reason("before", seen, Told::NoReset);
            assert!(!reason.contains("NAME"), "{reason}");
            assert!(
                reason.contains("eset the") || reason.contains("rollback before --now"),
                "{reason}"
            );
        }
        let restart = reason("before", Seen::DriverRestart, Told::Unknown);
        assert!(restart.contains("rollback before --qmp SOCKET") && restart.contains("=any"));
        assert!(!restart.contains("monitor told"));
    }
}
