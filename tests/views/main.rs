//! Guests with many requests in flight on the views of a real daemon: every byte
//! is what it must be, also in the middle of a merge and after a SIGKILL.
//!
//! `SNAPBACK_REQUESTS` is the number of requests for each main view (default
//! 100,000), `SNAPBACK_SEED` the seed.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

#[path = "../common/mod.rs"]
mod common;

mod full_stores;
mod merge_latency;
mod mixed_load;
mod sigkill;
#[path = "../common/yardstick.rs"]
mod yardstick;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::load::{Load, Reins};
use common::volume::Volume;

/// These tests keep both processors of a small machine busy, and one measures
/// time: they take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condition` holds or a load has failed, which its thread reports.
/// False for the latter.
fn until(what: &str, reins: &[&Reins], mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if reins.iter().any(|r| r.failed()) {
            reins.iter().for_each(|r| r.drain());
            return false;
        }
        assert!(
            start.elapsed() < Duration::from_secs(600),
            "not within ten minutes: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Reads a view as a new guest and compares everything with what `load` knows.
fn compare_all(load: &mut Load, path: &Path) {
    load.attach(path);
    let doubts = load.settle();
    assert_eq!(doubts, 0);
    load.detach();
}

/// The argument for a snapshot that can hold the whole disk.
fn snapshot(volume: &Volume, name: &str, chunk: &str) -> String {
    let bytes = volume.first_content().len() * 512;
    let size = (bytes + (bytes >> 3) + (2 << 20)) >> 10;
    format!("name={name},cow={name}.cow,size={size}K,chunk-size={chunk},socket={name}.sock")
}
