//! The main loop, and the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use std::os::fd::AsFd;

use super::notices::{Notices, RETRY};
use super::signals::Signals;
use crate::control::ControlServer;
use crate::control::api::StoreType;
use crate::control::events::Happening;
use crate::daemon::DaemonError;
use crate::daemon::cow;
use crate::daemon::identity::StorageIdentity;
use crate::daemon::volume::{LiveVolume, lock};
use crate::engine::{ControlError, ControlRequest};
use crate::event_flag::EventFlag;
use crate::io::DeviceId;

/// How [`run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was accepted is done and durable.
    Drained,
    /// A second signal came while the first was being obeyed.
    AtOnce,
    /// Guests' requests took too long, and were left to the next start.
    Undone,
}

/// How long the views may take to drain, after which the daemon leaves them as if it
/// had been killed: a service manager's patience ends, too, and the next start loses
/// nothing either way.
const PATIENCE: Duration = Duration::from_millis(800);

/// How often to look whether the only front end, on a given descriptor, has left.
const PRESENCE: Duration = Duration::from_millis(250);

/// Answers the engine's notices until a signal comes, then until all is drained.
pub fn run(
    volume: &Arc<LiveVolume>,
    control: Option<ControlServer>,
    notices: &mut Notices,
    signals: &Signals,
) -> Result<Ended, DaemonError> {
    let mut control = Some(control);
    let failed = |e| DaemonError::system("stop in order", e);
    let drained = Arc::new(EventFlag::new().map_err(failed)?);
    let mut stopper: Option<std::thread::JoinHandle<Result<Ended, ControlError>>> = None;
    loop {
        notices.turn(volume);
        let count = signals.count();
        if count > 1 {
            tracing::warn!("told to stop again: leaving without draining, as if killed");
            return Ok(Ended::AtOnce);
        }
        if let Some(thread) = stopper.take_if(|t| t.is_finished()) {
            notices.turn(volume);
            return match thread.join() {
                Ok(Ok(Ended::Undone)) => {
                    // Its end would wait for what is left undone.
                    std::mem::forget(Arc::clone(volume));
                    Ok(Ended::Undone)
                }
                Ok(Ok(ended)) => Ok(ended),
                Ok(Err(error)) => Err(DaemonError::NotDurable(error)),
                Err(_) => Err(DaemonError::Killed),
            };
        }
        if (count == 1 || volume.is_deserted())
            && let Some(control) = control.take()
        {
            tracing::info!("stopping");
            volume.stopping.store(true, Ordering::Release);
            volume.events.tell(None, Happening::Stopping);
            let (volume, drained) = (volume.clone(), drained.clone());
            let spawned = std::thread::Builder::new()
                .name("stop".into())
                .spawn(move || {
                    let result = stop(&volume, control);
                    drained.set();
                    result
                });
            stopper = Some(spawned.map_err(failed)?);
        }
        let timeout = match () {
            () if notices.wants_retry() => Some(RETRY),
            () if stopper.is_some() => Some(PRESENCE),
            () if volume.facts.on_descriptor => Some(PRESENCE),
            () => None,
        };
        notices
            .executor()
            .wait_also(&[signals.as_fd(), drained.as_fd()], timeout);
    }
}

