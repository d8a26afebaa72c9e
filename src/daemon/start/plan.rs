//! What a start has to do: the state file and the options of this start are combined.
//! Nothing is opened or changed here.

use std::path::Path;

use super::options::{Endpoint, ServeOptions};
use super::origin_check::{check_lengths, check_origin};
use crate::control::api::{SnapshotSpec, StoreType, check_name};
use crate::control::registry::Wish;
use crate::daemon::identity::{OriginIdentity, same_path};
pub use crate::daemon::plan_error::PlanError;
use crate::daemon::provenance::placement::{Location, Placement};
use crate::daemon::state::{MarkedAs, MergeRecord, SnapshotRecord, VolumeState};
use crate::size::in_words;
use crate::units::SECTOR_SIZE;

/// Where a snapshot of the plan comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The state file: its store must exist and must fit.
    Recorded,
    /// The options of this start: its store is made if it does not exist.
    Options,
}

/// A snapshot to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSnapshot {
    pub spec: SnapshotSpec,
    pub valid: bool,
    pub source: Source,
    /// The COW belonged to a transient snapshot of this volume, so its content is worthless.
    pub scratch: bool,
}

/// A start whose options agree with the state file.
#[derive(Debug)]
pub struct Plan {
    /// The state that will be recorded, except for what is found when the stores are opened.
    pub state: VolumeState,
    pub snapshots: Vec<PlannedSnapshot>,
    /// Snapshots to invalidate for good.
    pub forget: Vec<SnapshotRecord>,
    /// Remarks for the user.
    pub remarks: Vec<String>,
    /// Sockets that are not served because they belong to the original of this copy.
    pub foreign: Vec<String>,
}

/// Combines `recorded` and `options` for the origin as it is `now`.
pub fn plan(
    options: &ServeOptions,
    recorded: Option<VolumeState>,
    now: &OriginIdentity,
    placement: &Placement,
) -> Result<Plan, PlanError> {
    let mut remarks = Vec::new();
    let known = recorded.is_some();
    let mut state = recorded.unwrap_or_else(|| VolumeState::new(now.clone()));
    let forget = forget(options, &mut state, &mut remarks)?;
    let length = |origin: &OriginIdentity| origin.size / SECTOR_SIZE * SECTOR_SIZE;
    let recorded_length = length(&state.origin);
    for record in &mut state.snapshots {
        record.length.get_or_insert(recorded_length);
    }
    check_lengths(&state, now)?;
    if known {
        check_origin(options, &state, now, placement, &mut remarks)?;
    }
    let foreign = take_over(&mut state, placement, &mut remarks);
    state.origin = now.clone();
    // It is unknown whether a guest was attached to a daemon that was killed.
    state.guest_attached |= state.running;
    state.running = true;

    let asked = asked_snapshots(options)?;
    let scratch = drop_transient(&asked, &mut state, &mut remarks);
    let snapshots = merge_snapshots(&mut state, asked, &scratch, length(now))?;

    if let Some(name) = &options.merge {
        start_merge(name, options, &mut state)?;
    } else if let Some(merge) = &mut state.merge
        && let Some(writes) = options.merge_writes
    {
        merge.writes = writes.into();
    }
    if options.read_only {
        check_not_written(&state)?;
    }
    sockets(options, &mut state)?;
    Ok(Plan {
        state,
        snapshots,
        forget,
        remarks,
        foreign,
    })
}

/// Refuses a read-only origin that a merge writes or will write.
fn check_not_written(state: &VolumeState) -> Result<(), PlanError> {
    if let Some(merge) = &state.merge {
        return Err(PlanError::MergeReadOnly(merge.snapshot.clone()));
    }
    if let Some(rollback) = &state.rollback_at_reset {
        return Err(PlanError::RollbackReadOnly(rollback.snapshot.clone()));
    }
    Ok(())
}

