//! The metrics: their numbers are those of what guests did, their text is as OpenMetrics and
//! Prometheus want it, and the dashboard, the alerts and the document name what there is.
#![allow(
    unsafe_code,
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

mod abuse;
mod exposition;
#[path = "../daemon/failing.rs"]
mod failing;
#[path = "../daemon/guest.rs"]
mod guest;
#[path = "../common/inject.rs"]
mod inject;
#[path = "../common/limited.rs"]
mod limited;
#[path = "../daemon/machine.rs"]
mod machine;
mod names;
mod numbers;
mod outages;
mod ports;
mod prometheus;
#[path = "../common/raw.rs"]
mod raw;
mod scraper;
#[path = "../common/stop.rs"]
mod stop;
#[path = "../daemon/world.rs"]
mod world;

use std::fs;
use std::process::{Command, Output, Stdio};

use world::{World, eventually};
