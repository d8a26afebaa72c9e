//! From options to a served volume.

use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::options::{Endpoint, ServeOptions};
use super::preflight::{Checked, Sockets, cannot_forget, check};
use crate::control::ControlServer;
use crate::control::events::{EventLog, Happening};
use crate::daemon::DaemonError;
use crate::daemon::cow::PreparedCow;
use crate::daemon::cow::mark::{self as cow_mark, ToMark};
use crate::daemon::provenance::golden;
use crate::daemon::provenance::marking;
use crate::daemon::running::notices::Notices;
use crate::daemon::running::run::{Ended, finish, run};
use crate::daemon::running::signals::Signals;
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::daemon::volume::serials;
use crate::daemon::volume::turns::Turns;
use crate::daemon::volume::views::{View, ViewDescription, ViewSettings};
use crate::daemon::volume::{LiveVolume, Snapshot, Tables, VolumeFacts, lock};
use crate::engine::{ControlError, ControlRequest, Engine, OriginParams, PortRole, ViewId};
use crate::executor::Executor;
use crate::io::{IoEngine, open_disk};
use crate::merger::{Merger, MergerSettings};
use crate::units::SECTOR_SIZE;
use crate::virtio_blk::MAX_DISCARD_SECTORS;

/// Operations of the merger that are under way at once.
const MERGER_DEPTH: u32 = 128;

/// Serves the volume until SIGTERM or SIGINT.
///
/// Order: 1 everything is opened, locked and checked, sockets are bound, nothing
/// is written → 2 stores are made and put in order → 3 the state file says that
/// the volume runs → 4 the engine gets the snapshots, then the merge → 5 guests
/// and control clients are let in → 6 at the end all is drained and durable →
/// 7 the state file says that the volume does not run.
///
/// # Errors
/// What was refused, with the way out; nothing was changed then. Or what the
/// system did not let us do.
pub fn serve(options: ServeOptions) -> Result<(), DaemonError> {
    let signals = Signals::hold().map_err(|e| DaemonError::system("take over signals", e))?;
    let mut checked = check(&options)?;
    for remark in &checked.plan.remarks {
        tracing::warn!("{remark}");
    }
    let sockets = std::mem::take(&mut checked.sockets);
    let (volume, mut notices, prepared) = build(&options, checked)?;
    let control = open_up(&volume, prepared, sockets, &mut notices);
    let ended = match control {
        Ok(control) => match signals.release() {
            Ok(()) => run(&volume, control, &mut notices, &signals),
            Err(e) => Err(DaemonError::system("wait for signals", e)),
        },
        Err(error) => Err(error),
    };
    // A start that failed this late leaves the origin as it was, too.
    match ended {
        Ok(Ended::AtOnce) => Err(DaemonError::Killed),
        Ok(Ended::Drained) => finish(&volume),
        Ok(Ended::Undone) => Ok(()),
        // Left as a killed daemon leaves it: nobody knows what is durable.
        Err(error @ (DaemonError::NotDurable(_) | DaemonError::Killed)) => Err(error),
        Err(error) => {
            finish(&volume)?;
            Err(error)
        }
    }
}

