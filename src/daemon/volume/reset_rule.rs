//! The rule by which a pending rollback happens when the rings of one of the
//! origin's views start, and the explanation if it does not happen.

use crate::control::api::{ResetKind, Seen};
use crate::daemon::monitor::watch::ResetReport;
use crate::vhost::Start;

/// Why a pending rollback did not happen when a driver started; for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postponed {
    pub seen: Seen,
    pub reason: String,
}

/// Who starts to use the disk; `None` if the same driver continues.
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

/// Whether a machine was reset or is new, as far as the rings show it.
const fn is_machine_start(seen: Seen) -> bool {
    match seen {
        Seen::Firmware | Seen::NewGuest => true,
        Seen::Boot | Seen::DriverRestart | Seen::Unclear | Seen::Program => false,
    }
}

/// Whether a rollback that waits for `reset` happens when `seen` starts to use the
/// disk and the VMM's monitor has sent `report`. The monitor is more reliable than the
/// rings, but it reports neither the first start of its machine nor programs.
pub const fn happens(reset: ResetKind, seen: Seen, report: ResetReport) -> bool {
    match (reset, seen, report) {
        (ResetKind::Any, _, _) => true,
        (ResetKind::Machine, Seen::Program, _) => false,
        (ResetKind::Machine, _, ResetReport::Reset) => true,
        (ResetKind::Machine, _, ResetReport::NoReset) => false,
        (ResetKind::Machine, _, ResetReport::Unknown) => is_machine_start(seen),
    }
}

/// What was seen and what to do, for the operator.
pub fn reason(name: &str, seen: Seen, report: ResetReport) -> String {
    let what = match seen {
        Seen::Firmware | Seen::NewGuest => "a guest started",
        Seen::Boot => {
            "the machine continued from its boot loader to its system, and the boot loader has read the disk as it is now"
        }
        Seen::DriverRestart => {
            "the guest's driver started again without a firmware before it, as after suspend and resume, unbind and bind, or \
             kexec, and the guest may still have the disk in memory"
        }
        Seen::Unclear => {
            "a guest's driver started without a firmware before it, and it is unknown how the last front end left; it may be \
             the previous guest, which still has the disk in memory"
        }
        Seen::Program => {
            return format!(
                "a program without a guest opened the disk, which is not a reset. Start or reset the guest, or, if none is \
                 attached, roll back with snapback rollback {name} --now"
            );
        }
    };
    let monitor = match report {
        ResetReport::NoReset => {
            ", and QEMU's monitor reported no reset (does it belong to another machine?)"
        }
        ResetReport::Reset | ResetReport::Unknown => "",
    };
    let advice = match seen {
        Seen::Boot => "Reset the machine once more".to_owned(),
        Seen::Firmware | Seen::NewGuest | Seen::DriverRestart | Seen::Unclear | Seen::Program => {
            format!(
                "Reset the machine. If that was its reset, roll back with snapback rollback {name} --qmp SOCKET (QEMU's monitor), \
             or ask again with --at-reset=any, which accepts any driver's start as the reset, and reset it once more"
            )
        }
    };
    format!("{what}{monitor}. {advice}")
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

    fn happening(reset: ResetKind, report: ResetReport) -> Vec<Seen> {
        let all = ALL.into_iter();
        all.filter(|seen| happens(reset, *seen, report)).collect()
    }

    #[test]
    fn without_a_monitor_only_a_firmware_and_a_new_guest_are_resets() {
        assert_eq!(
            happening(ResetKind::Machine, ResetReport::Unknown),
            [Seen::Firmware, Seen::NewGuest]
        );
    }

    #[test]
    fn a_monitor_that_was_connected_all_the_time_decides() {
        assert_eq!(happening(ResetKind::Machine, ResetReport::NoReset), []);
        let with_reset = happening(ResetKind::Machine, ResetReport::Reset);
        assert_eq!(with_reset, ALL[..5], "all but the program");
    }

    #[test]
    fn any_start_counts_if_the_operator_says_so() {
        for report in [
            ResetReport::Unknown,
            ResetReport::NoReset,
            ResetReport::Reset,
        ] {
            assert_eq!(happening(ResetKind::Any, report), ALL);
        }
    }

    #[test]
    fn the_explanation_names_what_was_seen_and_what_to_do() {
        for seen in ALL {
            let reason = reason("before", seen, ResetReport::NoReset);
            assert!(
                reason.contains("eset the") || reason.contains("rollback before --now"),
                "{reason}"
            );
        }
        let restart = reason("before", Seen::DriverRestart, ResetReport::Unknown);
        assert!(restart.contains("rollback before --qmp SOCKET") && restart.contains("=any"));
        assert!(!restart.contains("monitor reported"));
    }
}
