//! From checked options to a volume: stores are made, the start is recorded, and the
//! parts are put together.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::cow_check::cannot_forget;
use super::options::{Endpoint, ServeOptions};
use super::plan::PlannedSnapshot;
use super::preflight::Checked;
use crate::control::events::{EventKind, EventLog};
use crate::daemon::DaemonError;
use crate::daemon::cow::mark::{self as cow_mark, ToMark};
use crate::daemon::cow::{InspectedCow, OpenRecord, PreparedCow};
use crate::daemon::provenance::{golden, marking};
use crate::daemon::running::notices::Notices;
use crate::daemon::state::{SnapshotRecord, StateFile, VolumeState};
use crate::daemon::volume::notice_barrier::NoticeBarrier;
use crate::daemon::volume::serials;
use crate::daemon::volume::views::ViewSettings;
use crate::daemon::volume::{LiveVolume, Service, Tables, VolumeFacts};
use crate::engine::{Engine, OriginParams, PortRole};
use crate::executor::Executor;
use crate::io::{Devices, Disk, IoEngine, open_disk};
use crate::merger::{Merger, MergerSettings};
use crate::units::SECTOR_SIZE;
use crate::virtio_blk::Topology;

/// Operations that the merger's disk has in flight at a time.
const MERGER_DEPTH: u32 = 128;

/// A snapshot of the state file that the engine does not have yet.
pub struct PreparedSnapshot {
    pub name: String,
    /// As the state file says; the header may still say otherwise.
    pub valid: bool,
    pub cow: PreparedCow,
}

fn view_settings(options: &ServeOptions, topology: Topology, serial: String) -> ViewSettings {
    ViewSettings {
        io_engine: options.io_engine,
        polling: options.polling,
        any_memory: options.any_memory,
        num_queues: options.num_queues,
        topology,
        serial,
    }
}

/// Makes the stores, records the start and builds the volume. The engine has no snapshot
/// yet.
pub fn build_volume(
    options: &ServeOptions,
    checked: Checked,
    service: Service,
) -> Result<(Arc<LiveVolume>, Notices, Vec<PreparedSnapshot>), DaemonError> {
    let Checked {
        plan,
        state,
        origin,
        topology,
        origin_device,
        device_string,
        devices,
        mut disk,
        snapshots,
        forget,
        sockets: _,
        socket_access,
    } = checked;
    let mut volume_state = plan.state;
    invalidate_forgotten(forget, options.force)?;
    let is_remembered = state.path().is_some();
    let mut prepared = Vec::new();
    for (planned, inspected) in snapshots {
        let snapshot = prepare(
            planned,
            inspected.remembered(is_remembered),
            origin.sectors,
            &mut volume_state,
            &devices,
            &mut *disk,
        )?;
        if !is_remembered && let Some(record) = volume_state.snapshot(&snapshot.name) {
            golden::note(&record.spec.cow, &volume_state.origin);
        }
        prepared.push(snapshot);
    }
    drop(disk);
    let path = volume_state.origin.path.clone();
    let serial = volume_state.serial.clone();
    let serial = serial.unwrap_or_else(|| serials::of_path(&path));
    let may_come_back = may_come_back(options, &volume_state);
    marking::identify(&mut volume_state)
        .map_err(|e| DaemonError::system("get random numbers", e))?;
    let mut state = state.begin(volume_state)?;
    marking::mark_all(&mut state, &options.origin, options.read_only);

    let facts = VolumeFacts {
        service,
        path,
        origin_device,
        device_string,
        read_only: options.read_only,
        merge_writes: options.merge_writes.unwrap_or_default(),
        on_descriptor: is_on_descriptor_only(options, state.state()),
        views: view_settings(options, topology, serial),
        socket_access,
        origin,
    };
    let (volume, notices) = assemble(facts, state, devices, may_come_back)?;
    let version = env!("CARGO_PKG_VERSION").into();
    volume.events.publish(None, EventKind::Started { version });
    Ok((volume, notices, prepared))
}

