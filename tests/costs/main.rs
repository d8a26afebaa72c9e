//! What a request costs, in counts that do not depend on how fast or busy the machine
//! is: the system calls of the daemon, as `strace` sees them, and the instructions of a
//! queue, as callgrind counts them. The driver works in lock-step: it sleeps until all its
//! requests have completed, and only then sends the next ones, so it alone determines how
//! many are in a batch.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

/// Of these each test uses a part.
#[allow(dead_code)]
#[path = "../common"]
mod common {
    pub mod stamps;
    pub mod volume;
}

mod driver;
mod forks;
mod instructions;
#[allow(dead_code)]
#[path = "../restart/ring.rs"]
mod ring;
mod trace;

use std::time::{Duration, Instant};

use common::volume::Volume;
use driver::Driver;
use trace::{Calls, Trace};

const SECTORS: u64 = 16 << 11;
/// What takes longer, also on a busy machine, does not happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Batches that are counted.
const BATCHES: usize = 500;

/// A daemon in memory, whose files complete at once: the number of calls does not depend
/// on a device. `None` without strace.
fn served(arguments: &[&str]) -> Option<Volume> {
    if !trace::is_possible() {
        eprintln!("skipped: strace is not installed, or may not trace here");
        return None;
    }
    let mut volume = Volume::new(SECTORS);
    volume.start(&[&["--socket-path", "a.sock"], arguments].concat());
    Some(volume)
}

/// The calls for [`BATCHES`] batches of `depth` requests in each of `queues` queues.
fn calls(arguments: &[&str], queues: usize, depth: usize, write: bool) -> Option<Calls> {
    let mut volume = served(arguments)?;
    let mut driver = Driver::connect(&volume.path("a.sock"), queues);
    driver.batches(20, depth, write);
    let trace = Trace::attach(volume.child().id());
    let before = trace.calls();
    driver.batches(BATCHES, depth, write);
    let calls = trace.calls().since(&before);
    println!("{queues} x {BATCHES} batches of {depth}: {calls:?}");
    Some(calls)
}

/// A few calls besides, such as one that the tracer interrupted.
const SPARE: usize = 20;

#[test]
fn a_request_by_itself_costs_two_system_calls() {
    for write in [false, true] {
        if let Some(calls) = calls(&["--poll-us", "0"], 1, 1, write) {
            assert!(calls.all() <= 2 * BATCHES + SPARE, "{calls:?}");
        }
    }
}

#[test]
fn a_batch_of_32_costs_two_system_calls() {
    for write in [false, true] {
        if let Some(calls) = calls(&["--poll-us", "0"], 1, 32, write) {
            assert!(calls.all() <= 2 * BATCHES + SPARE, "{calls:?}");
        }
    }
}

/// Polling replaces sleeps; it never adds more than the signal that a sleep would have
/// taken along.
#[test]
fn polling_costs_no_more_than_three_system_calls() {
    if let Some(calls) = calls(&[], 1, 1, false) {
        assert!(calls.all() <= 3 * BATCHES + SPARE, "{calls:?}");
    }
}

/// A queue that waited for a lock which another one holds would call futex.
#[test]
fn two_queues_never_wait_for_a_lock() {
    if let Some(calls) = calls(&["--poll-us", "0"], 2, 32, true) {
        assert_eq!(calls.of("futex"), 0, "{calls:?}");
        assert!(calls.all() <= 2 * 2 * BATCHES + SPARE, "{calls:?}");
    }
}

/// With a guest whose last requests made the queue poll, and with none.
#[test]
fn an_idle_daemon_makes_no_system_call() {
    let Some(mut volume) = served(&[]) else {
        return;
    };
    let mut driver = Driver::connect(&volume.path("a.sock"), 2);
    driver.batches(200, 4, false);
    let trace = Trace::attach(volume.child().id());
    let mut guest = Some(driver);
    for attached in [true, false] {
        if !attached {
            guest = None;
            let start = Instant::now();
            while volume.status().views.iter().any(|view| view.attached) {
                assert!(start.elapsed() < PATIENCE, "the guest stays attached");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        trace.settle();
        let before = trace.calls();
        std::thread::sleep(Duration::from_secs(1));
        let calls = trace.calls().since(&before);
        assert_eq!(calls.all(), 0, "with a guest: {attached}; {calls:?}");
    }
    drop(guest);
}
