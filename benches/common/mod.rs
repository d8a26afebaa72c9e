//! What the benchmarks share: a load generator, the programs that are compared, and
//! the tables that they print.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod backend;
pub mod copy;
pub mod counters;
pub mod files;
pub mod load;
pub mod options;
pub mod plot;
#[path = "../../tests/common/random.rs"]
pub mod random;
pub mod table;

use std::path::Path;
use std::process::{Command, Stdio};

/// The median of `values`, which must not be empty.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// Whether a program can be started.
pub fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Writes everything that is dirty to the disks, so that it does not compete with a
/// measurement.
pub fn sync() {
    rustix::fs::sync();
}

/// A path as text, for command lines.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
