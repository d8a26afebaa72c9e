//! Refuses a disk and a COW that do not belong together, for verbs that need no daemon.

use std::path::Path;

use super::CliError;
use crate::daemon;

/// Refuses a COW and a disk that are not as the last daemon left them, unless
/// `accept_changes` is given.
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
        "{}: the result would not be what the snapshot held. Restore files that belong to the same time; or, if you know that \
         the content is the same, pass --accept-changes",
        doubts.join("; ")
    )))
}
