//! What the volume remembers of a disk and a COW, for verbs that need no daemon.

use std::path::Path;

use super::CliError;
use crate::daemon;

/// Refuses what is not a snapshot and its disk as they were left.
pub fn refuse(
    origin: &Path,
    cow: &Path,
    state: Option<&Path>,
    accept_changes: bool,
) -> Result<(), CliError> {
    let doubts = daemon::doubts(origin, cow, state);
    if doubts.is_empty() || accept_changes {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{}: what is read as the snapshot would not be what it held. Bring back what is of one time; or, if you know that \
         the content is the same, pass --accept-changes",
        doubts.join("; ")
    )))
}
