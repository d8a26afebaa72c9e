//! How a verb ends.

use crate::control::ClientError;
use crate::daemon::DaemonError;
use crate::offline::OfflineError;

/// The result of a verb that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// The store or snapshot in question is damaged or invalid.
    Faulty,
    /// Exit with this status.
    Status(u8),
}

/// Why a verb failed; the text is the whole message.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// By Ctrl-C.
    #[error("{0}")]
    Interrupted(String),
    /// A command cannot be run; the exit status says how.
    #[error("{reason}")]
    NotRun { status: u8, reason: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Offline(#[from] OfflineError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}
