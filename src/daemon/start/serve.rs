//! The start of a daemon as a whole.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::build::{PreparedSnapshot, build_volume};
use super::confine::check;
use super::incoming::Incoming;
use super::metrics;
use super::options::ServeOptions;
use super::preflight::Checked;
use super::sockets::{GIVEN, Sockets, announce, place, with_passed};
use crate::control::registry::Noted;
use crate::control::{ControlServer, ControlSocket};
use crate::daemon::DaemonError;
use crate::daemon::running::event_command::{EventRunner, Launcher};
use crate::daemon::running::manager::{Manager, Reload};
use crate::daemon::running::notices::Notices;
use crate::daemon::running::run::run;
use crate::daemon::running::signals::Signals;
use crate::daemon::running::stop::{Ended, finish};
use crate::daemon::state::VolumeState;
use crate::daemon::volume::views::{Entrance, ServedView, ViewDescription};
use crate::daemon::volume::{LiveVolume, Service, Snapshot, lock};
use crate::engine::{ControlError, ControlRequest, ViewId};
use crate::executor::Executor;
use crate::io::hardly_wait_for_locks;
use crate::sandbox::{self, Sandbox};
use crate::supervisor;
use crate::vhost::raise_limit;
use crate::virtio_blk::MAX_DISCARD_SECTORS;

/// Serves the volume until SIGTERM or SIGINT. SIGHUP calls `reload`, if there is one.
///
/// Order: 1 everything is opened, locked and checked, sockets are bound, and nothing is
/// written → 2 stores are made and completed → 3 the state file says that the volume is
/// served → 4 the engine gets the snapshots, then the merge → 5 guests and control clients
/// can connect → 6 at the end everything is drained and durable → 7 the state file says
/// that the volume is not served → 8 everything is unlocked → 9 the last events are handed on.
///
/// # Errors
/// The start was refused, in which case nothing was changed and the message says what to
/// do; or a system call failed.
pub fn serve(options: ServeOptions, reload: Option<Reload>) -> Result<(), DaemonError> {
    supervisor::take_over();
    let options = with_passed(options);
    let launcher = options.on_event.as_ref().map(Launcher::start).transpose();
    let launcher = launcher.map_err(|e| DaemonError::system("run a command on events", e))?;
    let mut on_event = None;
    let sandbox = sandbox::begin(&options.sandbox)?;
    let ended = serve_volume(&options, reload, sandbox.as_ref(), launcher, &mut on_event);
    if matches!(ended, Err(DaemonError::Killed)) {
        // Nothing is waited for.
        std::mem::forget(on_event);
    }
    ended
}

/// `on_event`: what hands events on to the `launcher`, once the volume is there.
fn serve_volume(
    options: &ServeOptions,
    reload: Option<Reload>,
    sandbox: Option<&Sandbox>,
    launcher: Option<Launcher>,
    on_event: &mut Option<EventRunner>,
) -> Result<(), DaemonError> {
    let signals =
        Signals::hold(reload.is_some()).map_err(|e| DaemonError::system("take over signals", e))?;
    if let Err(e) = raise_limit() {
        tracing::warn!("the limit of open descriptors cannot be raised: {e}");
    }
    let metrics = metrics::bind(options.metrics)?;
    let Some(mut checked) = open(options, sandbox, &signals)? else {
        return Ok(());
    };
    for remark in &checked.plan.remarks {
        tracing::warn!("{remark}");
    }
    let mut sockets = std::mem::take(&mut checked.sockets);
    let listed = Listed::of(&mut sockets);
    let (volume, mut notices, prepared) = build_volume(options, checked, Service::Daemon)?;
    hardly_wait_for_locks();
    if let Some(enforced) = sandbox::enforced() {
        tracing::info!("sandbox: {enforced}");
    }
    if let Some(launcher) = launcher {
        let control = listed.control.as_deref();
        let runner = EventRunner::start(volume.events.clone(), launcher, control);
        *on_event = Some(runner.map_err(|e| DaemonError::system("run a command on events", e))?);
    }
    let control = start_serving(&volume, prepared, sockets, &mut notices);
    let serving = control.and_then(|control| Ok((control, metrics::serve(metrics, &volume)?)));
    let ended = match serving {
        Ok((control, _metrics)) => match signals.release() {
            Ok(()) => {
                let mut manager = Manager::new(reload);
                manager.ready(&volume, control.as_ref());
                run(&volume, control, &mut notices, &signals, &mut manager)
            }
            Err(e) => Err(DaemonError::system("wait for signals", e)),
        },
        Err(error) => Err(error),
    };
    drop(listed);
    match ended {
        Ok(Ended::AtOnce) => Err(DaemonError::Killed),
        Ok(Ended::Drained) => finish(&volume),
        Ok(Ended::NotDrained) => Ok(()),
        // Left as after a kill, because it is unknown what is durable.
        Err(error @ (DaemonError::NotDurable(_) | DaemonError::Killed)) => Err(error),
        // A start that failed this late has not written the origin.
        Err(
            error @ (DaemonError::Refused(_)
            | DaemonError::InUse(_)
            | DaemonError::Plan(_)
            | DaemonError::State(_)
            | DaemonError::System { .. }),
        ) => {
            finish(&volume)?;
            Err(error)
        }
    }
}

