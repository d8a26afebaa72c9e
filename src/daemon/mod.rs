//! The daemon: one volume and its views, served until told to stop.
//!
//! ```text
//!  options ─► plan ─► check ─► serve ─► run        state, state_home, state_place, replace: the state file
//!                                │                 standing, identity, cow_identity, marks, lost: is it what it was?
//!                                ▼                 cow: from a path to a store
//!                             volume ─► snapshots, grow, merging, notices, telling, status, views
//!                                └────► rollback ─► resets, watch, vmm ─► qmp
//! ```

mod check;
mod cow;
mod cow_error;
mod cow_identity;
mod cow_mark;
mod cow_size;
mod device_names;
mod golden;
mod grow;
mod identity;
mod inherited;
mod lost;
mod marking;
mod marks;
mod merging;
mod notices;
mod offline_identity;
mod offline_merge;
mod options;
mod origin_check;
mod plan;
mod plan_error;
mod qmp;
mod recorded;
mod replace;
mod resets;
mod rollback;
mod run;
mod serials;
mod serve;
mod signals;
mod snapshots;
mod standing;
pub mod state;
mod state_home;
mod state_place;
mod status;
mod telling;
mod turns;
mod views;
mod vmm;
mod volume;
mod watch;

pub use identity::{OriginIdentity, StorageIdentity, StorageKind};
pub use offline_identity::doubts;
pub use offline_merge::{MergeReport, merge_offline};
pub use options::{Endpoint, ServeOptions};
pub use recorded::recorded;
pub use replace::FileError;
pub use serve::serve;
pub use state_place::default_state_path;

pub use crate::io::IoEngine;

/// Why the daemon did not start or stopped on its own.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Something that was asked for cannot be; nothing was changed.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
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
