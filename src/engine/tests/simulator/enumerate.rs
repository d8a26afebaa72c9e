//! Small scenarios under many schedules. At every crash point each subset of up to
//! twelve unflushed blocks is checked.

use super::explore::Depth;
use super::{prove, scenarios, with_seeds};

#[test]
fn small_scenarios_survive_every_crash() {
    with_seeds(0..60, "enumeration", 100, |seed| {
        for case in scenarios::all(seed) {
            prove(&case, seed, Depth::FULL);
        }
    });
}
