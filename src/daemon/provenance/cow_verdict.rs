//! Whether the file at a COW path is the COW of its snapshot, with the content that it had.

use std::path::Path;

use super::marks;
use super::placement::{Placement, mark_speaks_against};
use crate::control::api::StoreType;
use crate::daemon::identity::{Relation, StorageIdentity};
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::io::Found;
use crate::sandbox;

/// What the file or device at a snapshot's COW path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The snapshot's own COW.
    Own,
    /// The snapshot's own COW, with a remark for the user.
    OwnBut(String),
    /// It may not have the content that the snapshot's COW had, with the reason.
    Doubtful(String),
    /// Certainly not the snapshot's COW, with the reason.
    Foreign(String),
    /// The COW of the original of this copy.
    Originals,
}

/// Judges the file at the COW path of `record`, a snapshot in `recorded`.
pub fn judge(record: &SnapshotRecord, recorded: &VolumeState, placement: &Placement) -> Verdict {
    let path = Path::new(&record.spec.cow);
    if record.spec.store_type == StoreType::N {
        return Verdict::Own;
    }
    // Looked up once, so that the mark is of the file that is judged.
    let (found, now) = match identity(path, record) {
        Ok(found) => found,
        Err(error) => return Verdict::Doubtful(format!("cannot be examined: {error}")),
    };
    if placement.is_foreign(&record.spec.cow) {
        return Verdict::Originals;
    }
    let names = |other: &SnapshotRecord| other.spec.name != record.spec.name;
    let is_now = |other: &SnapshotRecord| other.store.as_ref().is_some_and(|s| s.is(&now));
    let own = record.store.as_ref().is_some_and(|store| store.is(&now));
    if let Some(other) = recorded.snapshots.iter().find(|s| names(s) && is_now(s))
        && !own
    {
        return Verdict::Foreign(format!("is the COW of snapshot {}", other.spec.name));
    }
    // Without identities in the state file: a second snapshot can only have got the path
    // after the file of the first one was deleted.
    let later = recorded.snapshots.iter().rev();
    let owner = later.clone().find(|s| s.spec.cow == record.spec.cow);
    if let Some(owner) = owner.filter(|owner| names(owner))
        && !own
    {
        return Verdict::Foreign(format!(
            "was deleted, and the file at its path now is the COW of snapshot {}",
            owner.spec.name
        ));
    }
    let mark = marks::of(&found);
    if let (Some(mark), Some(id)) = (&mark, &record.id) {
        match &mark.snapshot {
            Some(of) if of.id == *id => {}
            Some(of) => {
                return Verdict::Foreign(format!("is the COW of snapshot {}", of.name));
            }
            None => return Verdict::Foreign("is a disk that has been served".to_owned()),
        }
        if let Some(why) = mark_speaks_against(recorded, mark) {
            return Verdict::Doubtful(why);
        }
    }
    let Some(mut store) = record.store.clone() else {
        return Verdict::Own;
    };
    if recorded.running {
        // The daemon that was killed may have enlarged it.
        store.size = store.size.max(now.size);
    }
    match store.relation(&now, !recorded.running) {
        Relation::Same | Relation::Touched => Verdict::Own,
        Relation::Copied => Verdict::OwnBut(
            "is a copy of the snapshot's COW with the same times, and is taken for it".to_owned(),
        ),
        Relation::Written(why) | Relation::Other(why) => {
            Verdict::Doubtful(format!("is not as the daemon left it: {why}"))
        }
    }
}

/// The identity of the file or device. For a device only the names matter here, so it gets
/// the recorded size.
fn identity(path: &Path, record: &SnapshotRecord) -> std::io::Result<(Found, StorageIdentity)> {
    let found = Found::at(path)?;
    let meta = found.metadata()?;
    let recorded = record.store.as_ref().map_or(0, |store| store.size);
    let size = if meta.is_file() { meta.len() } else { recorded };
    let now = StorageIdentity::of_descriptor(&found, path, size)?;
    Ok((found, now))
}

/// The reason why an unknown file must not be used: its mark names a snapshot of another
/// volume that still has it. Continues a sentence after "it".
pub fn belongs_elsewhere(path: &Path, volume: Option<&str>) -> Option<String> {
    let mark = marks::read(path)?;
    let of = mark.snapshot?;
    if volume == Some(&mark.volume) {
        return None;
    }
    let place = mark.state?;
    if Path::new(&place).exists() && sandbox::advice(Path::new(&place)).is_some() {
        return Some(format!(
            "is marked as the COW of snapshot {}, and the sandbox keeps this daemon from looking into its state file \
             {place}: remove the COW file if it is not needed, or start the daemon with --allow-path and the folder of \
             that state file",
            of.name
        ));
    }
    let state = VolumeState::peek(Path::new(&place))?;
    let alive = state.volume.as_ref() == Some(&mark.volume)
        && state.snapshots.iter().any(|s| {
            let real = |path: &Path| std::fs::canonicalize(path).ok();
            s.valid && s.id.as_ref() == Some(&of.id) && real(Path::new(&s.spec.cow)) == real(path)
        });
    alive.then(|| {
        format!(
            "is the COW of snapshot {} of {} (state file {place})",
            of.name, state.origin.path
        )
    })
}
