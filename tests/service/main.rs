//! What a service manager and a package need of the program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless
)]

mod completions;
mod config;
mod container;
mod front_end;
mod generate;
#[path = "../daemon/guest.rs"]
#[allow(dead_code, unsafe_code, clippy::undocumented_unsafe_blocks)]
mod guest;
mod journal;
mod manager;
mod notify;
mod package;
mod packaging;
mod systemd;
mod version;
mod world;
