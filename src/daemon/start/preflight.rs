//! The first half of a start: everything is opened, locked and checked, so that a start
//! that is refused has changed nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blocks;
use super::cow_check::{CowChecks, cannot_forget, check_absent_twice};
use super::missing_state;
use super::options::ServeOptions;
use super::plan::{Plan, PlannedSnapshot, plan};
use super::sockets::Sockets;
use crate::daemon::DaemonError;
use crate::daemon::cow::mark::{self as cow_mark, ToMark};
use crate::daemon::cow::{InspectedCow, OriginFacts};
use crate::daemon::identity::OriginIdentity;
use crate::daemon::provenance::placement::Placement;
use crate::daemon::state::place::default_state_path;
use crate::daemon::state::{OpenedState, SnapshotRecord, VolumeState};
use crate::daemon::waiting;
use crate::io::{BlockFile, DeviceId, Devices, Disk, IoEngine, Lock, OpenOptions, open_disk};
use crate::socket_access::SocketAccess;
use crate::units::SECTOR_SIZE;
use crate::virtio_blk::Topology;

/// Reads under way at once while stores are loaded.
pub const LOAD_READS: u32 = 4;

/// Everything that was checked, and locked, but not written.
pub struct Checked {
    pub plan: Plan,
    pub state: OpenedState,
    pub origin: OriginFacts,
    /// The block sizes of all views.
    pub topology: Topology,
    pub origin_device: DeviceId,
    /// `major:minor` of the origin.
    pub device_string: String,
    pub devices: Arc<Devices>,
    /// For the work at the start; belongs to this thread.
    pub disk: Box<dyn Disk + Send>,
    pub snapshots: Vec<(PlannedSnapshot, InspectedCow)>,
    /// Snapshots to forget, with what is left of their stores.
    pub forget: Vec<(SnapshotRecord, ToMark)>,
    pub sockets: Sockets,
    /// Of the sockets for front ends.
    pub socket_access: SocketAccess,
}

/// The origin and the state file, open and locked.
struct Opened {
    file: BlockFile,
    identity: OriginIdentity,
    state: OpenedState,
    placement: Placement,
    plan: Plan,
}

/// Checks everything that `options` and the state file name, but binds no socket, and gives up no
/// rights.
pub fn check_without_guests(options: &ServeOptions) -> Result<Checked, DaemonError> {
    let Opened {
        file,
        identity,
        state,
        placement,
        mut plan,
    } = {
        let origin = options.origin.display();
        let _waiting = waiting::on(format!("the origin {origin} to be opened and looked at"));
        open(options)?
    };
    let topology = block_sizes(&file, &state, &mut plan)?;
    let origin = facts(&file, topology);
    let device_string = file.device_string();
    let devices = Devices::new();
    let origin_device = devices.add(file);
    let mut disk = open_disk(IoEngine::Threads, devices.clone(), LOAD_READS)
        .map_err(|e| DaemonError::system("start an I/O thread", e))?;

    let mut checks = CowChecks {
        options,
        recorded: state.recorded.as_ref(),
        placement: &placement,
        origin: &origin,
        identity: &identity,
        has_state_file: state.path().is_some(),
        merging: plan.state.merge.as_ref().map(|m| m.snapshot.clone()),
        devices: &devices,
        used: Vec::new(),
        absent: Vec::new(),
        remarks: Vec::new(),
    };
    let mut snapshots = Vec::new();
    for planned in &plan.snapshots {
        let cow = &planned.spec.cow;
        let _waiting = waiting::on(format!("the COW {cow} to be opened and read"));
        let inspected = checks.check(planned, &mut *disk)?;
        snapshots.extend(inspected.map(|inspected| (planned.clone(), inspected)));
    }
    check_absent_twice(&plan.snapshots)?;
    let forget = check_forgotten(&plan.forget, &checks)?;
    let CowChecks {
        absent, remarks, ..
    } = checks;
    plan.remarks.extend(remarks);
    for (name, why) in absent {
        plan.remarks.push(format!(
            "snapshot {name} was invalid and is forgotten now: {why}"
        ));
        plan.snapshots.retain(|s| s.spec.name != name);
        plan.state.drop_snapshot(&name);
    }
    Ok(Checked {
        plan,
        state,
        origin,
        topology,
        origin_device,
        device_string,
        devices,
        disk,
        snapshots,
        forget,
        sockets: Sockets::default(),
        socket_access: SocketAccess::default(),
    })
}

