//! A disk without a state file: it may have snapshots that would become wrong with its first
//! write. And a COW that is served as a disk by mistake.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::options::ServeOptions;
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::DaemonError;
use crate::daemon::identity::{Relation, StorageIdentity, StorageKind};
use crate::daemon::provenance::marks::{self, Mark};
use crate::daemon::provenance::placement::{Placement, mark_speaks_against};
use crate::daemon::state::place::{nameless_like, state_files_near};
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::io::{BlockFile, Links, by_descriptor, open_regular};
use crate::store::{HEADER_BYTES, RawHeader};

/// Number of files that are examined in the folder of a disk.
const LOOK_MAX: usize = 4096;

/// What was found at a start without a state file.
#[derive(Debug, Default)]
pub struct Findings {
    /// Snapshots that the options give up.
    pub forget: Vec<SnapshotRecord>,
    pub remarks: Vec<String>,
}

/// Looks for signs that the disk has snapshots. `place`: where its state file would be.
pub fn check(
    options: &ServeOptions,
    now: &StorageIdentity,
    place: &Path,
    placement: &Placement,
) -> Result<Findings, DaemonError> {
    let mut found = Findings::default();
    let origin = &options.origin;
    let mark = placement.mark.as_ref();
    if let Some(elsewhere) = mark.and_then(|m| m.state.as_deref()) {
        refuse_if_remembered(origin, now, Path::new(elsewhere), place, &mut found)?;
    }
    let volume = mark.map(|mark| mark.volume.as_str());
    let (stores, mut suspects) = stores_beside(options, volume);
    forget_or_refuse(stores, options, &mut found, |stores| {
        refusal(origin, place, stores)
    })?;
    if let StorageKind::Device(names) = &now.kind {
        let like = nameless_like(names)
            .filter(|(_, state)| state.origin.size == now.size && !at_stake(state).is_empty());
        found.remarks.extend(like.map(|(place, state)| {
            format!(
                "{} describes a device of this size without a persistent name, and its snapshots {}: if this is that device, \
                 stop, and pass the file with --state; otherwise the snapshots are wrong from the first write on",
                place.display(),
                at_stake(&state).join(", ")
            )
        }));
    }
    suspects.retain(|path| !is_known_elsewhere(path));
    if !suspects.is_empty() {
        let suspects: Vec<String> = suspects.iter().map(|p| p.display().to_string()).collect();
        found.remarks.push(format!(
            "{} in the folder of the origin hold valid COW stores, and there is no state file {}: if they are snapshots of \
             this origin, they are wrong from now on. Restore the state file before you serve the origin, or remove them",
            suspects.join(", "),
            place.display()
        ));
    }
    Ok(found)
}

/// With a state file that is older than the disk: looks for snapshots that were taken since
/// and are not in it.
pub fn check_older(
    options: &ServeOptions,
    recorded: &VolumeState,
    placement: &Placement,
) -> Result<Findings, DaemonError> {
    let mut found = Findings::default();
    let mark = placement.mark.as_ref();
    if mark.is_none_or(|mark| mark_speaks_against(recorded, mark).is_none()) {
        return Ok(found);
    }
    let volume = mark.map(|mark| mark.volume.as_str());
    let (mut stores, _) = stores_beside(options, volume);
    stores.retain(|(name, _)| recorded.snapshot(name).is_none());
    forget_or_refuse(stores, options, &mut found, |stores| {
        let names: Vec<&str> = stores.iter().map(|(name, _)| name.as_str()).collect();
        format!(
            "state file {} is older than the disk {} and does not list its snapshots {}, which are valid: restore the newer \
             state file, or give all of the disk's snapshots up with --forget NAME",
            placement.place(),
            options.origin.display(),
            names.join(", ")
        )
    })?;
    Ok(found)
}

/// Names and COWs of snapshots.
type Stores = Vec<(String, PathBuf)>;

