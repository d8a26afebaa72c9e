//! The stop: guests are drained, everything is made durable, and the state file says
//! that the volume is not served any more.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::control::ControlServer;
use crate::control::api::StoreType;
use crate::daemon::DaemonError;
use crate::daemon::cow;
use crate::daemon::identity::{StorageIdentity, storage_of};
use crate::daemon::volume::views::ServedView;
use crate::daemon::volume::{LiveVolume, lock};
use crate::daemon::waiting;
use crate::engine::{ControlError, ControlRequest};
use crate::io::DeviceId;

/// How the main loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was accepted is done and durable.
    Drained,
    /// A second signal came during the stop.
    AtOnce,
    /// Requests of guests took too long and were left to the next start.
    NotDrained,
}

/// How long the views may take to drain. Then the daemon leaves them as if it had been
/// killed: a service manager would kill it anyway, and the next start loses nothing in
/// either case.
const PATIENCE: Duration = Duration::from_millis(800);

/// Stops everything that runs. The main thread continues to process notices meanwhile.
///
/// Order: 1 guests cannot make new requests → 2 no more control requests → 3 all views
/// are drained and closed at once → 4 the merger stops after its batch → 5 the main
/// thread has processed all notices, of which one may say that this batch ended the merge
/// → 6 the ends of merges are recorded → 7 every acknowledged write is durable. If 3
/// takes too long, the rest is left out.
pub fn stop(volume: &LiveVolume, control: Option<ControlServer>) -> Result<Ended, ControlError> {
    let deadline = Instant::now() + PATIENCE;
    {
        let tables = lock(&volume.tables);
        // A front end that is attached now will connect to the next daemon.
        let attached = tables.origin_attached();
        volume.may_come_back.fetch_or(attached, Ordering::AcqRel);
        let own = tables.snapshots.iter().filter_map(|s| s.view.as_ref());
        for view in tables.origin_views.iter().chain(own) {
            view.request_stop();
        }
    }
    let unfinished = control.and_then(ControlServer::stop);
    if let Some(call) = unfinished {
        tracing::warn!(
            "the stop does not wait for a call of a client ({call}); it is left as after a kill"
        );
        return Ok(Ended::NotDrained);
    }
    let views = take_views(volume);
    for view in &views {
        view.request_stop();
    }
    if !views.iter().all(|view| view.ends_by(deadline)) {
        let now = Instant::now();
        let late = views.iter().filter(|view| !view.ends_by(now));
        let late: Vec<&str> = late.map(ServedView::place).collect();
        tracing::warn!(
            "requests of guests take more than {} ms, at {}; they are left to the next start, as after a kill",
            PATIENCE.as_millis(),
            late.join(", ")
        );
        // Dropping a view would wait for it.
        std::mem::forget(views);
        return Ok(Ended::NotDrained);
    }
    for view in views {
        view.stop();
    }
    // Taken out before the wait, because the main thread needs these locks meanwhile.
    let merger = lock(&volume.merger).take();
    if let Some(merger) = merger {
        let _waiting = waiting::on("the merge to end what it copies and removes".into());
        merger.stop();
    }
    volume.notice_barrier.wait();
    let merge_ends = std::mem::take(&mut *lock(&volume.merge_ends));
    for thread in merge_ends {
        let _ = thread.join();
    }
    let disks = format!("{} and the COWs to be flushed", volume.facts.path);
    let _waiting = waiting::on(disks);
    volume.drive(&mut lock(&volume.ops), ControlRequest::Sync)?;
    Ok(Ended::Drained)
}

/// Records how the origin and the COWs are now, so that the next start notices if
/// somebody writes them in between.
pub fn finish(volume: &LiveVolume) -> Result<(), DaemonError> {
    // A start that failed half-way did not call `stop`.
    drop(lock(&volume.merger).take());
    drop(take_views(volume));
    clear_transient(volume);
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
    let undo = std::mem::take(&mut lock(&volume.tables).undo);
    lock(&volume.state).update(|s| {
        undo.iter().for_each(|undo| undo.apply(s));
        s.origin.size = origin.size;
        s.origin.kind = origin.kind;
        // Everything is durable.
        s.snapshots.iter_mut().for_each(|r| r.unflushed = None);
        for (name, store) in stores {
            if let Some(record) = s.snapshot_mut(&name) {
                record.store = Some(store);
            }
        }
        s.guest_attached = volume.may_come_back.load(Ordering::Acquire);
        s.running = false;
    })?;
    delete_records(volume);
    tracing::info!("stopped");
    Ok(())
}

fn take_views(volume: &LiveVolume) -> Vec<ServedView> {
    let mut tables = lock(&volume.tables);
    let mut views = std::mem::take(&mut tables.origin_views);
    views.extend(tables.snapshots.iter_mut().filter_map(|s| s.view.take()));
    views
}

/// Clears the COWs of transient snapshots, so that they can be used again without
/// being cleared by hand.
fn clear_transient(volume: &LiveVolume) {
    let transient: Vec<DeviceId> = lock(&volume.tables)
        .snapshots
        .iter()
        .filter(|s| s.spec.store_type == StoreType::N)
        .map(|s| s.device)
        .collect();
    let Ok(mut disk) = volume.one_thread_disk() else {
        return;
    };
    for device in transient {
        if let Some(file) = volume.devices.get(device) {
            let _ = cow::clear_head(&mut *disk, device, file.size());
        }
    }
}

/// Everything is durable, so that the records list nothing that is needed.
fn delete_records(volume: &LiveVolume) {
    for snapshot in &mut lock(&volume.tables).snapshots {
        (snapshot.deferral.take().into_iter()).for_each(cow::OpenRecord::delete);
    }
}

/// The identity of the open file. The file at its path may be a different one by now.
fn open_identity(volume: &LiveVolume, device: DeviceId) -> std::io::Result<StorageIdentity> {
    let file = volume.devices.get(device);
    let file = file.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    StorageIdentity::of_open(&file)
}

/// The next start will refuse replaced files; the operator may still remember why they
/// were replaced.
fn warn_of_replaced(volume: &LiveVolume) {
    let replaced = |path: &str, identity| {
        storage_of(std::path::Path::new(path)).is_none_or(|there| there != identity)
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

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
