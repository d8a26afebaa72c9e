//! Small scenarios under many schedules, every crash point of each with every
//! subset of up to twelve unflushed blocks.

use super::explore::Depth;
use super::{counts, prove, scenarios, seeds};

#[test]
fn small_scenarios_survive_every_crash() {
    for case in scenarios::all() {
        for seed in seeds(0..60) {
            prove(&case, seed, Depth::FULL);
        }
    }
    counts::report("enumeration");
}