/// The valid stores in the folder of the disk: those that are marked as snapshots of
/// `volume`, and those without a mark.
fn stores_beside(options: &ServeOptions, volume: Option<&str>) -> (Stores, Vec<PathBuf>) {
    let (mut stores, mut suspects) = (Vec::new(), Vec::new());
    for path in valid_stores_beside(&options.origin, options) {
        match marks::read(&path).and_then(|m| Some((m.volume, m.snapshot?))) {
            Some((theirs, of)) if Some(theirs.as_str()) == volume => stores.push((of.name, path)),
            // It belongs to another disk.
            Some(_) => {}
            None => suspects.push(path),
        }
    }
    (stores, suspects)
}

fn forget_or_refuse(
    mut stores: Stores,
    options: &ServeOptions,
    found: &mut Findings,
    refusal: impl FnOnce(&Stores) -> String,
) -> Result<(), DaemonError> {
    for name in &options.forget {
        if let Some(at) = stores.iter().position(|(known, _)| known == name) {
            let (name, path) = stores.swap_remove(at);
            found.forget.push(record(name, &path));
        }
    }
    match stores.is_empty() {
        true => Ok(()),
        false => Err(DaemonError::Refused(refusal(&stores))),
    }
}

/// The disk's mark names the state file `elsewhere`, which may still exist.
fn refuse_if_remembered(
    origin: &Path,
    now: &StorageIdentity,
    elsewhere: &Path,
    place: &Path,
    found: &mut Findings,
) -> Result<(), DaemonError> {
    let state = (elsewhere != place).then(|| VolumeState::peek(elsewhere));
    match state.flatten() {
        Some(state) if state.origin.storage().is(now) => {
            let alive: Vec<&str> = at_stake(&state);
            if alive.is_empty() {
                return Ok(());
            }
            Err(DaemonError::Refused(format!(
                "origin {} has the snapshots {}, which are recorded in {}: pass --state {2} (or move the disk back, or move \
                 that file and the COWs into the folder of the disk, the file as {}). If the disk were served without them, \
                 they would be wrong for good",
                origin.display(),
                alive.join(", "),
                elsewhere.display(),
                place.display()
            )))
        }
        Some(state) if was_moved(&state, now, elsewhere) => Err(DaemonError::Refused(format!(
            "origin {} was moved here without its state file {}, which lists its snapshots {}: move the two together, and the \
             COWs with them (the file to {}). If the disk were served without them, they would be wrong for good; if nobody \
             needs them any more, remove that file",
            origin.display(),
            elsewhere.display(),
            at_stake(&state).join(", "),
            place.display()
        ))),
        Some(_) => {
            found.remarks.push(format!(
                "the origin was copied from one whose state file is {}; the copy is a volume of its own, without \
                 snapshots",
                elsewhere.display()
            ));
            Ok(())
        }
        None => {
            found.remarks.push(format!(
                "the origin had a state file {}, which does not exist any more: snapshots that it listed are wrong from now on",
                elsewhere.display()
            ));
            Ok(())
        }
    }
}

/// The disk has the content that `state` (in the file `place`) describes, as another file, and
/// where it was there is none any more: it was moved to another file system.
fn was_moved(state: &VolumeState, now: &StorageIdentity, place: &Path) -> bool {
    let relation = state.origin.storage().relation(now, !state.running);
    let former = place.with_file_name("").join(&state.origin.path);
    relation == Relation::Copied && !former.exists() && !at_stake(state).is_empty()
}

fn at_stake(state: &VolumeState) -> Vec<&str> {
    let alive = state
        .snapshots
        .iter()
        .filter(|s| s.valid && s.spec.store_type != StoreType::N);
    alive.map(|s| s.spec.name.as_str()).collect()
}

fn refusal(origin: &Path, place: &Path, stores: &Stores) -> String {
    let list: Vec<String> = stores
        .iter()
        .map(|(name, path)| format!("{name} in {}", path.display()))
        .collect();
    let forget: Vec<String> = stores
        .iter()
        .map(|(name, _)| format!("--forget {name}"))
        .collect();
    format!(
        "origin {} has no state file {}, but it has valid snapshots: {}. If it were served without them, they would be wrong \
         for good. Restore the state file; or, only if nothing has written the disk since the daemon ended, add each with \
         --snapshot name=NAME,cow=FILE; or give them up with {}",
        origin.display(),
        place.display(),
        list.join(", "),
        forget.join(" ")
    )
}

