//! The bodies of the fuzz targets in `fuzz/`, which are ordinary tests as well: bytes of a
//! hostile guest or front end go in, and what must hold is asserted. `docs/fuzzing.md`
//! describes them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless
)]

mod chain;
mod driver;
mod inflight;
mod input;
mod judge;
mod memory;
mod message;
mod reader;
mod ring;
#[cfg(test)]
mod seeds;
mod socket;
mod volume;

#[cfg(test)]
mod corpus_tests;

pub use inflight::run as inflight;
pub use ring::run as ring;
pub use socket::run as socket;