/// Makes the stores, records the start and puts the volume together; the engine
/// knows no snapshot yet.
pub fn build(
    options: &ServeOptions,
    checked: Checked,
) -> Result<(Arc<LiveVolume>, Notices, Vec<PreparedSnapshot>), DaemonError> {
    let Checked {
        plan,
        state,
        origin,
        origin_device,
        device_string,
        devices,
        mut disk,
        snapshots,
        forget,
        ..
    } = checked;
    let mut volume_state = plan.state;
    give_up(forget, options.force)?;
    let mut prepared = Vec::new();
    for (planned, inspected) in snapshots {
        let name = planned.spec.name;
        let sectors = volume_state
            .snapshot(&name)
            .and_then(|s| s.length)
            .map_or(origin.sectors, |length| length / SECTOR_SIZE);
        let cow = inspected
            .prepare(sectors, &devices, &mut *disk)
            .map_err(|e| DaemonError::Refused(format!("snapshot {name}: {e}")))?;
        if state.path().is_none() {
            golden::note(&planned.spec.cow, &volume_state.origin);
        }
        if let Some(record) = volume_state.snapshot_mut(&name) {
            record.spec.chunk_size = Some(cow.chunk_size.bytes());
            record.spec.size = Some(cow.size);
            record.valid &= cow.store.valid;
            record.store = cow.file_identity();
        }
        prepared.push(PreparedSnapshot {
            name,
            valid: planned.valid,
            cow,
        });
    }
    drop(disk);
    let serial = volume_state
        .serial
        .clone()
        .unwrap_or_else(|| serials::of_path(&volume_state.origin.path));
    let rate = volume_state.merge.as_ref().map_or(0, |m| m.rate);
    let path = volume_state.origin.path.clone();
    let may_come_back = volume_state.guest_attached && volume_state.serves_origin();
    marking::identify(&mut volume_state)
        .map_err(|e| DaemonError::system("get random numbers", e))?;
    let mut state = state.begin(volume_state)?;
    marking::mark_all(&mut state, &options.origin, options.read_only);

    let engine = Engine::new(OriginParams {
        device: origin_device,
        sectors: origin.sectors,
    });
    let small = |role| -> io::Result<Executor> {
        Executor::new(
            &engine,
            role,
            open_disk(IoEngine::Threads, devices.clone(), 2)?,
        )
    };
    let failed = |e| DaemonError::system("start an I/O thread", e);
    let ops = small(PortRole::Control).map_err(failed)?;
    let mut notices = Notices::new(small(PortRole::Notices).map_err(failed)?);
    let turns = Turns::new(notices.executor().waker());
    let (io_engine, theirs) = (options.io_engine, devices.clone());
    let settings = MergerSettings {
        rate,
        ..MergerSettings::default()
    };
    let merger = Merger::start(
        &engine,
        move || open_disk(io_engine, theirs, MERGER_DEPTH),
        settings,
    )
    .map_err(|e| DaemonError::system("start the merger", e))?;
    let views = ViewSettings {
        io_engine,
        num_queues: options.num_queues,
        block_size: origin.block_size,
        serial,
    };
    let read_only = options.read_only;
    let merge_writes = options.merge_writes.unwrap_or_default();
    // With another way in, a descriptor whose front end has left is no end.
    let on_descriptor = matches!(options.endpoint, Some(Endpoint::Fd(_)))
        && state.state().control.is_none()
        && state
            .state()
            .snapshots
            .iter()
            .all(|s| s.spec.socket.is_none())
        && state.state().followed_sockets.is_empty();
    let facts = VolumeFacts {
        path,
        origin,
        origin_device,
        device_string,
        read_only,
        merge_writes,
        on_descriptor,
        views,
    };
    let volume = Arc::new_cyclic(|this| LiveVolume {
        this: this.clone(),
        facts,
        engine,
        devices,
        ops: Mutex::new(ops),
        state: Mutex::new(state),
        tables: Mutex::new(Tables::default()),
        merger: Mutex::new(Some(merger)),
        rollback_pending: AtomicBool::new(false),
        may_come_back: AtomicBool::new(may_come_back),
        stopping: Arc::default(),
        tidying: Mutex::new(Vec::new()),
        events: EventLog::default(),
        turns,
        watch: Mutex::new(None),
        #[cfg(test)]
        fail_handover: AtomicBool::new(false),
    });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    volume.events.tell(None, Happening::Started { version });
    Ok((volume, notices, prepared))
}

pub struct PreparedSnapshot {
    name: String,
    /// By the state file; the header may still say otherwise.
    valid: bool,
    cow: PreparedCow,
}

