//! Whether a COW is the one of its snapshot, as it was left.

use std::path::Path;

use super::marks;
use super::standing::{Standing, mark_speaks_against};
use crate::control::api::StoreType;
use crate::daemon::identity::{Relation, StorageIdentity};
use crate::daemon::state::{SnapshotRecord, VolumeState};

/// What the file or device at a snapshot's COW path is to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Own,
    /// Its own, and something about it is worth a word.
    OwnBut(String),
    /// Nothing tells that it holds what the snapshot's COW held: why.
    Doubtful(String),
    /// For certain not its own: why.
    Foreign(String),
    /// What the original of this copy uses.
    Originals,
}

/// Judges what is at the COW path of `record`, a snapshot that `recorded` knows.
pub fn judge(record: &SnapshotRecord, recorded: &VolumeState, standing: &Standing) -> Verdict {
    let path = Path::new(&record.spec.cow);
    if record.spec.store_type == StoreType::N {
        return Verdict::Own;
    }
    let now = match identity(path, record) {
        Ok(now) => now,
        Err(error) => return Verdict::Doubtful(format!("cannot be examined: {error}")),
    };
    if standing.is_foreign(&record.spec.cow) {
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
    // Without identities in the state file: a path can only have been given away
    // when the file of the first was not there any more.
    let later = recorded.snapshots.iter().rev();
    let owner = later.clone().find(|s| s.spec.cow == record.spec.cow);
    if let Some(owner) = owner.filter(|owner| names(owner))
        && !own
    {
        return Verdict::Foreign(format!(
            "was deleted, and the one at its path now is the COW of snapshot {}",
            owner.spec.name
        ));
    }
    let mark = marks::read(path);
    if let (Some(mark), Some(id)) = (&mark, &record.id) {
        match &mark.snapshot {
            Some(of) if of.id == *id => {}
            Some(of) => {
                return Verdict::Foreign(format!("is the COW of snapshot {}", of.name));
            }
            None => return Verdict::Foreign("is a disk that was served".to_owned()),
        }
        if let Some(why) = mark_speaks_against(recorded, mark) {
            return Verdict::Doubtful(why);
        }
    }
    let Some(mut store) = record.store.clone() else {
        return Verdict::Own;
    };
    if recorded.running {
        // It may have been enlarged by the daemon that was killed.
        store.size = store.size.max(now.size);
    }
    match store.relation(&now, !recorded.running) {
        Relation::Same | Relation::Touched => Verdict::Own,
        Relation::Copied => Verdict::OwnBut(
            "is a copy of the snapshot's COW with the same times, taken for the same".to_owned(),
        ),
        Relation::Written(why) | Relation::Other(why) => {
            Verdict::Doubtful(format!("is not as it was left: {why}"))
        }
    }
}

/// A file has the size that it has; of a device only the names count here.
fn identity(path: &Path, record: &SnapshotRecord) -> std::io::Result<StorageIdentity> {
    let meta = std::fs::metadata(path)?;
    let recorded = record.store.as_ref().map_or(0, |store| store.size);
    StorageIdentity::read(path, if meta.is_file() { meta.len() } else { recorded })
}

/// What an unknown file's mark says of a snapshot that is alive in another volume,
/// so that it must not be used for anything else; in words that follow "it".
pub fn belongs_elsewhere(path: &Path, volume: Option<&str>) -> Option<String> {
    let mark = marks::read(path)?;
    let of = mark.snapshot?;
    if volume == Some(&mark.volume) {
        return None;
    }
    let place = mark.state?;
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
