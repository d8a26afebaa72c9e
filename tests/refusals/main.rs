//! Every bad input, with the real binary: the exit status, a message that names
//! the thing, the reason and the way out, and nothing touched.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)] // Tests; unsafe only for F_OFD_SETLK, in `world`.

mod advice;
mod memory;
mod offline;
mod online;
mod start;
mod world;
