//! For verbs that look at a snapshot without a daemon: is this its disk, and is this
//! its COW?

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::cow::storage_of;
use crate::daemon::identity::OriginIdentity;
use crate::daemon::provenance::cow_verdict::{Verdict, belongs_elsewhere, judge};
use crate::daemon::provenance::standing::Standing;
use crate::daemon::start::origin_check::origin_changes;
use crate::daemon::state::VolumeState;
use crate::daemon::state::place::default_state_path;

/// What speaks against the files at `origin` and `cow` being a snapshot and its
/// disk as they were left; empty if nothing does, or if nothing is known of them.
/// `state`: the state file if it is not in its usual place.
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
    // A merge under way writes the origin, and its rest is all that is left.
    if !record.valid {
        return Vec::new();
    }
    let standing = Standing::look(origin, Some(&place), Some(&state));
    let mut doubts = Vec::new();
    let size = fs::metadata(origin).ok().filter(|m| m.is_file());
    let size = size.map_or(state.origin.size, |m| m.len());
    if let Ok(now) = OriginIdentity::read(origin, size) {
        let found = origin_changes(&state, &now, &standing);
        // What it has behind the snapshot's end does not show.
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
    match judge(record, &state, &standing) {
        Verdict::Own | Verdict::OwnBut(_) => {}
        Verdict::Doubtful(why) | Verdict::Foreign(why) => doubts.push(format!(
            "the COW {shown} of snapshot {} {why}",
            record.spec.name
        )),
        Verdict::Originals => doubts.push(format!(
            "the origin is a copy, and the COW {shown} is what the original uses"
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
