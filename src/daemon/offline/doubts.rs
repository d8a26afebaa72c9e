//! For verbs that read a snapshot without a daemon: whether the given files are its disk
//! and its COW.

use std::path::{Path, PathBuf};

use crate::daemon::identity::OriginIdentity;
use crate::daemon::identity::storage_of;
use crate::daemon::provenance::cow_verdict::{Verdict, belongs_elsewhere, judge};
use crate::daemon::provenance::origin::origin_changes;
use crate::daemon::provenance::placement::Placement;
use crate::daemon::state::VolumeState;
use crate::daemon::state::place::default_state_path;
use crate::io::Found;

/// The reasons to doubt that the files at `origin` and `cow` are a disk and its snapshot as
/// the daemon left them; empty if there are none, or if no state file records them.
/// `state`: the state file if it is not in its default place.
pub fn doubts(origin: &Path, cow: &Path, state: Option<&Path>) -> Vec<String> {
    let place = match state {
        Some(place) => Some(place.to_path_buf()),
        None => default_state_path(origin).ok(),
    };
    let known = place.and_then(|place: PathBuf| {
        let state = VolumeState::peek(&place)?;
        Some((place, state))
    });
    let volume = known.as_ref().and_then(|(_, state)| state.volume.clone());
    let Some((place, state)) = known else {
        return elsewhere(cow, None);
    };
    let ours = storage_of(cow);
    let record = state
        .snapshots
        .iter()
        .find(|s| ours.is_some() && storage_of(Path::new(&s.spec.cow)) == ours);
    let Some(record) = record else {
        return elsewhere(cow, volume.as_deref());
    };
    // The store of an invalid snapshot is refused elsewhere.
    if !record.valid {
        return Vec::new();
    }
    // Without an origin, the verb is refused by itself.
    let Ok(found) = Found::at(origin) else {
        return Vec::new();
    };
    let placement = Placement::look(&found, Some(&place), Some(&state));
    let mut doubts = Vec::new();
    let size = found.metadata().ok().filter(|m| m.is_file());
    let size = size.map_or(state.origin.size, |m| m.len());
    if let Ok(now) = OriginIdentity::of_descriptor(&found, origin, size) {
        let found = origin_changes(&state, &now, &placement);
        // Data behind the end of the snapshot is not part of it.
        let harmless = found.grown && found.changes.len() == 1;
        doubts.extend(
            found
                .changes
                .into_iter()
                .filter(|_| !harmless)
                .map(|why| format!("the origin {} was changed: {why}", origin.display())),
        );
    }
    let shown = cow.display();
    match judge(record, &state, &placement) {
        Verdict::Own | Verdict::OwnBut(_) => {}
        Verdict::Doubtful(why) | Verdict::Foreign(why) => doubts.push(format!(
            "the COW {shown} of snapshot {} {why}",
            record.spec.name
        )),
        Verdict::Originals => doubts.push(format!(
            "the origin is a copy, and the COW {shown} is used by the original"
        )),
    }
    doubts
}

fn elsewhere(cow: &Path, volume: Option<&str>) -> Vec<String> {
    let why = belongs_elsewhere(cow, volume);
    why.map(|why| format!("the COW {} {why}", cow.display()))
        .into_iter()
        .collect()
}
