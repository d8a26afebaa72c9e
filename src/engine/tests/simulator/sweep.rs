//! For every n the n-th operation of a device fails, once or for ever: with an I/O
//! error, a full device, a failed flush, or a short transfer.

use super::explore::Depth;
use super::plan::{Action, Case, PlannedFault};
use super::sim::Sim;
use super::{counts, prove, run, scenarios, with_seeds};
use crate::io::Errno;
use crate::io::sim::{FaultEffect, FaultOn};

const DEPTH: Depth = Depth {
    states: 32,
    recover: 60,
};
const QUIET: Depth = Depth {
    states: 0,
    recover: 0,
};

/// How many operations of a kind the run submits to the origin (`None`) or a store.
fn operations(case: &Case, seed: u64, store: Option<u32>, on: FaultOn) -> u64 {
    let Ok(mut sim) = Sim::new(case, seed, QUIET) else {
        return 0;
    };
    let device = match store {
        None => sim.origin(),
        Some(id) => match sim.record.snapshots.get(&crate::engine::ViewId(id)) {
            Some(recorded) => recorded.device,
            None => return 0,
        },
    };
    sim.w.devices.take_log();
    if sim.run(case).is_err() {
        return 0;
    }
    let kind = if on == FaultOn::Flush {
        "Submitted Flush of "
    } else {
        "Submitted "
    };
    let device = format!(" of {}, ", device.0);
    let of_device =
        |t: &&String| t.starts_with(kind.trim_end_matches(" of ")) && t.contains(&device);
    sim.trace.iter().filter(of_device).count() as u64
}

/// The same run with each fault that can be injected into it.
fn faulted(case: &Case, seed: u64) -> Vec<Case> {
    let mut all = Vec::new();
    for store in std::iter::once(None).chain(case.stores.iter().map(|s| Some(s.id))) {
        for (on, effect) in [
            (FaultOn::Any, FaultEffect::Error(Errno::EIO)),
            (FaultOn::Write, FaultEffect::Error(Errno::ENOSPC)),
            (FaultOn::Flush, FaultEffect::Error(Errno::EIO)),
            (FaultOn::Any, FaultEffect::Short),
        ] {
            for after in 0..operations(case, seed, store, on) {
                for once in [true, false] {
                    let fault = PlannedFault {
                        store,
                        on,
                        effect,
                        after,
                        once,
                    };
                    let mut case = case.clone();
                    case.actions.insert(0, Action::Fault(fault));
                    all.push(case);
                }
            }
        }
    }
    all
}

/// The first finding of the sweep, if any.
pub fn hunt() -> Option<String> {
    for case in scenarios::all(0) {
        for faulted in faulted(&case, 0) {
            if let Err((error, _)) = run(&faulted, 0, DEPTH) {
                return Some(format!(
                    "{}, {:?}: {error}",
                    case.name,
                    faulted.actions.first()
                ));
            }
        }
    }
    None
}

/// Every third seed, so that the parts run side by side: this is the longest of the unit tests.
fn any_operation_may_fail(part: u64) {
    with_seeds(0..3, "fault sweep", 10, |seed| {
        if seed % 3 != part {
            return;
        }
        for case in scenarios::all(seed) {
            for faulted in faulted(&case, seed) {
                counts::add(&counts::FAULTS, 1);
                prove(&faulted, seed, DEPTH);
            }
        }
    });
}

#[test]
fn any_operation_may_fail_part_1() {
    any_operation_may_fail(0);
}

#[test]
fn any_operation_may_fail_part_2() {
    any_operation_may_fail(1);
}

#[test]
fn any_operation_may_fail_part_3() {
    any_operation_may_fail(2);
}
