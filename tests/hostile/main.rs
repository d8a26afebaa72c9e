//! Guests that do what no driver should, on every kind of view of the real daemon: the
//! daemon lives, other views are not disturbed, requests come back or their queue alone
//! stops until it is reset, nothing grows, and the log stays bounded.
//!
//! A test is a table of cases ([`client::Case`]); `docs/hostile-guests.md` names the case
//! for each thing that a hostile guest may do.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod block;
mod client;
#[path = "../common/mod.rs"]
#[allow(dead_code)]
mod common;
#[path = "../common/inject.rs"]
#[allow(dead_code)]
mod inject;
mod qtest;
#[path = "../common/raw.rs"]
mod raw;
mod ring;
mod state;
mod world;

/// Waits until `condition` holds; fails after twenty seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed().as_secs() < 20,
            "not within twenty seconds: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
