//! The daemon as a process: what it remembers, what it refuses, how it ends.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod bad_input;
mod block_sizes;
mod cancel;
mod cow_growth;
mod curl;
mod detach;
mod discards;
mod durability;
mod events;
mod failing;
mod failures;
mod few_descriptors;
mod guest;
mod incoming;
#[path = "../common/inject.rs"]
mod inject;
#[path = "../common/limited.rs"]
mod limited;
#[path = "../common/listening.rs"]
mod listening;
mod listing;
mod machine;
mod merges;
mod monitor;
mod origin_growth;
mod outages;
mod own_paths;
#[path = "../common/raw.rs"]
mod raw;
mod read_only;
mod record_order;
mod resets;
mod resize;
mod rollback;
mod session_log;
mod socket_access;
mod starts;
mod status;
#[path = "../common/stop.rs"]
mod stop;
mod unwritable_state;
mod vmm;
mod world;
mod write_cache;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use snapback::control::api::{
    MergeRequest, RollbackOutcome, RollbackRequest, RollbackWhen, SnapshotSpec, State, StoreType,
};

use guest::Guest;
use limited::output;
use world::{BYTES, World, assert_same, eventually, everything, wreck};