/// Makes one store, and updates its record.
fn prepare(
    planned: PlannedSnapshot,
    inspected: InspectedCow,
    origin_sectors: u64,
    state: &mut VolumeState,
    devices: &Arc<Devices>,
    disk: &mut dyn Disk,
) -> Result<PreparedSnapshot, DaemonError> {
    let name = planned.spec.name;
    let sectors = state
        .snapshot(&name)
        .and_then(|s| s.length)
        .map_or(origin_sectors, |length| length / SECTOR_SIZE);
    let cow = inspected
        .prepare(sectors, origin_sectors, devices, disk)
        .map_err(|e| DaemonError::Refused(format!("snapshot {name}: {e}")))?;
    if let Some(record) = state.snapshot_mut(&name) {
        record.spec.chunk_size = Some(cow.chunk_size.bytes());
        record.spec.size = Some(cow.size);
        record.valid &= cow.store.valid;
        record.store = cow.file_identity();
        record.unflushed = cow.record.as_ref().and_then(OpenRecord::note);
    }
    Ok(PreparedSnapshot {
        name,
        valid: planned.valid,
        cow,
    })
}

/// Whether a guest may still wait for a daemon, and reach this one.
fn may_come_back(options: &ServeOptions, state: &VolumeState) -> bool {
    state.guest_attached && (state.serves_origin() || options.endpoint.is_some())
}

/// Whether a descriptor is the only way in, so that the daemon ends with its front end.
fn is_on_descriptor_only(options: &ServeOptions, state: &VolumeState) -> bool {
    let mut snapshots = state.snapshots.iter();
    matches!(options.endpoint, Some(Endpoint::Fd(_)))
        && state.control.is_none()
        && options.control_fd.is_none()
        && options.snapshot_endpoints.is_empty()
        && snapshots.all(|s| s.spec.socket.is_none())
        && state.followed_sockets.is_empty()
}

/// Starts the engine and the merger, and puts the volume together.
fn assemble(
    facts: VolumeFacts,
    state: StateFile,
    devices: Arc<Devices>,
    may_come_back: bool,
) -> Result<(Arc<LiveVolume>, Notices), DaemonError> {
    let engine = Engine::new(OriginParams {
        device: facts.origin_device,
        sectors: facts.origin.sectors,
    });
    let executor = |role| -> io::Result<Executor> {
        let disk = open_disk(IoEngine::Threads, devices.clone(), 2)?;
        Executor::new(&engine, role, disk)
    };
    let failed = |e| DaemonError::system("start an I/O thread", e);
    let ops = executor(PortRole::Control).map_err(failed)?;
    let mut notices = Notices::new(executor(PortRole::Notices).map_err(failed)?);
    let notice_barrier = NoticeBarrier::new(notices.executor().waker());
    let rate = state.state().merge.as_ref().map_or(0, |m| m.rate);
    let (io_engine, merger_devices) = (facts.views.io_engine, devices.clone());
    let merger = Merger::start(
        &engine,
        move || open_disk(io_engine, merger_devices, MERGER_DEPTH),
        MergerSettings {
            rate,
            ..MergerSettings::default()
        },
    )
    .map_err(|e| DaemonError::system("start the merger", e))?;
    let volume = Arc::new_cyclic(|this| LiveVolume {
        this: this.clone(),
        facts,
        engine,
        devices,
        ops: Mutex::new(ops),
        shown: Mutex::new(state.state().clone()),
        state: Mutex::new(state),
        tables: Mutex::new(Tables::default()),
        merger: Mutex::new(Some(merger)),
        rollback_pending: AtomicBool::new(false),
        may_come_back: AtomicBool::new(may_come_back),
        stopping: Arc::default(),
        released: Arc::default(),
        merge_ends: Mutex::new(Vec::new()),
        events: Arc::new(EventLog::default()),
        notice_barrier,
        watch: Mutex::new(None),
        kept_cow: Mutex::new(None),
        #[cfg(test)]
        fail_handover: AtomicBool::new(false),
    });
    Ok((volume, notices))
}

/// Marks the stores of forgotten snapshots invalid before their records are dropped, so
/// that they cannot be mistaken for snapshots of this origin again.
fn invalidate_forgotten(
    forget: Vec<(SnapshotRecord, ToMark)>,
    force: bool,
) -> Result<(), DaemonError> {
    for (record, left) in forget {
        let (name, cow) = (&record.spec.name, &record.spec.cow);
        let unmarked = match left {
            ToMark::Absent(why) => Some(why),
            ToMark::Open(file) => match cow_mark::mark(&file) {
                Ok(()) => None,
                Err(error) if force => Some(error.to_string()),
                Err(error) => return Err(cannot_forget(name, &error)),
            },
        };
        match unmarked {
            None => tracing::warn!(snapshot = %name, %cow, "forgotten; its COW can be removed"),
            Some(why) => tracing::warn!(snapshot = %name, %cow, %why,
                "forgotten, but its store was not marked invalid: do not use the COW if it appears again"),
        }
    }
    Ok(())
}
