//! A front end that keeps its rings while the daemon is stopped, killed and started
//! again: no head is done twice, none is lost, and no sector or page of the guest
//! holds what it must not.
//!
//! Each restart is looked at in two ways. By the rings: what the next back end will
//! find there (and in the in-flight region) must be exactly the requests that are
//! under way. By the contents: every completed request's pages go to another one at
//! once, and each sector names the write that it comes from, so that a read that is
//! done again shows in somebody's page and a write that is done again in its sector.
//!
//! `SNAPBACK_RESTARTS` is the number of restarts of each test (default 80),
//! `SNAPBACK_SEED` the seed, `SNAPBACK_FOLDER` where the volumes are. With
//! `SNAPBACK_COMPARE` set the back end is qemu-storage-daemon, and what is found is
//! printed only.
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
    pub mod random;
    pub mod stamps;
    pub mod volume;
}

mod connection;
mod cost;
mod disk;
mod faults;
mod guest;
mod large;
mod region;
mod ring;
mod server;
mod under_load;
mod world;
#[path = "../common/yardstick.rs"]
mod yardstick;