/// Opens the origin and the state file, and makes the plan.
fn open(options: &ServeOptions) -> Result<Opened, DaemonError> {
    let path = &options.origin;
    let open = match (options.read_only && !options.exclusive, options.lock()) {
        (true, Lock::Exclusive) => OpenOptions::read_only(),
        (read_only, lock) => OpenOptions {
            read_only,
            lock,
            ..OpenOptions::default()
        },
    };
    let file = BlockFile::open(path, open).map_err(|e| match e.is_in_use() {
        true => DaemonError::InUse(format!("origin {e}")),
        false => DaemonError::Refused(format!("origin {e}")),
    })?;
    let unidentified = |e| DaemonError::system("identify the origin", e);
    let identity = OriginIdentity::of_open(&file).map_err(unidentified)?;
    let state = open_state(options)?;
    let placement = Placement::look(&file, state.path(), state.recorded.as_ref());
    let suspicion = missing_state::refuse_cow(&file, placement.mark.as_ref())?;
    let mut options = options.clone();
    let found = match (state.path(), &state.recorded) {
        (Some(place), None) => {
            missing_state::check(&options, &identity.storage(), place, &placement)?
        }
        (Some(_), Some(recorded)) if options.accept_changes || !options.forget.is_empty() => {
            missing_state::check_older(&options, recorded, &placement)?
        }
        (Some(_), Some(_)) | (None, _) => missing_state::Findings::default(),
    };
    // These are known from their COWs only, not from the state file.
    let is_found = |name: &String| found.forget.iter().any(|s| s.spec.name == *name);
    options.forget.retain(|name| !is_found(name));
    let mut plan = plan(&options, state.recorded.clone(), &identity, &placement)?;
    plan.remarks.extend(suspicion);
    plan.remarks.extend(found.remarks);
    plan.forget.extend(found.forget);
    Ok(Opened {
        file,
        identity,
        state,
        placement,
        plan,
    })
}

fn facts(file: &BlockFile, topology: Topology) -> OriginFacts {
    OriginFacts {
        identity: file.identity(),
        sectors: file.sectors(),
        block_size: topology.logical,
        read_only: file.is_read_only(),
    }
}

/// The block sizes that guests see; a remark if they have changed.
fn block_sizes(
    file: &BlockFile,
    state: &OpenedState,
    plan: &mut Plan,
) -> Result<Topology, DaemonError> {
    let origin = blocks::Origin {
        path: &plan.state.origin.path,
        size: file.sectors() * SECTOR_SIZE,
        block_size: file.block_size(),
        limits: file.limits(),
    };
    let topology =
        blocks::topology(origin, &plan.state).map_err(|e| DaemonError::Refused(e.to_string()))?;
    let before = state.recorded.as_ref().map(|state| state.blocks);
    let before = before.unwrap_or_default();
    let remark = blocks::remark(&before, &plan.state, file.block_size(), topology.logical);
    plan.remarks.extend(remark);
    Ok(topology)
}

/// Opens what is left of the stores that are to be forgotten.
fn check_forgotten(
    forget: &[SnapshotRecord],
    checks: &CowChecks<'_>,
) -> Result<Vec<(SnapshotRecord, ToMark)>, DaemonError> {
    let forget = forget.iter().map(|record| {
        let name = &record.spec.name;
        // The file at its path may belong to another snapshot, which needs it.
        let left = match checks.foreign(name) {
            Some(why) => ToMark::Absent(format!("its COW {why}")),
            None => {
                let cow = Path::new(&record.spec.cow);
                match cow_mark::open(cow, checks.origin, &checks.used, checks.options.lock()) {
                    Err(error) if checks.options.force => ToMark::Absent(error.to_string()),
                    left => left.map_err(|error| cannot_forget(name, &error))?,
                }
            }
        };
        Ok((record.clone(), left))
    });
    forget.collect()
}

/// Where the state file is or would be; `None`: there is none.
pub fn state_path(options: &ServeOptions) -> Result<Option<PathBuf>, DaemonError> {
    let found = |e| DaemonError::system("find the place of the state file", e);
    Ok(match &options.state {
        Some(path) => Some(std::path::absolute(path).map_err(found)?),
        // Many daemons may share a read-only origin, so its default file is not used.
        None if options.read_only => None,
        None => Some(default_state_path(&options.origin).map_err(found)?),
    })
}

/// Opens the state file, or decides that there is none.
fn open_state(options: &ServeOptions) -> Result<OpenedState, DaemonError> {
    let path = state_path(options)?;
    if path.is_none() {
        let found = |e| DaemonError::system("find the place of the state file", e);
        refuse_half_merged(&default_state_path(&options.origin).map_err(found)?)?;
    }
    match options.only_look {
        true => Ok(OpenedState::look(path.as_deref())?),
        false => Ok(OpenedState::open(path.as_deref())?),
    }
}

/// Refuses a read-only origin in the middle of a merge, which is not an image of any
/// moment. `path`: its default state file.
fn refuse_half_merged(path: &Path) -> Result<(), DaemonError> {
    // A file that cannot be read concerns only those who write the origin.
    match VolumeState::peek(path).and_then(|recorded| recorded.merge) {
        Some(merge) => Err(DaemonError::Refused(format!(
            "a merge of {} into this origin is not finished ({}): serve it without --read-only until it is",
            merge.snapshot,
            path.display()
        ))),
        None => Ok(()),
    }
}
