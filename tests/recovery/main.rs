//! What becomes of snapshots when files are copied, moved, lost, restored or
//! mixed up: what the daemon says, and what the snapshots hold when its advice is
//! followed. The rows of `docs/recovery.md` name these tests.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)] // Tests; unsafe only for the memory of a guest.

mod cows;
mod deferred;
mod devices;
#[path = "../common/guest.rs"]
#[allow(dead_code)]
mod guest;
mod places;
mod states;
mod world;
