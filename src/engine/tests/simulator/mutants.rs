//! Every seeded bug must be found, which shows that the oracles work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::explore::Depth;
use super::random::{Disturbances, random};
use super::{prove, run, scenarios, sweep};
use crate::mutation::{self, Mutation};

/// Enough for bugs that are not subtle; random worlds find the rest.
const DEPTH: Depth = Depth {
    states: 256,
    recover: 15,
};
const SEEDS: u64 = 25;
const WORLDS: u64 = 1000;

/// The first finding with the bug in place, and what found it.
fn hunt(mutation: Mutation) -> Option<String> {
    mutation::with(Some(mutation), || {
        for seed in 0..SEEDS {
            for case in scenarios::all(seed) {
                if let Err((error, _)) = run(&case, seed, DEPTH) {
                    return Some(format!("{}, seed {seed}: {error}", case.name));
                }
            }
            if seed == 0
                && let Some(error) = sweep::hunt()
            {
                return Some(error);
            }
        }
        for seed in 0..WORLDS {
            let disturbances = Disturbances {
                crashes: true,
                faults: seed % 2 == 1,
            };
            if let Err((error, _)) = run(&random(seed, disturbances), seed, Depth::SHALLOW) {
                return Some(format!("random world {seed}: {error}"));
            }
        }
        None
    })
}

/// The same search without a bug, so that what it finds otherwise is the bug.
#[test]
fn without_a_seeded_bug_there_is_nothing_to_find() {
    for seed in 0..SEEDS {
        for case in scenarios::all(seed) {
            prove(&case, seed, DEPTH);
        }
    }
    super::counts::report("the hunt's control");
}

/// `SNAPBACK_MUTATION=NAME` looks for one alone.
#[test]
fn every_seeded_bug_is_found() {
    let wanted = std::env::var("SNAPBACK_MUTATION").ok();
    let hunted: Vec<Mutation> = mutation::ALL
        .iter()
        .copied()
        .filter(|m| wanted.as_ref().is_none_or(|name| format!("{m:?}") == *name))
        .collect();
    assert!(!hunted.is_empty(), "there is no mutation {wanted:?}");
    let next = AtomicUsize::new(0);
    let alive = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(mutation) = hunted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match hunt(*mutation) {
                        Some(by) => println!("{mutation:?} dies: {by}"),
                        None => alive.lock().unwrap().push(*mutation),
                    }
                }
            });
        }
    });
    let alive = alive.into_inner().unwrap();
    let (all, left) = (hunted.len(), alive.len());
    super::counts::report(&format!("{} of {all} mutations killed", all - left));
    assert!(alive.is_empty(), "the simulator lets these live: {alive:?}");
}
