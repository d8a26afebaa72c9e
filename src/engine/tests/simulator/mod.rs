//! The simulator. `docs/crash-model.md` describes what it checks and how to run it.

mod areas;
mod content;
mod counts;
mod decoder;
mod enumerate;
mod explore;
mod mutants;
mod outcome;
mod plan;
mod random;
mod recover;
mod scenarios;
mod sim;
mod start;
mod sweep;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use explore::Depth;
use plan::Case;
use sim::Sim;

thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });

/// A failed assertion inside a run is a finding, which the caller of the run reports.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                hook(info);
            }
        }));
    });
}

/// One run. An error is what it found, with the log of the run.
fn run(case: &Case, seed: u64, depth: Depth) -> Result<(), (String, Vec<String>)> {
    silence_panics();
    let outer = QUIET.replace(true);
    let mut trace = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut sim = Sim::new(case, seed, depth)?;
        let result = catch_unwind(AssertUnwindSafe(|| sim.run(case)));
        trace = std::mem::take(&mut sim.trace);
        result.unwrap_or_else(|cause| resume_unwind(cause))
    }));
    QUIET.set(outer);
    counts::add(&counts::RUNS, 1);
    let found = match result {
        Ok(found) => found,
        Err(cause) => {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(text.unwrap_or_else(|| "a panic".into()))
        }
    };
    found.map_err(|e| (e, trace))
}

/// Removes actions and stores as long as the run fails with the same message.
fn shrink(case: &Case, seed: u64, depth: Depth, error: &str) -> Case {
    let words = |e: &str| e.replace(|c: char| c.is_ascii_digit(), "");
    let error = words(error);
    let fails = |case: &Case| run(case, seed, depth).is_err_and(|e| words(&e.0) == error);
    let mut case = case.clone();
    let mut size = case.actions.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < case.actions.len() {
            let mut less = case.clone();
            less.actions.drain(at..(at + size).min(case.actions.len()));
            if fails(&less) {
                case = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    for at in (0..case.stores.len()).rev() {
        let mut less = case.clone();
        less.stores.remove(at);
        if fails(&less) {
            case = less;
        }
    }
    case
}

/// As [`run`], and panics with the smallest case that still fails.
fn prove(case: &Case, seed: u64, depth: Depth) {
    let Err((error, trace)) = run(case, seed, depth) else {
        return;
    };
    let small = shrink(case, seed, depth, &error);
    let (again, shorter) = run(&small, seed, depth).err().unwrap_or_default();
    panic!(
        "{} with seed {seed}: {error}\nsmaller: {small:#?}\nwith {again} after {shorter:#?}\n\
         (at first after {} events)",
        case.name,
        trace.len()
    );
}

/// Runs `body` with a test's seeds, and reports progress every `every` seeds and at the
/// end.
fn with_seeds(default: std::ops::Range<u64>, what: &str, every: usize, mut body: impl FnMut(u64)) {
    for (seed, n) in seeds(default).zip(1..) {
        body(seed);
        if n % every == 0 {
            counts::report(&format!("{what}, up to seed {seed}"));
        }
    }
    counts::report(what);
}

/// `SNAPBACK_SEEDS=first..end` replaces the seeds of a test.
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let chosen = std::env::var("SNAPBACK_SEEDS").ok().and_then(|s| {
        let (first, end) = s.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    });
    chosen.unwrap_or(default)
}
