//! Marking the files of a volume as its own.

use std::path::Path;

use super::marks::{self, Mark, MarkedSnapshot};
use crate::control::api::StoreType;
use crate::daemon::state::{MarkedAs, SnapshotRecord, StateFile, VolumeState};

/// Gives the volume and its snapshots what identifies them, if they have none yet,
/// and counts this start.
pub fn identify(state: &mut VolumeState) -> std::io::Result<()> {
    if state.volume.is_none() {
        state.volume = Some(marks::new_id()?);
    }
    for record in &mut state.snapshots {
        if record.id.is_none() {
            record.id = Some(marks::new_id()?);
        }
    }
    state.generation = state.generation.saturating_add(1);
    Ok(())
}

/// Marks the origin at `origin` and all COWs.
///
/// Order: 1 the state file says what the marks will be, and what they were → 2 they
/// are made, durable → 3 the state file says that they are made. Cut short
/// anywhere, the marks say one of the two.
pub fn mark_all(state: &mut StateFile, origin: &Path, read_only: bool) {
    let Some(mark) = mark_of(state) else { return };
    if !state.is_written() && state.state().marked.is_none() {
        // Nothing of this disk is to be remembered.
        return;
    }
    let mut all = read_only || write(origin, &mark);
    for record in &state.state().snapshots {
        all &= mark_cow(&mark, record);
    }
    if all {
        note(state, &mark);
    }
}

/// Marks the origin if it is not yet, because the first snapshot has made a state
/// file. The same order.
pub fn mark_origin(state: &mut StateFile, origin: &Path, read_only: bool) {
    let Some(mark) = mark_of(state) else { return };
    let current = MarkedAs {
        volume: mark.volume.clone(),
        generation: mark.generation,
    };
    let here = marks::read(origin);
    let done = state.state().marked.as_ref() == Some(&current)
        && here.is_none_or(|here| here.state == mark.state);
    if done || !state.is_written() {
        return;
    }
    if read_only || write(origin, &mark) {
        note(state, &mark);
    }
}

/// Marks the COW of a snapshot that is being taken.
pub fn mark_new_cow(state: &StateFile, record: &SnapshotRecord) {
    if let Some(mut mark) = mark_of(state) {
        mark.state = state.path().map(absolute);
        mark_cow(&mark, record);
    }
}

/// The file is no COW of the volume any more.
pub fn release_cow(record: &SnapshotRecord) {
    let path = Path::new(&record.spec.cow);
    let of = marks::read(path).and_then(|mark| mark.snapshot);
    if of.is_some_and(|of| Some(of.id) == record.id) {
        marks::clear(path);
    }
}

/// What the disk is to be marked with.
fn mark_of(state: &StateFile) -> Option<Mark> {
    Some(Mark {
        volume: state.state().volume.clone()?,
        generation: state.state().generation,
        state: state.path().filter(|_| state.is_written()).map(absolute),
        snapshot: None,
    })
    .filter(|_| state.path().is_some())
}

fn absolute(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.to_string_lossy().into_owned()
}

fn mark_cow(mark: &Mark, record: &SnapshotRecord) -> bool {
    let Some(id) = record
        .id
        .clone()
        .filter(|_| record.valid && record.spec.store_type != StoreType::N)
    else {
        return true;
    };
    let mark = Mark {
        snapshot: Some(MarkedSnapshot {
            id,
            name: record.spec.name.clone(),
        }),
        ..mark.clone()
    };
    write(Path::new(&record.spec.cow), &mark)
}

/// False if the file goes on saying something else.
fn write(path: &Path, mark: &Mark) -> bool {
    marks::write(path, mark) || marks::read(path).is_none()
}

fn note(state: &mut StateFile, mark: &Mark) {
    let marked = MarkedAs {
        volume: mark.volume.clone(),
        generation: mark.generation,
    };
    // If this cannot be written, the marks say what the file says, too.
    if let Err(error) = state.update(|s| s.marked = Some(marked)) {
        tracing::debug!(%error, "not noted that the files are marked");
    }
}
