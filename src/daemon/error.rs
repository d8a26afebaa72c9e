//! The daemon's error.

use super::plan_error::PlanError;
use super::state::StateError;
use crate::engine::ControlError;

/// Why the daemon did not start, or stopped with an error.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The request cannot be carried out; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Another process has a file locked, or listens at a socket; nothing was changed.
    #[error("{0}")]
    InUse(String),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
    #[error(
        "not everything could be made durable at the stop ({0}); a power cut may lose the latest writes. \
         The next start continues as after a kill"
    )]
    NotDurable(ControlError),
    #[error(
        "stopped without waiting for the requests in flight; the next start continues as after a kill"
    )]
    Killed,
}

impl DaemonError {
    /// The same start may succeed when another process has ended.
    pub const fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse(_) | Self::State(StateError::InUse { .. }))
    }

    pub fn system(what: &'static str, source: std::io::Error) -> Self {
        Self::System { what, source }
    }
}
