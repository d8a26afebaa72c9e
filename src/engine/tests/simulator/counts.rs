//! Counters over all tests of the process.

use std::sync::atomic::{AtomicU64, Ordering};

pub static RUNS: AtomicU64 = AtomicU64::new(0);
pub static STATES: AtomicU64 = AtomicU64::new(0);
pub static RECOVERIES: AtomicU64 = AtomicU64::new(0);
pub static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Runs with a seeded bug are not counted.
pub fn add(counter: &AtomicU64, n: u64) {
    if !crate::mutation::is_any() {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Prints the counters in one line, bypassing the capture of the test harness.
pub fn report(what: &str) {
    use std::io::Write;
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let line = format!(
        "simulator, {what}: so far {} runs, {} crash states, {} recoveries, {} faults\n",
        get(&RUNS),
        get(&STATES),
        get(&RECOVERIES),
        get(&FAULTS)
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
}
