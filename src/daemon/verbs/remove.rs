//! Removing a snapshot while guests run.

use crate::control::api::{ApiError, ErrorKind, StoreType};
use crate::control::events::{CancelCause, EventKind};
use crate::daemon::cow::{self, OpenRecord};
use crate::daemon::provenance::marking;
use crate::daemon::state::VolumeState;
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest, SnapshotId};
use crate::io::DeviceId;

/// A snapshot that nobody uses.
struct Removable {
    id: SnapshotId,
    device: DeviceId,
    store_type: StoreType,
}

impl LiveVolume {
    /// Removes a snapshot.
    ///
    /// Order: 1 it is recorded as invalid, so that a crash from here on never leaves a
    /// store that passes for a valid snapshot → 2 its view is closed → 3 the engine marks
    /// its header invalid and releases the store → 4 it is dropped from the state file. If
    /// 3 fails the record is kept, as invalid, unless `force` is set: without the record
    /// the store would pass for a valid snapshot.
    pub fn delete_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.await_leaving_guest_of(name);
        let Removable {
            id,
            device,
            store_type,
        } = self.check_removable(name)?;
        self.record_removal(name)?;
        let view = lock(&self.tables)
            .snapshot_by_id_mut(id)
            .and_then(|s| s.view.take());
        if let Some(view) = view {
            view.stop();
        }
        let request = ControlRequest::RemoveSnapshot {
            snapshot: id,
            force,
        };
        self.drive(&mut ops, request)
            .map_err(|error| not_removed(name, &error))?;
        let mut tables = lock(&self.tables);
        let record = (tables.snapshot_by_id_mut(id)).and_then(|s| s.deferral.take());
        tables.snapshots.retain(|s| s.id != id);
        drop(tables);
        record.into_iter().for_each(OpenRecord::delete);
        self.close_store(device, store_type);
        self.drop_removed(name);
        tracing::info!(snapshot = %name, "snapshot removed");
        self.events.publish(Some(name), EventKind::SnapshotRemoved);
        Ok(())
    }

    fn check_removable(&self, name: &str) -> Result<Removable, ApiError> {
        let tables = lock(&self.tables);
        let Some(snapshot) = tables.snapshot(name) else {
            drop(tables);
            let mut unknown = self.unknown(name);
            if let Some(left) = self.left_sockets() {
                unknown.message.push_str(&format!("; {left}"));
            }
            return Err(unknown);
        };
        if tables.merging.as_ref().is_some_and(|m| m.id == snapshot.id) {
            return Err(conflict(format!(
                "snapshot {name} is being merged, and without it the origin would be a mixture of two moments; it is \
                 removed by itself when the merge ends"
            )));
        }
        if let Some(view) = snapshot.view.as_ref().filter(|v| v.is_attached()) {
            return Err(conflict(format!(
                "snapshot {name} is used by a guest at {}: detach it first",
                view.place()
            )));
        }
        Ok(Removable {
            id: snapshot.id,
            device: snapshot.device,
            store_type: snapshot.spec.store_type,
        })
    }

    /// Step 1. A rollback to the snapshot that is pending is cancelled.
    fn record_removal(&self, name: &str) -> Result<(), ApiError> {
        let mut called_off = None;
        lock(&self.state)
            .update(|s| {
                called_off = s.rollback_at_reset.take_if(|r| r.snapshot == name);
                if let Some(record) = s.snapshot_mut(name) {
                    record.valid = false;
                }
            })
            .map_err(|e| not_recorded(&e))?;
        self.refresh_pending();
        if called_off.is_some() {
            self.publish_rollback_cancelled(name, CancelCause::Removed);
        }
        Ok(())
    }

    /// Closes the COW of a removed snapshot. A transient one is cleared as far as is
    /// needed to use it again.
    fn close_store(&self, device: DeviceId, store_type: StoreType) {
        if store_type == StoreType::N
            && let Some(file) = self.devices.get(device)
            && let Ok(mut disk) = self.one_thread_disk()
            && let Err(error) = cow::clear_head(&mut *disk, device, file.size())
        {
            tracing::warn!(cow = %file.path().display(), %error,
                "the COW of the removed snapshot could not be cleared; clear or remove it before it is used again");
        }
        drop(self.devices.remove(device));
    }

    /// Step 4. It is harmless if this fails, because the record says invalid: the next
    /// start forgets the snapshot if its COW is gone, and lists it as invalid otherwise.
    fn drop_removed(&self, name: &str) {
        let record = lock(&self.state).state().snapshot(name).cloned();
        let socket = record.as_ref().and_then(|r| r.spec.socket.clone());
        let drop = |state: &mut VolumeState| {
            state.drop_snapshot(name);
            if let Some(socket) = &socket {
                state.set_write_cache(socket, true);
            }
        };
        if let Err(error) = lock(&self.state).update(drop) {
            tracing::warn!(snapshot = %name, %error,
                "the snapshot is removed, but the state file still lists it as invalid; if the next start lists it, too, \
                 remove it again");
        }
        if let Some(record) = record {
            marking::release_cow(&record);
        }
    }
}

fn not_removed(name: &str, error: &ControlError) -> ApiError {
    let advice = match error {
        ControlError::NotMarked(_) => {
            ". It is invalid from now on, and it stays listed, because without its record the store would pass for a valid \
             snapshot. Remove the cause and remove the snapshot again, or drop the record with --force and never use the COW \
             again"
        }
        ControlError::UnknownSnapshot
        | ControlError::Invalid
        | ControlError::Transient
        | ControlError::MergeRunning
        | ControlError::MergeFailed
        | ControlError::NoMerge
        | ControlError::Busy
        | ControlError::Shrinks
        | ControlError::Io(_) => "",
    };
    ApiError::new(
        ErrorKind::Io,
        format!("snapshot {name} could not be removed: {error}{advice}"),
    )
}
