//! snapback: a vhost-user-blk daemon that serves origin, snapshot and merge
//! views of a raw block device, with a COW store that Linux dm-snapshot reads.
//!
//! Modules depend in one direction only; `docs/architecture.md` shows it, and
//! `tests/layering.rs` has the rule and checks it.
//!
//! The models of races (`docs/crash-model.md`) are built without what is above `vhost`, which
//! none of them uses: that takes half of the time.

#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub mod cli;
#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub mod control;
#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub mod daemon;
pub mod engine;
mod event_flag;
pub mod executor;
#[cfg(any(
    feature = "fuzzing",
    all(test, not(any(feature = "loom", feature = "shuttle")))
))]
pub mod fuzzing;
pub mod io;
pub mod merger;
mod mutation;
#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub mod offline;
mod own_socket;
#[cfg(all(test, feature = "shuttle", not(feature = "loom")))]
mod races;
pub mod sandbox;
pub mod size;
pub mod socket_access;
pub mod store;
pub mod supervisor;
mod sync;
pub mod units;
pub mod vhost;
pub mod virtio_blk;
mod wait_set;
