//! Storage that fails under a daemon, with the real binary: what guests see, what the status and
//! the events say, and what works again when the fault has gone. `docs/reliability.md` has a row
//! for each test.
//!
//! The disks lie on a file system in user space that can be made to fail (`broken_fs.rs`), on
//! small ones, and on loop devices. Where none of these may be mounted, a test says that it was
//! skipped.
#![allow(
    unsafe_code,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::too_many_arguments
)] // Tests; unsafe only in the helpers. Not all of their functions are used here.

mod broken_fs;
mod field;
mod files;
#[path = "../daemon/guest.rs"]
mod guest;
#[path = "../common/limited.rs"]
mod limited;
mod places;
mod run_directory;
mod storage;
mod vanishing;
mod zeroes;

use broken_fs::{BrokenFs, Fate, Op, run};
use field::{Field, pattern};
use places::{Loop, Small};