/// Runs on a thread of its own, because the main thread must go on answering the
/// engine: what is drained here may wait for such an answer.
///
/// Order: 1 no new requests of guests → 2 no more control requests → 3 views drained
/// and closed, all at once → 4 the ends of merges tidied up → 5 the merger stops
/// after its batch → 6 every acknowledged write durable. If 3 takes too long, the
/// rest is left out.
pub fn stop(volume: &LiveVolume, control: Option<ControlServer>) -> Result<Ended, ControlError> {
    let deadline = Instant::now() + PATIENCE;
    {
        let tables = lock(&volume.tables);
        // Who is attached now comes back to the next daemon.
        let attached = tables.origin_attached();
        volume.may_come_back.fetch_or(attached, Ordering::AcqRel);
        let own = tables.snapshots.iter().filter_map(|s| s.view.as_ref());
        for view in tables.origin_views.iter().chain(own) {
            view.request_stop();
        }
    }
    if let Some(control) = control {
        control.stop();
    }
    let views = {
        let mut tables = lock(&volume.tables);
        let mut views = std::mem::take(&mut tables.origin_views);
        views.extend(tables.snapshots.iter_mut().filter_map(|s| s.view.take()));
        views
    };
    for view in &views {
        view.request_stop();
    }
    if !views.iter().all(|view| view.ends_by(deadline)) {
        tracing::warn!(
            "guests' requests take more than {} ms to end; they are left to the next start, \
             which finds everything as after a kill",
            PATIENCE.as_millis()
        );
        // Dropping a view would wait for it.
        std::mem::forget(views);
        return Ok(Ended::Undone);
    }
    for view in views {
        view.stop();
    }
    // Taken out first: the main thread needs these locks while we wait.
    let merger = lock(&volume.merger).take();
    if let Some(merger) = merger {
        merger.stop();
    }
    let tidying = std::mem::take(&mut *lock(&volume.tidying));
    for thread in tidying {
        let _ = thread.join();
    }
    volume.drive(&mut lock(&volume.ops), ControlRequest::Sync)?;
    Ok(Ended::Drained)
}

/// The last words: what identifies the origin now, so that the next start can
/// tell whether somebody wrote it in between.
pub fn finish(volume: &LiveVolume) -> Result<(), DaemonError> {
    // A start that failed half-way has not gone through `stop`.
    drop(lock(&volume.merger).take());
    let (views, scratch) = {
        let mut tables = lock(&volume.tables);
        let mut views = std::mem::take(&mut tables.origin_views);
        views.extend(tables.snapshots.iter_mut().filter_map(|s| s.view.take()));
        let transient = tables
            .snapshots
            .iter()
            .filter(|s| s.spec.store_type == StoreType::N);
        let scratch: Vec<_> = transient.map(|s| s.device).collect();
        (views, scratch)
    };
    drop(views);
    if let Ok(mut disk) = volume.one_thread_disk() {
        for device in scratch {
            if let Some(file) = volume.devices.get(device) {
                // Only lets the file be used again without being cleared by hand.
                let _ = cow::clear_head(&mut *disk, device, file.size());
            }
        }
    }
    let origin = open_identity(volume, volume.facts.origin_device)
        .map_err(|e| DaemonError::system("identify the origin", e))?;
    let stores: Vec<(String, StorageIdentity)> = {
        let tables = lock(&volume.tables);
        let snapshots = tables.snapshots.iter();
        snapshots
            .filter_map(|s| Some((s.spec.name.clone(), open_identity(volume, s.device).ok()?)))
            .collect()
    };
    warn_of_replaced(volume);
    let undo = lock(&volume.tables).undo.take();
    lock(&volume.state).update(|s| {
        if let Some(undo) = &undo {
            undo.apply(s);
        }
        s.origin.size = origin.size;
        s.origin.kind = origin.kind;
        for (name, store) in stores {
            if let Some(record) = s.snapshot_mut(&name) {
                record.store = Some(store);
            }
        }
        s.guest_attached = volume.may_come_back.load(Ordering::Acquire);
        s.running = false;
    })?;
    tracing::info!("stopped");
    Ok(())
}

/// Of what is open, not of what is at its path by now: that may be another file.
fn open_identity(volume: &LiveVolume, device: DeviceId) -> std::io::Result<StorageIdentity> {
    let file = volume.devices.get(device);
    let file = file.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    StorageIdentity::of_open(&file)
}

/// The next start will refuse them; whoever replaced them may still know why.
fn warn_of_replaced(volume: &LiveVolume) {
    let replaced = |path: &str, identity| {
        cow::storage_of(std::path::Path::new(path)).is_none_or(|there| there != identity)
    };
    if replaced(&volume.facts.path, volume.facts.origin.identity) {
        tracing::warn!(origin = %volume.facts.path, "the origin was moved, deleted or replaced while it was served");
    }
    for snapshot in &lock(&volume.tables).snapshots {
        if replaced(&snapshot.spec.cow, snapshot.identity) {
            tracing::warn!(snapshot = %snapshot.spec.name, cow = %snapshot.spec.cow,
                "the COW was moved, deleted or replaced while it was served");
        }
    }
}
