//! The engine over simulated devices.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod bench;
mod cut;
mod discards;
mod faults;
pub(crate) mod guest_disk;
mod large_copies;
mod leaving;
mod mended;
mod merging;
mod originals;
mod saboteur;
mod scenarios;
mod shadowing;
mod shorter;
mod simulator;
mod store_release;
mod telling;
mod world;
