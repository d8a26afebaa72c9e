//! The daemon: one volume and its views, served until told to stop.
//!
//! ```text
//! offline ─► start ─► running ─► verbs ─► volume ─┬─► monitor
//!                                                 └─► cow ─► provenance ─► state ─► identity
//! ```

mod cow;
mod identity;
mod monitor;
mod offline;
mod plan_error;
mod provenance;
mod running;
mod start;
mod state;
mod verbs;
mod volume;

pub use identity::{OriginIdentity, StorageIdentity, StorageKind};
pub use offline::doubts::doubts;
pub use offline::merge::{MergeReport, merge_offline};
pub use offline::recorded::recorded;
pub use start::options::{Endpoint, ServeOptions};
pub use start::serve::serve;
pub use state::FileError;
pub use state::place::default_state_path;

pub use crate::engine::MergeWrites;
pub use crate::io::IoEngine;

/// Why the daemon did not start or stopped on its own.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Something that was asked for cannot be; nothing was changed.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Plan(#[from] plan_error::PlanError),
    #[error(transparent)]
    State(#[from] state::StateError),
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
    #[error(
        "not everything could be made durable at the stop ({0}); what was written last may be lost in a power cut. \
         The next start goes on with what there is"
    )]
    NotDurable(crate::engine::ControlError),
    #[error(
        "stopped without waiting for the requests under way; the next start goes on with what there is"
    )]
    Killed,
}

impl DaemonError {
    fn system(what: &'static str, source: std::io::Error) -> Self {
        Self::System { what, source }
    }
}
