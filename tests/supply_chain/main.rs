//! What the program consists of, and how it is built.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used)]

mod elf;
mod fuzz_lock;
mod licences;
mod release;

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
