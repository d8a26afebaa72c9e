//! Tests of the engine on simulated devices.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod abandoned_port;
mod basics;
mod costs;
mod counts;
mod discards;
mod fairness;
pub(crate) mod guest_disk;
mod helpers;
mod io_errors;
mod large_copies;
mod linux_faults;
mod locks;
mod merge;
mod notices;
mod origin_view;
mod parts;
mod resize;
mod seeded_bugs;
mod short_snapshot;
mod simulator;
mod snapshot_view;
mod stamps;
mod store_release;
mod truncated_store;
mod world;