/// The recorded snapshots, updated by the options, and those that only the options name,
/// which are added to the state. `scratch`: COWs of former transient snapshots; `length`:
/// of a new snapshot, in bytes.
fn merge_snapshots(
    state: &mut VolumeState,
    asked: Vec<SnapshotSpec>,
    scratch: &[String],
    length: u64,
) -> Result<Vec<PlannedSnapshot>, PlanError> {
    let mut snapshots: Vec<PlannedSnapshot> = Vec::new();
    for record in &mut state.snapshots {
        if let Some(asked) = asked.iter().find(|s| s.name == record.spec.name) {
            update_spec(&mut record.spec, asked)?;
        }
        snapshots.push(PlannedSnapshot {
            spec: record.spec.clone(),
            valid: record.valid,
            source: Source::Recorded,
            scratch: false,
        });
    }
    for spec in asked {
        if state.snapshot(&spec.name).is_some() {
            continue;
        }
        state.snapshots.push(SnapshotRecord {
            spec: spec.clone(),
            valid: true,
            length: Some(length),
            id: None,
            store: None,
            unflushed: None,
        });
        let is_scratch =
            spec.store_type == StoreType::N && scratch.iter().any(|cow| same_path(cow, &spec.cow));
        snapshots.push(PlannedSnapshot {
            spec,
            valid: true,
            source: Source::Options,
            scratch: is_scratch,
        });
    }
    Ok(snapshots)
}

/// Takes over the options that may change from start to start.
fn update_spec(spec: &mut SnapshotSpec, asked: &SnapshotSpec) -> Result<(), PlanError> {
    agree(spec, asked)?;
    if asked.socket.is_some() {
        spec.socket.clone_from(&asked.socket);
    }
    spec.defer_entries = asked.defer_entries.or(spec.defer_entries);
    spec.discard_zeroes_cow = asked.discard_zeroes_cow.or(spec.discard_zeroes_cow);
    spec.discard_passdown_origin = asked
        .discard_passdown_origin
        .or(spec.discard_passdown_origin);
    spec.read_only = asked.read_only.or(spec.read_only);
    Ok(())
}

/// Makes a copy a volume of its own, and continues the volume that a disk's mark names if
/// the disk was served without a state file. Returns the sockets that a copy leaves to its
/// original.
fn take_over(
    state: &mut VolumeState,
    placement: &Placement,
    remarks: &mut Vec<String>,
) -> Vec<String> {
    if state.volume.is_none() {
        state.marked = placement.mark.as_ref().map(|mark| MarkedAs {
            volume: mark.volume.clone(),
            generation: mark.generation,
        });
    }
    let Location::Copy { of } = &placement.location else {
        return Vec::new();
    };
    // The copied files are marked as the original's were.
    if let Some(volume) = state.volume.take()
        && state.marked.is_none()
    {
        let generation = state.generation;
        state.marked = Some(MarkedAs { volume, generation });
    }
    state.generation = 0;
    remarks.push(format!(
        "this is a copy of the volume in {}: from now on it is a volume of its own, with the files in its folder",
        of.display()
    ));
    let mut foreign = Vec::new();
    let mut leave = |path: &str| {
        let is_foreign = placement.is_foreign(path);
        if is_foreign {
            foreign.push(path.to_owned());
        }
        is_foreign
    };
    state.socket.take_if(|path| leave(path));
    state.control.take_if(|path| leave(path));
    state.followed_sockets.retain(|path| !leave(path));
    for record in &mut state.snapshots {
        record.spec.socket.take_if(|path| leave(path));
    }
    if !foreign.is_empty() {
        remarks.push(format!(
            "not served, because these sockets belong to the original: {}",
            foreign.join(", ")
        ));
    }
    foreign
}

/// Drops the snapshots that `--forget` names from the state.
fn forget(
    options: &ServeOptions,
    state: &mut VolumeState,
    remarks: &mut Vec<String>,
) -> Result<Vec<SnapshotRecord>, PlanError> {
    let mut forgotten = Vec::new();
    for name in &options.forget {
        let Some(record) = state.snapshot(name).cloned() else {
            return Err(unknown("forget", name, state));
        };
        if state.merge.as_ref().is_some_and(|m| m.snapshot == *name) {
            remarks.push(format!(
                "snapshot {name} is forgotten in the middle of its merge: the origin holds a part of it now and is a \
                 mixture of two moments"
            ));
        }
        state.drop_snapshot(name);
        forgotten.push(record);
    }
    Ok(forgotten)
}

