//! Random worlds: guests on all views, snapshots that come and go, merges under
//! both policies, power cuts, dying processes, failing devices.

use super::explore::Depth;
use super::plan::{Weather, random};
use super::{prove, with_seeds};

fn worlds(default: std::ops::Range<u64>, weather: Weather, what: &str) {
    with_seeds(default, what, 5000, |seed| {
        prove(&random(seed, weather), seed, Depth::SHALLOW);
    });
}

#[test]
fn random_worlds_lose_nothing() {
    let weather = Weather {
        crashes: false,
        faults: false,
    };
    worlds(0..600, weather, "random worlds");
}

#[test]
fn random_worlds_lose_nothing_to_power_cuts_and_dying_processes() {
    let weather = Weather {
        crashes: true,
        faults: false,
    };
    worlds(0..1000, weather, "random worlds with crashes");
}

#[test]
fn random_worlds_with_failing_devices_lose_nothing_but_what_failed() {
    let weather = Weather {
        crashes: true,
        faults: true,
    };
    worlds(0..1000, weather, "random worlds with faults");
}
