//! Marking the origin and the COWs of a volume.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::marks::{self, Mark, MarkedFile, MarkedSnapshot};
use crate::control::api::StoreType;
use crate::daemon::state::{MarkedAs, SnapshotRecord, StateFile, VolumeState};

/// Gives the volume and its snapshots identifiers if they have none, and counts this start.
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
/// Order: 1 the state file has the new and the previous content of the marks → 2 the marks
/// are written, durably → 3 the state file says that they are written. After an
/// interruption, each mark has one of the two contents.
pub fn mark_all(state: &mut StateFile, origin: &Path, read_only: bool) {
    let Some(mark) = mark_of(state) else { return };
    if !state.is_written() && state.state().marked.is_none() {
        // Nothing is recorded of this disk.
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

/// Marks the origin if it is not marked yet, because the first snapshot has created the
/// state file. The order is the same.
pub fn mark_origin(state: &mut StateFile, origin: &Path, read_only: bool) {
    let Some(mark) = mark_of(state) else { return };
    let current = MarkedAs {
        volume: mark.volume.clone(),
        generation: mark.generation,
    };
    let file = MarkedFile::open(origin).ok();
    let here = file.as_ref().and_then(MarkedFile::mark);
    let done = state.state().marked.as_ref() == Some(&current)
        && here.is_none_or(|here| here.state == mark.state);
    if done || !state.is_written() {
        return;
    }
    if read_only || set(file, &mark) {
        note(state, &mark);
    }
}

/// Marks the COW of a snapshot that is being taken, which is open.
pub fn mark_new_cow(state: &StateFile, record: &SnapshotRecord, cow: BorrowedFd<'_>) {
    if let Some(mut mark) = mark_of(state) {
        mark.state = state.path().map(absolute);
        if let Some(mark) = mark_of_cow(&mark, record) {
            marks::write_open(cow, Path::new(&record.spec.cow), &mark);
        }
    }
}

/// Removes the mark of a COW that does not belong to the volume any more.
pub fn release_cow(record: &SnapshotRecord) {
    let Ok(file) = MarkedFile::open(Path::new(&record.spec.cow)) else {
        return;
    };
    let of = file.mark().and_then(|mark| mark.snapshot);
    if of.is_some_and(|of| Some(of.id) == record.id) {
        file.clear();
    }
}

/// The mark of the origin.
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
    let mark = mark_of_cow(mark, record);
    mark.is_none_or(|mark| write(Path::new(&record.spec.cow), &mark))
}

/// The mark of a snapshot's COW; `None` if it gets none.
fn mark_of_cow(mark: &Mark, record: &SnapshotRecord) -> Option<Mark> {
    let id = record
        .id
        .clone()
        .filter(|_| record.valid && record.spec.store_type != StoreType::N)?;
    Some(Mark {
        snapshot: Some(MarkedSnapshot {
            id,
            name: record.spec.name.clone(),
        }),
        ..mark.clone()
    })
}

/// Writes a mark; false if the file keeps another one.
fn write(path: &Path, mark: &Mark) -> bool {
    set(MarkedFile::open(path).ok(), mark)
}

/// What cannot be opened has no mark that could be read, either.
fn set(file: Option<MarkedFile>, mark: &Mark) -> bool {
    file.is_none_or(|file| file.set(mark) || file.mark().is_none())
}

fn note(state: &mut StateFile, mark: &Mark) {
    let marked = MarkedAs {
        volume: mark.volume.clone(),
        generation: mark.generation,
    };
    // If this cannot be written, the next start still accepts the marks.
    if let Err(error) = state.update(|s| s.marked = Some(marked)) {
        tracing::debug!(%error, "could not record that the files are marked");
    }
}