/// A record that is sufficient to mark a store invalid.
fn record(name: String, path: &Path) -> SnapshotRecord {
    SnapshotRecord {
        spec: SnapshotSpec {
            name,
            cow: path.display().to_string(),
            store_type: StoreType::P,
            chunk_size: None,
            size: None,
            socket: None,
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        },
        valid: true,
        length: None,
        id: None,
        store: None,
        unflushed: None,
    }
}

/// Regular files in the folder of the disk that start with the header of a valid store and
/// that the options do not name.
fn valid_stores_beside(origin: &Path, options: &ServeOptions) -> Vec<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let Some(origin) = real(origin).filter(|origin| origin.is_file()) else {
        return Vec::new();
    };
    let taken: Vec<_> = options
        .snapshots
        .iter()
        .filter_map(|s| real(Path::new(&s.cow)))
        .collect();
    let entries = origin.parent().map(fs::read_dir);
    let files = entries.into_iter().flatten().flatten().flatten();
    let mut found: Vec<PathBuf> = files
        .take(LOOK_MAX)
        // No symbolic links, because their targets are elsewhere.
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()))
        .map(|entry| entry.path())
        .filter(|path| *path != origin && !taken.contains(path) && says_valid(path))
        .collect();
    found.sort();
    found
}

/// The regular file starts with the header of a valid store.
fn says_valid(path: &Path) -> bool {
    open_regular(path, Links::Refuse, OFlags::RDONLY).is_ok_and(has_valid_head)
}

fn has_valid_head(mut file: File) -> bool {
    let mut head = [0; HEADER_BYTES];
    if file.read_exact(&mut head).is_err() {
        return false;
    }
    let header = RawHeader::decode(head).check(1);
    header.is_ok_and(|header| header.is_some_and(|header| header.valid))
}

/// A state file lists this as the COW of a snapshot.
fn is_known_elsewhere(path: &Path) -> bool {
    owner(path).is_some()
}

/// The state file and the snapshot that have this COW.
fn owner(path: &Path) -> Option<(PathBuf, VolumeState, String)> {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let ours = real(path)?;
    let marked = marks::read(path).and_then(|mark| mark.state);
    let marked = marked.map(PathBuf::from).into_iter().filter_map(|place| {
        let state = VolumeState::peek(&place)?;
        Some((place, state))
    });
    marked
        .chain(state_files_near(path))
        .find_map(|(place, state)| {
            let of = state
                .snapshots
                .iter()
                .find(|s| s.valid && real(Path::new(&s.spec.cow)).as_ref() == Some(&ours))?;
            let name = of.spec.name.clone();
            Some((place, state, name))
        })
}

/// Refuses to serve the COW of a snapshot as a disk. A header alone is no proof, because a
/// guest may have written one to its disk; in this case a remark is returned.
pub fn refuse_cow(origin: &BlockFile, mark: Option<&Mark>) -> Result<Option<String>, DaemonError> {
    // Opened again, because the origin may only be read in blocks.
    if !File::open(by_descriptor(origin)).is_ok_and(has_valid_head) {
        return Ok(None);
    }
    let origin = origin.path();
    let shown = origin.display();
    let advice = "serve the disk instead; remove the snapshot first if the COW is to become a disk";
    if let Some((place, state, name)) = owner(origin) {
        return Err(DaemonError::Refused(format!(
            "origin {shown} is the COW of snapshot {name} of {} (state file {}): {advice}",
            state.origin.path,
            place.display()
        )));
    }
    match mark {
        Some(Mark {
            snapshot: Some(of), ..
        }) => Err(DaemonError::Refused(format!(
            "origin {shown} is marked as the COW of snapshot {} of another disk, and is valid: {advice} (clear its first \
             4096 bytes)",
            of.name
        ))),
        Some(_) => Ok(None),
        None => Ok(Some(format!(
            "origin {shown} starts with the header of a COW store: if it is the COW of a snapshot, stop, and serve its \
             disk instead"
        ))),
    }
}
