//! Everything at once, for as long as it is wanted: guests on all views, all verbs
//! under their load, verbs and daemons that are killed, front ends that leave in the
//! middle, resizes, resets, faults, stores and file systems that run full, both I/O engines. A
//! model knows
//! what each view must show. At the end the same work again and again shows that the
//! daemon does not grow.
//!
//! `SNAPBACK_SEED` chooses what happens, `SNAPBACK_SOAK_SECONDS` for how long.
//! `docs/crash-model.md` says what it judges.
#![allow(
    unsafe_code,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

#[path = "../common/mod.rs"]
mod common;

mod episodes;
mod faults;
mod model;
mod place;
mod space;
mod steady;
mod verbs;

use std::time::{Duration, Instant};

use common::random;
use model::{End, Model};

const SECTORS: u64 = (5 << 11) + 5;
const SECONDS: u64 = 12;
/// Of an ordinary run; `SNAPBACK_SEED` asks for another one.
const SEED: u64 = 7;

#[test]
fn no_byte_is_wrong_and_nobody_waits_for_ever_whatever_is_asked_or_killed() {
    let seed = random::number("SNAPBACK_SEED").unwrap_or(SEED);
    let seconds = random::number("SNAPBACK_SOAK_SECONDS").unwrap_or(SECONDS);
    println!("SNAPBACK_SEED={seed} SNAPBACK_SOAK_SECONDS={seconds}");
    let start = Instant::now();
    let mut model = Model::new(SECTORS, seed);
    model.start();
    while start.elapsed() < Duration::from_secs(seconds) {
        model.episode();
        if model.counts.episodes.is_multiple_of(200) {
            println!(
                "{:.0?}: {:?}, {}",
                start.elapsed(),
                model.counts,
                model.verbs
            );
        }
    }
    model.wait_merged();
    model.verify(End::Drained);
    model.work_steadily(seconds);
    model.volume.terminate();
    model.volume.check_origin(&model.origin.shadow);
    // A verb that has to wait for the main thread waits for what it does, and
    // never for the end of its patience.
    let log = std::fs::read_to_string(model.volume.path("daemon.log")).unwrap();
    assert!(!log.contains("not waiting any longer"), "a lost wake-up");
    assert!(!log.contains("panicked"), "a panic in a daemon");
    println!("origin: {}", model.origin.counts);
    println!("{:?}\n{}", model.counts, model.verbs);
    println!("seed {seed}: {:.1?}", start.elapsed());
}