/// Gives the engine what it has to know, then lets guests and clients in.
pub fn open_up(
    volume: &Arc<LiveVolume>,
    prepared: Vec<PreparedSnapshot>,
    sockets: Sockets,
    notices: &mut Notices,
) -> Result<Option<ControlServer>, DaemonError> {
    let state: VolumeState = lock(&volume.state).state().clone();
    // Ours until all views are there: the end of a merge, which may come at once,
    // has a view to close or to take over.
    let mut ops = lock(&volume.ops);
    for snapshot in prepared {
        load(volume, &mut ops, snapshot, &state)?;
    }
    if let Some(merge) = &state.merge {
        let result = volume.start_merge(&mut ops, merge);
        result.map_err(|e| cannot_merge(&merge.snapshot, &e))?;
    }
    volume.refresh_pending();
    notices.turn(volume);
    notices.started();
    volume.say_stopped_guest();

    let failed = |e| DaemonError::system("start a view", e);
    let description = ViewDescription {
        id: ViewId::ORIGIN,
        snapshot: None,
        follows: false,
        sectors: volume.facts.origin.sectors,
        read_only: volume.facts.read_only,
        max_discard_sectors: MAX_DISCARD_SECTORS,
    };
    if let Some(socket) = sockets.origin {
        let view =
            View::start(volume, description, socket, state.socket.clone()).map_err(failed)?;
        lock(&volume.tables).origin_views.push(view);
        ready("origin view", state.socket.as_deref());
    }
    for (path, socket) in sockets.followed {
        let description = ViewDescription {
            read_only: description.read_only || state.read_only_sockets.contains(&path),
            ..description
        };
        let view = View::start(volume, description, socket, Some(path.clone())).map_err(failed)?;
        lock(&volume.tables).origin_views.push(view);
        ready("origin view", Some(&path));
    }
    for (name, socket) in sockets.snapshots {
        let Some(id) = lock(&volume.tables).snapshot(&name).map(|s| s.id) else {
            continue;
        };
        let path = state.snapshot(&name).and_then(|s| s.spec.socket.clone());
        volume
            .serve_snapshot(&name, id, socket, path.clone())
            .map_err(failed)?;
        ready(&format!("snapshot {name}"), path.as_deref());
    }
    drop(ops);
    let control = match sockets.control {
        Some(socket) => {
            let server = ControlServer::start_on(socket, volume.clone())
                .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
            ready("control", state.control.as_deref());
            Some(server)
        }
        None => None,
    };
    Ok(control)
}

/// Gives a snapshot to the engine. Nothing flows yet, so this is no cut that
/// anybody could notice.
fn load(
    volume: &LiveVolume,
    ops: &mut Executor,
    snapshot: PreparedSnapshot,
    state: &VolumeState,
) -> Result<(), DaemonError> {
    let PreparedSnapshot { name, valid, cow } = snapshot;
    let Some(record) = state.snapshot(&name) else {
        return Ok(());
    };
    let mut store = cow.store;
    store.valid &= valid;
    if !store.valid {
        tracing::warn!(snapshot = %name, "the snapshot is invalid; remove it with `snapback remove {name}`");
    }
    let device = cow.open.keep();
    let id = {
        let mut tables = lock(&volume.tables);
        let id = tables.next_id();
        tables.snapshots.push(Snapshot {
            id,
            spec: record.spec.clone(),
            device,
            identity: cow.identity,
            device_string: cow.device_string,
            sectors: store.sectors,
            chunk_size: cow.chunk_size,
            view: None,
        });
        id
    };
    volume
        .drive(
            ops,
            ControlRequest::AddSnapshot {
                snapshot: id,
                store: Box::new(store),
            },
        )
        .map_err(|e| DaemonError::Refused(format!("snapshot {name} cannot be loaded: {e}; when the cause is removed, the same command goes on")))
}

fn cannot_merge(name: &str, error: &ControlError) -> DaemonError {
    DaemonError::Refused(format!(
        "the merge of {name} cannot go on: {error}. The origin holds a part of it and is a mixture of two moments. Bring \
         the COW back as it was, or give the merge up with --forget {name}"
    ))
}

/// Marks the stores of forgotten snapshots, before the records go, so that
/// nobody takes them for snapshots of this origin again.
fn give_up(forget: Vec<(SnapshotRecord, ToMark)>, force: bool) -> Result<(), DaemonError> {
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
                "forgotten; no store was marked invalid: if it turns up again, do not use it"),
        }
    }
    Ok(())
}

/// Tells whoever started us that front ends can connect. Nobody reading is no error.
fn ready(what: &str, at: Option<&str>) {
    let mut out = io::stdout().lock();
    let _ = match at {
        Some(path) => writeln!(out, "{what} at {path}"),
        None => writeln!(out, "{what} at the given descriptor"),
    };
    let _ = out.flush();
}