/// Opens and checks everything. `None`: a signal came while the daemon waited for a guest.
fn open(
    options: &ServeOptions,
    sandbox: Option<&Sandbox>,
    signals: &Signals,
) -> Result<Option<Checked>, DaemonError> {
    let Some(from) = &options.incoming else {
        return Ok(Some(check(options, &[], sandbox)?));
    };
    let incoming = Incoming::open(options, sandbox)?;
    let taken = incoming.take_over(options, from, signals, sandbox)?;
    Ok(taken.map(|(mut checked, incoming)| {
        checked.sockets.add_early(incoming.into_views());
        checked
    }))
}

/// Gives the engine its snapshots and the merge, then lets guests and control clients
/// connect.
pub fn start_serving(
    volume: &Arc<LiveVolume>,
    prepared: Vec<PreparedSnapshot>,
    sockets: Sockets,
    notices: &mut Notices,
) -> Result<Option<ControlServer>, DaemonError> {
    let state: VolumeState = lock(&volume.state).state().clone();
    // Held until all views are there: the end of a merge, which may come at once, closes
    // or takes over a view.
    let mut ops = lock(&volume.ops);
    for snapshot in prepared {
        load(volume, &mut ops, snapshot, &state)?;
    }
    if let Some(merge) = &state.merge {
        let result = volume.start_merge(&mut ops, merge);
        result.map_err(|e| cannot_merge(&merge.snapshot, &e))?;
    }
    volume.refresh_pending();
    notices.process(volume);
    notices.started();
    volume.report_stopped_guest();

    let Sockets {
        origin,
        followed,
        snapshots,
        control,
        permission,
        noted: _,
    } = sockets;
    start_origin_views(volume, &state, origin, followed)?;
    for (name, socket) in snapshots {
        let Some(id) = lock(&volume.tables).snapshot(&name).map(|s| s.id) else {
            continue;
        };
        let path = state.snapshot(&name).and_then(|s| s.spec.socket.clone());
        let place = place(socket.connects_to(), path.as_deref());
        volume
            .serve_snapshot(&name, id, socket, path.clone())
            .map_err(cannot_start_view)?;
        announce(&format!("snapshot {name}"), &place);
    }
    drop(ops);
    let Some(socket) = control else {
        return Ok(None);
    };
    let place = socket.place().map(|place| place.display().to_string());
    let at = place.as_deref().unwrap_or(GIVEN);
    let server = ControlServer::start_on(socket, volume.clone(), permission)
        .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
    announce("control", &format!("at {at}"));
    Ok(Some(server))
}

/// How clients find this daemon, until it does not answer any longer.
struct Listed {
    _noted: Option<Noted>,
    /// The control socket.
    control: Option<PathBuf>,
}

impl Listed {
    fn of(sockets: &mut Sockets) -> Self {
        Self {
            _noted: sockets.noted.take(),
            control: sockets.control.as_ref().and_then(ControlSocket::place),
        }
    }
}

fn start_origin_views(
    volume: &Arc<LiveVolume>,
    state: &VolumeState,
    origin: Option<Entrance>,
    followed: Vec<(String, Entrance)>,
) -> Result<(), DaemonError> {
    let read_only = volume.facts.read_only;
    let start = |socket: Entrance, path: Option<String>, read_only| -> Result<(), DaemonError> {
        let description = ViewDescription {
            id: ViewId::ORIGIN,
            snapshot: None,
            follows: false,
            sectors: volume.engine.origin_sectors(),
            read_only,
            max_discard_sectors: MAX_DISCARD_SECTORS,
        };
        let place = place(socket.connects_to(), path.as_deref());
        let view = ServedView::start(volume.this.clone(), description, socket, path)
            .map_err(cannot_start_view)?;
        lock(&volume.tables).origin_views.push(view);
        announce("origin view", &place);
        Ok(())
    };
    if let Some(socket) = origin {
        start(socket, state.socket.clone(), read_only)?;
    }
    for (path, socket) in followed {
        let read_only = read_only || state.read_only_sockets.contains(&path);
        start(socket, Some(path), read_only)?;
    }
    Ok(())
}

/// Gives a snapshot to the engine. No guest is connected yet, so the cut that this
/// implies has no effect.
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
            deferral: cow.record,
            view: None,
        });
        id
    };
    let request = ControlRequest::AddSnapshot {
        snapshot: id,
        store: Box::new(store),
    };
    volume.drive(ops, request).map_err(|e| {
        DaemonError::Refused(format!(
            "snapshot {name} cannot be loaded: {e}; remove the cause and repeat the same command"
        ))
    })
}

fn cannot_start_view(error: io::Error) -> DaemonError {
    DaemonError::system("start a view", error)
}

fn cannot_merge(name: &str, error: &ControlError) -> DaemonError {
    DaemonError::Refused(format!(
        "the merge of {name} cannot continue: {error}. The origin holds a part of the snapshot and is a mixture of two \
         moments. Restore the COW as it was, or give the merge up with --forget {name}"
    ))
}