/// The snapshots of the options, with absolute paths and checked, unique names.
fn asked_snapshots(options: &ServeOptions) -> Result<Vec<SnapshotSpec>, PlanError> {
    let mut asked: Vec<SnapshotSpec> = Vec::new();
    for spec in &options.snapshots {
        check_name(&spec.name).map_err(PlanError::Name)?;
        if asked.iter().any(|s| s.name == spec.name) {
            return Err(PlanError::Twice(spec.name.clone()));
        }
        let mut spec = spec.clone();
        spec.cow = absolute(Path::new(&spec.cow))?;
        spec.socket = spec
            .socket
            .as_deref()
            .map(|s| absolute(Path::new(s)))
            .transpose()?;
        asked.push(spec);
    }
    Ok(asked)
}

/// Drops transient snapshots, which ended with the last daemon. If the options ask for one
/// again, it starts empty. Returns the COWs.
fn drop_transient(
    asked: &[SnapshotSpec],
    state: &mut VolumeState,
    remarks: &mut Vec<String>,
) -> Vec<String> {
    let gone: Vec<SnapshotSpec> = state
        .snapshots
        .iter()
        .map(|s| s.spec.clone())
        .filter(|s| s.store_type == StoreType::N)
        .collect();
    for SnapshotSpec { name, .. } in &gone {
        if !asked.iter().any(|s| s.name == *name) {
            remarks.push(format!(
                "snapshot {name} was transient and ended with the last daemon"
            ));
        }
        state.drop_snapshot(name);
    }
    gone.into_iter().map(|s| s.cow).collect()
}

/// Refuses options that contradict the record of a known snapshot.
fn agree(recorded: &SnapshotSpec, asked: &SnapshotSpec) -> Result<(), PlanError> {
    let contradiction = |what, recorded: String, value: String| {
        Err(PlanError::Contradiction {
            name: asked.name.clone(),
            what,
            recorded,
            asked: value,
        })
    };
    if !same_path(&recorded.cow, &asked.cow) {
        return contradiction("cow", recorded.cow.clone(), asked.cow.clone());
    }
    if recorded.store_type != asked.store_type {
        return contradiction(
            "type",
            recorded.store_type.letters().to_owned(),
            asked.store_type.letters().to_owned(),
        );
    }
    match (recorded.chunk_size, asked.chunk_size) {
        (Some(r), Some(a)) if r != a => contradiction("chunk-size", in_words(r), in_words(a)),
        _ => Ok(()),
    }
}

fn start_merge(
    name: &str,
    options: &ServeOptions,
    state: &mut VolumeState,
) -> Result<(), PlanError> {
    let Some(record) = state.snapshot(name) else {
        return Err(unknown("merge", name, state));
    };
    if record.spec.store_type == StoreType::N {
        return Err(PlanError::Transient(name.into()));
    }
    if !record.valid {
        return Err(PlanError::Invalid(name.into()));
    }
    if let Some(running) = &mut state.merge {
        if running.snapshot != name {
            return Err(PlanError::OtherMerge {
                asked: name.into(),
                running: running.snapshot.clone(),
            });
        }
        if let Some(writes) = options.merge_writes {
            running.writes = writes.into();
        }
        return Ok(());
    }
    let rate = match state.rollback_at_reset.take() {
        Some(pending) if pending.snapshot != name => {
            return Err(PlanError::OtherRollback {
                asked: name.into(),
                pending: pending.snapshot,
            });
        }
        // The pending rollback is this merge.
        Some(pending) => pending.rate,
        None => 0,
    };
    state.merge = Some(MergeRecord {
        snapshot: name.into(),
        follow: false,
        writes: options.merge_writes.unwrap_or_default().into(),
        paused: false,
        rate,
    });
    Ok(())
}

