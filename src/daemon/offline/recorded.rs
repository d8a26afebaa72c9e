//! What state files record of a store, for verbs that work on it without a daemon: the
//! header of an invalid snapshot may still say valid.

use std::path::Path;

use crate::control::api::StoreType;
use crate::daemon::DaemonError;
use crate::daemon::identity::storage_of;
use crate::daemon::state::place::{default_state_path, state_files_near};
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::offline::{Fate, Known};

/// The record of the snapshot whose store is in `cow`.
pub fn record_of<'a>(state: &'a VolumeState, cow: &Path) -> Option<&'a SnapshotRecord> {
    let ours = storage_of(cow)?;
    let mut records = state.snapshots.iter();
    records.find(|s| storage_of(Path::new(&s.spec.cow)) == Some(ours))
}

/// What is recorded of the store in `cow`: in the file `state`, or otherwise in the one of
/// `origin`, in those beside the COW, or in those of devices. If several record it, one
/// that forbids its use takes precedence.
///
/// # Errors
/// `state` cannot be read. Other files that cannot be decoded are ignored.
pub fn recorded(
    cow: &Path,
    origin: Option<&Path>,
    state: Option<&Path>,
) -> Result<Option<Known>, DaemonError> {
    if let Some(path) = state {
        return Ok(known(path, &VolumeState::read(path)?, cow));
    }
    let by_origin = origin.and_then(|origin| default_state_path(origin).ok());
    let by_origin = by_origin.and_then(|path| VolumeState::peek(&path).map(|state| (path, state)));
    let mut found: Option<Known> = None;
    for (path, state) in by_origin.into_iter().chain(state_files_near(cow)) {
        let knows = known(&path, &state, cow);
        match &found {
            None => found = knows,
            Some(first) if first.fate == Fate::Kept => {
                found = knows.filter(|k| k.fate != Fate::Kept).or(found);
            }
            Some(_) => break,
        }
    }
    Ok(found)
}

fn known(path: &Path, state: &VolumeState, cow: &Path) -> Option<Known> {
    let record = record_of(state, cow)?;
    Some(Known {
        state_file: path.to_owned(),
        snapshot: record.spec.name.clone(),
        length: record.length.unwrap_or(state.origin.size),
        fate: match record.spec.store_type {
            StoreType::N => Fate::Transient,
            StoreType::P | StoreType::PO if !record.valid => Fate::Invalid,
            StoreType::P | StoreType::PO => Fate::Kept,
        },
    })
}
