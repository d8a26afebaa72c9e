//! The bodies of the fuzz targets in `fuzz/`, which are ordinary tests as well: bytes of a
//! hostile guest, front end, client or file go in, and what must hold is asserted.
//! `docs/fuzzing.md` describes them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless
)]

mod chain;
mod cow_decoder;
mod cow_image;
mod driver;
#[cfg(test)]
mod file_seeds;
mod folder;
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
mod store;
mod volume;

#[cfg(test)]
mod corpus_tests;

pub use inflight::run as inflight;
pub use ring::run as ring;
pub use socket::run as socket;
pub use store::run as store;

/// The state file.
pub fn state(bytes: &[u8]) {
    let folder = folder::Folder::new();
    crate::daemon::reread(folder.path(), bytes);
}

/// A client of the control socket.
pub fn request(bytes: &[u8]) {
    crate::control::server::fuzzing::talk(bytes);
}

/// The file of `serve --config`.
pub fn config(bytes: &[u8]) {
    let folder = folder::Folder::new();
    crate::cli::read_config(folder.path(), &String::from_utf8_lossy(bytes));
}
