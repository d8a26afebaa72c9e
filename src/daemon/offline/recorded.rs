//! What state files record of a store, for verbs that work on it without a daemon: the
//! header of an invalid snapshot may still say valid.

use std::path::{Path, PathBuf};

use crate::control::api::StoreType;
use crate::daemon::DaemonError;
use crate::daemon::cow::{RecordPlace, mark};
use crate::daemon::identity::storage_of;
use crate::daemon::state::place::{default_state_path, state_files_near};
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::io::{BlockFile, OpenOptions};
use crate::offline::{Fate, Known};
use crate::store::FoundRecord;
use crate::units::{ChunkSize, SECTOR_SIZE};

/// The record of the snapshot whose store is in `cow`.
pub fn record_of<'a>(state: &'a VolumeState, cow: &Path) -> Option<&'a SnapshotRecord> {
    let ours = storage_of(cow)?;
    let mut records = state.snapshots.iter();
    records.find(|s| storage_of(Path::new(&s.spec.cow)) == Some(ours))
}

/// As [`in_state_files`], for verbs that read the store as it is: a killed daemon may have
/// left writes that were acknowledged and are not in the store yet.
///
/// # Errors
/// There are such writes; or `state` cannot be read.
pub fn recorded(
    cow: &Path,
    origin: Option<&Path>,
    state: Option<&Path>,
) -> Result<Option<Known>, DaemonError> {
    match unflushed(cow) {
        Some(record) => Err(DaemonError::Refused(format!(
            "COW {}: the store lacks writes of the snapshot's guest, which only {} lists, because they were not flushed. \
             Stop the daemon; if it has died, start it once with the same command and stop it",
            cow.display(),
            record.display()
        ))),
        None => in_state_files(cow, origin, state),
    }
}

/// Refuses to make a store in `cow` while a record lists unflushed writes of the store that
/// was there: a start would append them to the new one.
///
/// # Errors
/// There are such writes.
pub fn check_unrecorded(cow: &Path, chunk_size: ChunkSize) -> Result<(), DaemonError> {
    match open(cow).and_then(|file| lists(&file, chunk_size)) {
        Some(record) => Err(DaemonError::Refused(format!(
            "COW {}: {} lists unflushed writes of the store that is or was there; remove that file if they are not needed",
            cow.display(),
            record.display()
        ))),
        None => Ok(()),
    }
}

/// The record that lists unflushed writes to the store in `cow`, or cannot be read.
fn unflushed(cow: &Path) -> Option<PathBuf> {
    let file = open(cow)?;
    let header = mark::read(&file).ok()?.check(SECTOR_SIZE).ok()??;
    lists(&file, header.chunk_size).filter(|_| header.valid)
}

/// `None` also if a daemon serves it, which the verb itself reports.
fn open(cow: &Path) -> Option<BlockFile> {
    let options = OpenOptions {
        any_size: true,
        ..OpenOptions::read_only()
    };
    BlockFile::open(cow, options).ok()
}

fn lists(cow: &BlockFile, chunk_size: ChunkSize) -> Option<PathBuf> {
    let place = RecordPlace::of(cow, chunk_size).ok()?;
    let needed = match place.read() {
        Ok(FoundRecord::Mine(listed)) => !listed.is_empty(),
        Ok(FoundRecord::Blank | FoundRecord::OtherBoot | FoundRecord::OtherStore) => false,
        Err(_) => true,
    };
    needed.then(|| place.path().to_path_buf())
}

/// What is recorded of the store in `cow`: in the file `state`, or otherwise in the one of
/// `origin`, in those beside the COW, or in those of devices. If several record it, one
/// that forbids its use takes precedence.
///
/// # Errors
/// `state` cannot be read. Other files that cannot be decoded are ignored.
pub fn in_state_files(
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
