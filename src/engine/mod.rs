//! The snapshot engine: events in, commands out.
//!
//! One engine serves one volume. It does no I/O and has no clock, no threads and
//! no randomness; whoever holds a [`Port`] feeds it events and carries out the
//! commands. Settled requests are decided on the port's fast path by atomic
//! look-ups; only state changes enter the critical section ([`core`]).

mod api;
mod core;
mod discard;
mod failure;
mod port;
mod table;
mod trace;
mod views;

#[cfg(all(test, feature = "loom"))]
mod loom_tests;
#[cfg(test)]
mod tests;

pub use api::*;
pub use failure::{FailedDevice, Failure, Operation};
pub use port::{Engine, Port};
