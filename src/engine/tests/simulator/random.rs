//! Random worlds: guests on all views, snapshots that are added and removed, merges
//! under both policies, power loss, process death, failing devices.

use super::explore::Depth;
use super::plan::{Action, Case, PlannedFault, Store};
use super::{prove, with_seeds};
use crate::engine::MergeWrites;
use crate::io::Errno;
use crate::io::sim::{FaultEffect, FaultOn, Rng};

/// What random worlds may contain.
#[derive(Clone, Copy, Debug)]
pub struct Disturbances {
    pub crashes: bool,
    pub faults: bool,
}

/// What the stores of one world have in common.
struct Stores {
    /// The number of the next store.
    next: u32,
    /// Sectors of the origin, and of a device's block.
    origin: u64,
    grain: u64,
    deferred: bool,
    short_areas: bool,
    /// Chooses how much shorter than the origin a snapshot is.
    lengths: Rng,
}

impl Stores {
    fn make(&mut self, rng: &mut Rng) -> Store {
        let (origin, grain) = (self.origin, self.grain);
        let chunk = grain << rng.below(3);
        let kind = ["P", "P", "P", "PO", "N"][rng.below(5)];
        let small = rng.one_in(5);
        let area = if self.short_areas {
            2 + rng.below(3)
        } else {
            chunk as usize * 32
        };
        let cow = if small {
            chunk * (3 + rng.below(5) as u64)
        } else {
            origin + origin / area.min(8) as u64 + 14 * chunk
        };
        let mut store = Store::new(self.next, kind, chunk, cow).areas_of(area);
        self.next += 1;
        store.defer = self.deferred;
        store.discards.zeroes_cow = !rng.one_in(3);
        store.discards.passdown_origin = store.discards.zeroes_cow && rng.one_in(2);
        if self.lengths.one_in(3) {
            let most = (origin / grain).min(20) as usize;
            store.lacks = grain * self.lengths.below(most) as u64;
        }
        if self.lengths.one_in(3) {
            store.zero_ahead = 1 + self.lengths.below(6) as u64;
        }
        if kind != "N" && !small && rng.one_in(2) {
            let most = (origin - store.lacks).div_ceil(chunk) as usize;
            store.filled = rng.below(most + 1);
            if !self.short_areas {
                store.filled = store.filled.min(area - rng.below(3));
            }
            if most > area && rng.one_in(2) {
                store.filled = area - 1 - rng.below(area.min(3));
            }
        }
        store.junk = store.filled > 0 && rng.one_in(6);
        store
    }
}

fn fault(rng: &mut Rng, id: u32) -> Action {
    Action::Fault(PlannedFault {
        store: [None, Some(id), Some(id)][rng.below(3)],
        on: [FaultOn::Any, FaultOn::Read, FaultOn::Write, FaultOn::Flush][rng.below(4)],
        effect: [
            FaultEffect::Error(Errno::EIO),
            FaultEffect::Error(Errno::ENOSPC),
            FaultEffect::Short,
        ][rng.below(3)],
        after: rng.below(8) as u64,
        once: rng.one_in(2),
    })
}

fn action(rng: &mut Rng, stores: &mut Stores, disturbances: Disturbances) -> Action {
    let (origin, grain) = (stores.origin, stores.grain);
    let view = rng.below(4) as u32;
    let id = 1 + rng.below(4) as u32;
    let start = grain * rng.below((origin / grain) as usize) as u64;
    let most = if rng.one_in(4) { 20 } else { 4 };
    let len = grain * (1 + rng.below(most) as u64);
    let sectors = start..(start + len).min(origin);
    let writes = [MergeWrites::Wait, MergeWrites::Redirect][rng.below(2)];
    match rng.below(46) {
        0..=14 => Action::Write { view, sectors },
        15..=17 => Action::WriteThrough { view, sectors },
        18..=23 => Action::Read { view, sectors },
        24..=26 => Action::Flush { view },
        27 | 28 => {
            let mut made = stores.make(rng);
            made.filled = 0;
            made.junk = false;
            Action::Add(made)
        }
        29 => Action::Remove { id },
        30 | 31 => {
            let follow = rng.one_in(2);
            Action::Handover { id, writes, follow }
        }
        32 => [Action::Pause, Action::Resume, Action::Resume][rng.below(3)].clone(),
        33 => Action::MergeWrites(writes),
        34 => Action::Sync,
        35 => Action::Grow { id },
        36 => [Action::Rest, Action::ReadAll][rng.below(2)].clone(),
        37 if disturbances.crashes => Action::PowerLoss,
        38 if disturbances.crashes => Action::ProcessDeath,
        39 if disturbances.faults && rng.one_in(2) => fault(rng, id),
        39 if disturbances.faults => Action::Mend,
        40 | 41 => Action::Zero { view, sectors },
        42..=45 => Action::Discard { view, sectors },
        _ => Action::Read { view, sectors },
    }
}

/// A random world, decided by the seed alone.
pub fn random(seed: u64, disturbances: Disturbances) -> Case {
    let mut rng = Rng::new(seed ^ 0x0dd_ba11);
    let lengths = Rng::new(seed ^ 0x5_4021);
    let block = if rng.one_in(5) { 4096 } else { 512 };
    let grain = block as u64 / 512;
    let origin = grain * (8 + rng.below(if block == 512 { 50 } else { 12 }) as u64);
    let mut case = Case::new("random", origin);
    case.block = block;
    case.batch = 512 << rng.below(7);
    case.hurry = 1 + rng.below(8);
    let mut stores = Stores {
        next: 1,
        origin,
        grain,
        deferred: rng.one_in(3),
        short_areas: rng.one_in(2),
        lengths,
    };
    for _ in 0..rng.below(3) {
        let made = stores.make(&mut rng);
        case.stores.push(made);
    }
    for _ in 0..10 + rng.below(40) {
        let action = action(&mut rng, &mut stores, disturbances);
        case.actions.push(action);
    }
    case
}

fn worlds(default: std::ops::Range<u64>, disturbances: Disturbances, what: &str) {
    with_seeds(default, what, 5000, |seed| {
        prove(&random(seed, disturbances), seed, Depth::SHALLOW);
    });
}

#[test]
fn random_worlds_lose_nothing() {
    let disturbances = Disturbances {
        crashes: false,
        faults: false,
    };
    worlds(0..600, disturbances, "random worlds");
}

#[test]
fn random_worlds_lose_nothing_to_power_cuts_and_dying_processes() {
    let disturbances = Disturbances {
        crashes: true,
        faults: false,
    };
    worlds(0..1000, disturbances, "random worlds with crashes");
}

#[test]
fn random_worlds_with_failing_devices_lose_nothing_but_what_failed() {
    let disturbances = Disturbances {
        crashes: true,
        faults: true,
    };
    worlds(0..1000, disturbances, "random worlds with faults");
}
