//! The daemon: one volume and its views, served until SIGTERM or SIGINT.
//!
//! ```text
//!                      ┌─► running ─┐            ┌─► cow ──────────────────┐
//! offline ─► start ────┤            ├─► volume ──┼─► monitor               ├─► identity
//!                      └─► verbs ───┘            └─► state ◄─ provenance ──┘
//! ```

mod cow;
mod error;
mod identity;
mod metrics;
mod monitor;
mod offline;
mod plan_error;
mod provenance;
mod running;
mod start;
mod state;
#[cfg(test)]
mod test_volume;
mod verbs;
mod volume;
mod waiting;

pub use cow::HandedCow;
pub use error::DaemonError;
pub use identity::{OriginIdentity, StorageIdentity, StorageKind};
pub use offline::doubts::doubts;
pub use offline::merge::{MergeReport, merge_offline};
pub use offline::recorded::{check_unrecorded, recorded};
pub use running::event_command::{EventCommand, LAUNCH};
pub use running::event_launcher::launch;
pub use running::manager::Reload;
pub use start::blocks::{GRANULARITY_MAX, LOGICAL_MAX, PHYSICAL_MAX};
pub use start::inherited::close_others;
pub use start::look::look;
pub use start::options::{Endpoint, ServeOptions};
pub use start::serve::serve;
#[cfg(any(test, feature = "fuzzing"))]
pub use state::fuzzing::reread;
pub use state::place::default_state_path;
pub use state::{AccessRecord, BlockSizes, FileError};

pub use crate::engine::MergeWrites;
pub use crate::io::IoEngine;
