//! Verbs that name a COW: where the daemon may not open it, this process does, with its own rights,
//! and hands it over.

use std::os::fd::OwnedFd;

use super::CliError;
use crate::control::api::{ErrorKind, SnapshotSpec};
use crate::control::{Client, ClientError};
use crate::daemon::HandedCow;

/// The result of `call`, which is given the COW of `spec` if the daemon asks for it.
pub fn with_cow<T>(
    client: &Client,
    spec: Option<&SnapshotSpec>,
    call: impl Fn(Option<OwnedFd>) -> Result<T, ClientError>,
) -> Result<T, CliError> {
    let (refusal, spec) = match (call(None), spec) {
        (Err(ClientError::Refused(refusal)), Some(spec)) if refusal.kind == ErrorKind::Outside => {
            (refusal, spec)
        }
        (result, _) => return Ok(result?),
    };
    let failed = |error| CliError::Failed(format!("COW {error} ({})", refusal.message));
    let cow = HandedCow::open(spec, client.listener()?).map_err(failed)?;
    let result = call(Some(cow.descriptor().map_err(failed)?));
    match &result {
        // Nothing was changed, so that a file that was made is removed.
        Err(ClientError::Refused(refusal)) if refusal.operation.is_none() => {}
        // The daemon has it, or may have it.
        Ok(_) | Err(_) => cow.keep(),
    }
    Ok(result?)
}
