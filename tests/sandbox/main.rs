//! What a daemon gives up before it serves anybody, looked at from outside and tried from inside.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

// The hook is in debug builds only.
#[cfg(debug_assertions)]
mod calls;
mod descriptors;
mod files;
// Other tests use the rest of it.
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod handed;
#[path = "../common/listening.rs"]
mod listening;
mod rights;
mod world;