fn sockets(options: &ServeOptions, state: &mut VolumeState) -> Result<(), PlanError> {
    match &options.endpoint {
        Some(Endpoint::Path(path)) => state.socket = Some(absolute(path)?),
        // A later start cannot find a descriptor again, so nothing is recorded.
        Some(Endpoint::Fd(_) | Endpoint::Connect(_) | Endpoint::Passed(_)) => state.socket = None,
        None => {}
    }
    for (name, _) in &options.snapshot_endpoints {
        if let Some(record) = state.snapshot_mut(name) {
            record.spec.socket = None;
        }
    }
    if options.control_fd.is_some() || options.control_passed || options.no_control {
        state.control = None;
    }
    if let Some(control) = &options.control {
        state.control = Some(absolute(control)?);
    }
    if let Some(qmp) = &options.qmp {
        // An empty path removes the recorded one.
        state.qmp = match qmp.as_os_str().is_empty() {
            true => None,
            false => Some(absolute(qmp)?),
        };
    }
    state.blocks.update(&options.blocks);
    state.socket_access.update(&options.socket_access);
    state.control_access.update(&options.control_access);
    if let Some(serial) = &options.serial {
        state.serial = Some(serial.clone());
    }
    let mut all: Vec<(&str, String)> = Vec::new();
    let origin = state
        .socket
        .iter()
        .map(|s| (s.as_str(), "the origin".to_owned()));
    // The options may name one of these for the origin.
    let followed = state
        .followed_sockets
        .iter()
        .filter(|s| state.socket.as_ref() != Some(s));
    let followed = followed.map(|s| (s.as_str(), "the origin (since a live commit)".to_owned()));
    let control = state
        .control
        .iter()
        .map(|s| (s.as_str(), "the control interface".to_owned()));
    let snapshots = state.snapshots.iter().filter_map(|s| {
        let socket = s.spec.socket.as_deref()?;
        Some((socket, format!("snapshot {}", s.spec.name)))
    });
    for (path, what) in origin.chain(followed).chain(control).chain(snapshots) {
        if let Some((_, first)) = all.iter().find(|(other, _)| *other == path) {
            return Err(PlanError::SocketTwice {
                path: path.to_owned(),
                first: first.clone(),
                second: what,
            });
        }
        all.push((path, what));
    }
    Ok(())
}

/// Refuses a plan that serves no socket at all.
pub fn check_served(options: &ServeOptions, plan: &Plan) -> Result<(), PlanError> {
    let state = &plan.state;
    let is_named = matches!(options.listed_as, Some(Wish::Exactly(_)));
    let served = options.endpoint.is_some()
        || is_named
        || options.control_fd.is_some()
        || options.control_passed
        || !options.snapshot_endpoints.is_empty()
        || state.socket.is_some()
        || state.control.is_some()
        || !state.followed_sockets.is_empty()
        || state.snapshots.iter().any(|s| s.spec.socket.is_some());
    match served {
        true => Ok(()),
        false if plan.foreign.is_empty() => Err(PlanError::Nothing),
        false => Err(PlanError::NothingOfItsOwn(plan.foreign.clone())),
    }
}

fn unknown(option: &'static str, name: &str, state: &VolumeState) -> PlanError {
    let known: Vec<&str> = state
        .snapshots
        .iter()
        .map(|s| s.spec.name.as_str())
        .collect();
    let known = if known.is_empty() {
        "none".into()
    } else {
        known.join(", ")
    };
    PlanError::Unknown {
        option,
        name: name.into(),
        known,
    }
}

/// `path` from the root, so that it means the same to a daemon that is started in another
/// directory.
pub fn absolute(path: &Path) -> Result<String, PlanError> {
    let failed = |reason: String| PlanError::Path {
        path: path.display().to_string(),
        reason,
    };
    let absolute = std::path::absolute(path).map_err(|e| failed(e.to_string()))?;
    // The state file and the control socket are JSON.
    absolute
        .into_os_string()
        .into_string()
        .map_err(|_| failed("it is not UTF-8".into()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
