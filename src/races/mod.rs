//! Threads on one volume under shuttle: real ports, the real merger and real ring
//! workers over simulated disks. At every atomic, lock and wait, shuttle decides which
//! thread continues. What the guests read must agree with `oracle`, and every request
//! must end.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod guest;
mod oracle;
mod rings;
mod volumes;

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::mutation::{self, Mutation};

/// Schedules of each kind; `SNAPBACK_SCHEDULES` overrides the number.
fn schedules() -> usize {
    let asked = std::env::var("SNAPBACK_SCHEDULES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1000)
}

/// More than any correct run takes. A run that reaches it waits for an event that does
/// not happen.
const STEPS: usize = 100_000;
const SEED: u64 = 0x5eed;

fn run(scheduler: impl Scheduler + 'static, quiet: bool, scenario: fn()) -> usize {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    config.silence_warnings = true;
    if quiet {
        config.failure_persistence = FailurePersistence::None;
    }
    Runner::new(scheduler, config).run(scenario)
}

/// Runs under random schedules and under ones that stop a thread at a few chosen
/// places (PCT), `n` of each; returns their number.
fn explore(n: usize, quiet: bool, scenario: fn()) -> usize {
    run(RandomScheduler::new_from_seed(SEED, n), quiet, scenario)
        + run(PctScheduler::new_from_seed(SEED, 3, n), quiet, scenario)
}

/// The scenario passes, and fails with each of these bugs.
fn prove(name: &str, scenario: fn(), bugs: &[Mutation]) {
    let start = std::time::Instant::now();
    let runs = explore(schedules(), false, scenario);
    println!("shuttle: {name}: {runs} schedules, {:.1?}", start.elapsed());
    for bug in bugs {
        let found = mutation::with(Some(*bug), || {
            catch_unwind(AssertUnwindSafe(|| {
                explore(50 * schedules(), true, scenario)
            }))
        });
        assert!(found.is_err(), "{name} lets {bug:?} live");
        println!("shuttle: {name}: {bug:?} dies");
    }
}

/// Leaked by a thread that panics, because its drop would continue the run.
struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    fn new(value: T) -> Self {
        Self(Some(value))
    }

    fn get(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}
