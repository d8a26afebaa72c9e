//! The control interface of a real daemon against its own description, and what is run on
//! events.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod access;
mod described;
mod description;
// Other tests use the rest of it.
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod on_event;
mod random;
mod world;
