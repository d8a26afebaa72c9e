//! Instructions that a queue's thread executes for each request, from the ring and back to
//! it, counted by callgrind. Valgrind does not know a thread that sleeps in io_uring, so this
//! daemon uses threads for its I/O, which are not counted.

use std::process::Command;

use crate::common::volume::Volume;
use crate::driver::Driver;
use crate::{BATCHES, SECTORS};

/// What a request goes through: it is taken and parsed, decided, submitted, answered, and counted.
/// What happens once for several requests depends on when the threads end them.
const STEPS: [&str; 5] = [
    "*vhost::ring::Ring::take_available*",
    "*Worker*::accept_taken*",
    "*Worker*::execute*",
    "*engine::port::Port::io_done*",
    "*Tally::count_answered*",
];
const DEPTH: usize = 32;

fn has_valgrind() -> bool {
    let there = Command::new("valgrind").arg("--version").output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: valgrind is not installed");
    }
    there
}

/// Instructions of one of the requests in batches of 32.
fn each(view: &str, arguments: &[&str], write: bool) -> f64 {
    let mut volume = Volume::new(SECTORS);
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(STEPS.map(|step| format!("--toggle-collect={step}")))
        .arg(assert_cmd::cargo::cargo_bin!("snapback"));
    let fixed = [
        "--io-engine",
        "threads",
        "--poll-us",
        "0",
        "--socket-path",
        "a.sock",
    ];
    volume.start_by(valgrind, &[&fixed, arguments].concat());
    let mut driver = Driver::connect(&volume.path(view), 1);
    driver.batches(BATCHES, DEPTH, write);
    drop(driver);
    volume.terminate();
    let log = std::fs::read_to_string(volume.path("daemon.log")).unwrap();
    let line = log.lines().find(|line| line.contains("Collected :"));
    let collected = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    let collected = collected.unwrap_or_else(|| panic!("{log}"));
    let each = collected as f64 / (BATCHES * DEPTH) as f64;
    println!("{view}, write: {write}: {each:.0} instructions");
    each
}

/// The least of a few runs, if the first is above `bound`: on a busy machine the disk's threads
/// end requests one by one, and each of them costs the queue another look at its ring.
fn least(bound: f64, run: impl Fn() -> f64) -> f64 {
    let mut least = run();
    for _ in 0..3 {
        if least > bound {
            least = least.min(run());
        }
    }
    least
}

/// Bounds on instructions of the queue's thread for one request, with the test profile, which
/// optimises little. They are 4 to 5 % above what was counted (4,550 to 4,755, and 5,675 to
/// 5,845, by machine and load).
const READ: f64 = 4950.0;
const REWRITE: f64 = 6090.0;

#[test]
fn a_request_takes_few_instructions_and_a_snapshot_adds_few() {
    if !has_valgrind() {
        return;
    }
    let read = least(READ, || each("a.sock", &[], false));
    let snapshot = "name=s,cow=s.cow,size=32M,chunk-size=4K,socket=s.sock";
    // One request in 16 is the first write of its chunk.
    let rewrite = least(REWRITE, || each("s.sock", &["--snapshot", snapshot], true));
    assert!(read > 2000.0, "a function is no longer called");
    assert!(read <= READ, "{read}");
    assert!(rewrite <= REWRITE, "{rewrite}");
}
