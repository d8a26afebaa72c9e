//! Taking and removing snapshots while guests run.

use std::path::Path;

use crate::control::api::{ApiError, ErrorKind, SnapshotSpec, StoreType, check_name};
use crate::control::events::Happening;
use crate::daemon::cow::error::CowError;
use crate::daemon::cow::{self, InspectedCow, OpenCow, Purpose};
use crate::daemon::provenance::cow_verdict::belongs_elsewhere;
use crate::daemon::provenance::golden;
use crate::daemon::provenance::marking;
use crate::daemon::provenance::marks;
use crate::daemon::start::plan::same_path;
use crate::daemon::state::SnapshotRecord;
use crate::daemon::volume::views::{self, View, ViewDescription};
use crate::daemon::volume::{LiveVolume, Snapshot, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest, SnapshotStore, ViewId};
use crate::executor::Executor;
use crate::io::{DeviceId, Disk, Identity, IoEngine, open_disk};
use crate::units::{ChunkSize, SECTOR_SIZE};
use crate::vhost::ViewSocket;
use crate::virtio_blk::MAX_WRITE_ZEROES_SECTORS;

/// A snapshot about to be taken: its COW is made, its socket bound.
pub struct NewSnapshot {
    pub record: SnapshotRecord,
    id: ViewId,
    device: DeviceId,
    identity: Identity,
    device_string: String,
    chunk_size: ChunkSize,
    /// Until the engine has it.
    store: Option<SnapshotStore>,
    cow: OpenCow,
    socket: Option<ViewSocket>,
}

impl LiveVolume {
    /// Takes a snapshot.
    ///
    /// Order: 1 everything is checked, nothing touched → 2 socket bound, store
    /// made, durable → 3 state file → 4 the cut in the engine → 5 the view is
    /// served. What was made is undone if a later step fails.
    pub fn create_snapshot(&self, spec: SnapshotSpec) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.check_not_promised(&spec)?;
        let mut new = self.make_snapshot(spec)?;
        let record = new.record.clone();
        let recorded = lock(&self.state).update(|s| s.snapshots.push(record));
        if let Err(error) = recorded {
            self.put_back(&new);
            return Err(not_recorded(&error));
        }
        self.mark_origin();
        if let Err(error) = self.cut(&mut ops, &mut new) {
            self.unrecord(&new.record.spec.name);
            return Err(error);
        }
        self.settle_snapshot(new)
    }

    /// 1 and 2: a snapshot that is ready to be taken. What was made goes away again
    /// if it is dropped.
    pub fn make_snapshot(&self, mut spec: SnapshotSpec) -> Result<NewSnapshot, ApiError> {
        let name = spec.name.clone();
        let mut disk = self.one_thread_disk()?;
        let inspected = self.check_snapshot(&spec, &mut *disk)?;
        let socket = spec
            .socket
            .as_deref()
            .map(views::bind)
            .transpose()
            .map_err(|e| conflict(e.to_string()))?;
        let sectors = self.facts.origin.sectors;
        let prepared = inspected
            .prepare(sectors, &self.devices, &mut *disk)
            .map_err(|e| refused(&name, &e))?;
        spec.chunk_size = Some(prepared.chunk_size.bytes());
        spec.size = Some(prepared.size);

        {
            let state = lock(&self.state);
            if state.path().is_none() {
                golden::note(&spec.cow, &state.state().origin);
            }
        }
        let record = SnapshotRecord {
            spec,
            valid: true,
            length: Some(sectors * SECTOR_SIZE),
            id: marks::new_id().ok(),
            store: prepared.file_identity(),
        };
        marking::mark_new_cow(&lock(&self.state), &record);
        Ok(NewSnapshot {
            id: lock(&self.tables).next_id(),
            record,
            device: prepared.store.device,
            identity: prepared.identity,
            device_string: prepared.device_string,
            chunk_size: prepared.chunk_size,
            store: Some(prepared.store),
            cow: prepared.open,
            socket,
        })
    }

    /// The state file, which a first snapshot has made, is the disk's.
    pub fn mark_origin(&self) {
        let origin = Path::new(&self.facts.path);
        marking::mark_origin(&mut lock(&self.state), origin, self.facts.read_only);
    }

    /// 4: the cut. It is recorded already.
    pub fn cut(&self, ops: &mut Executor, new: &mut NewSnapshot) -> Result<(), ApiError> {
        let id = new.id;
        let Some(store) = new.store.take() else {
            return Ok(());
        };
        // In the tables first: a notice about it may come at once.
        lock(&self.tables).snapshots.push(Snapshot {
            id,
            spec: new.record.spec.clone(),
            device: new.device,
            identity: new.identity,
            device_string: new.device_string.clone(),
            sectors: store.sectors,
            chunk_size: new.chunk_size,
            view: None,
        });
        let request = ControlRequest::AddSnapshot {
            snapshot: id,
            store: Box::new(store),
        };
        self.drive(ops, request).map_err(|error| {
            lock(&self.tables).snapshots.retain(|s| s.id != id);
            let name = &new.record.spec.name;
            let advice = match error {
                // It latches, so that another try would not help.
                ControlError::Io(failure) if failure.is_origin_flush() => {
                    "; start the daemon again, then take the snapshot"
                }
                _ => "",
            };
            ApiError::new(
                ErrorKind::Io,
                format!("snapshot {name} was not taken: {error}{advice}"),
            )
        })
    }

    /// Takes a snapshot back right after its cut, of which nobody was told. Its COW
    /// is as it was found. It must be out of the state file, or recorded as invalid.
    pub fn uncut(&self, ops: &mut Executor, new: &NewSnapshot) {
        let name = &new.record.spec.name;
        let request = ControlRequest::RemoveSnapshot {
            snapshot: new.id,
            // Its store is made what it was right after this.
            force: true,
        };
        if let Err(error) = self.drive(ops, request) {
            tracing::warn!(snapshot = %name, %error, "the snapshot that was to be kept could not be removed");
            return;
        }
        lock(&self.tables).snapshots.retain(|s| s.id != new.id);
        self.put_back(new);
        self.events.tell(Some(name), Happening::SnapshotRemoved);
    }

    /// Makes the COW of a snapshot that was not taken what it was.
    pub fn put_back(&self, new: &NewSnapshot) {
        marking::release_cow(&new.record);
        let restored = self
            .one_thread_disk()
            .map_err(|e| e.to_string())
            .and_then(|mut disk| new.cow.put_back(&mut *disk).map_err(|e| e.to_string()));
        if let Err(error) = restored {
            tracing::warn!(cow = %new.record.spec.cow, %error, "clear or remove it before it is used again");
        }
    }

    /// 5: a snapshot that was taken stays, and its view is served.
    pub fn settle_snapshot(&self, new: NewSnapshot) -> Result<(), ApiError> {
        let NewSnapshot {
            id,
            record: SnapshotRecord { spec, .. },
            cow,
            socket,
            ..
        } = new;
        cow.keep();
        let name = spec.name;
        tracing::info!(snapshot = %name, cow = %spec.cow, "snapshot taken");
        if let Some(socket) = socket {
            self.serve_snapshot(&name, id, socket, spec.socket)
                .map_err(|e| {
                    ApiError::new(
                        ErrorKind::Io,
                        format!("snapshot {name} is taken, but its view is not served: {e}"),
                    )
                })?;
        }
        Ok(())
    }

    /// Whether the snapshot could be taken now; nothing is touched.
    pub fn check_snapshot(
        &self,
        spec: &SnapshotSpec,
        disk: &mut dyn Disk,
    ) -> Result<InspectedCow, ApiError> {
        self.check_new(spec)?;
        let used = lock(&self.tables).storage();
        let inspected = cow::inspect(
            spec,
            Purpose::New,
            &self.facts.origin,
            &used,
            &self.devices,
            disk,
        )
        .map_err(|e| refused(&spec.name, &e))?;
        self.check_unclaimed(spec)?;
        Ok(inspected)
    }

    /// Refuses a COW path that belongs to another snapshot, although there is
    /// nothing at it, or nothing that tells by itself.
    fn check_unclaimed(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let SnapshotSpec { name, cow, .. } = spec;
        let state = lock(&self.state);
        // The file of that one was deleted; it goes on with it until the end.
        let has = |theirs: &str| theirs == cow || same_path(theirs, cow);
        let mut records = state.state().snapshots.iter();
        if let Some(of) = records.find(|s| s.spec.name != *name && has(&s.spec.cow)) {
            return Err(conflict(format!(
                "snapshot {name}: {cow} is the COW of snapshot {}: give another COW, or remove that snapshot first",
                of.spec.name
            )));
        }
        match belongs_elsewhere(Path::new(cow), state.state().volume.as_deref()) {
            Some(why) => Err(conflict(format!(
                "snapshot {name}: COW {cow} {why}: give the snapshot a file or device of its own"
            ))),
            None => Ok(()),
        }
    }

    /// Serves a snapshot's own view at a bound socket.
    pub fn serve_snapshot(
        &self,
        name: &str,
        id: ViewId,
        socket: ViewSocket,
        path: Option<String>,
    ) -> std::io::Result<()> {
        let (follows, sectors, read_only, discards) = {
            let tables = lock(&self.tables);
            let Some(s) = tables.snapshot(name) else {
                return Ok(());
            };
            let follows = tables.merging.as_ref();
            let follows = follows.is_some_and(|m| m.follow && m.id == id);
            let discards = s.spec.discard_zeroes_cow == Some(true);
            (follows, s.sectors, s.spec.is_read_only(), discards)
        };
        // What is in the store is zeroed, which costs what a write of zeroes does.
        let max_discard_sectors = if discards {
            MAX_WRITE_ZEROES_SECTORS
        } else {
            0
        };
        let description = ViewDescription {
            id,
            snapshot: Some(name),
            follows,
            sectors,
            read_only,
            max_discard_sectors,
        };
        let view = View::start(self, description, socket, path)?;
        if let Some(snapshot) = lock(&self.tables).snapshots.iter_mut().find(|s| s.id == id) {
            snapshot.view = Some(view);
        }
        Ok(())
    }

    /// A rollback that waits has promised to take a snapshot: one that is made by
    /// hand must not be in its place then.
    fn check_not_promised(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let state = lock(&self.state);
        let Some(pending) = &state.state().rollback_at_reset else {
            return Ok(());
        };
        match &pending.keep {
            Some(keep) if keep.name == spec.name || keep.cow == spec.cow => Err(conflict(format!(
                "the rollback to {} that waits takes the snapshot {} with the COW {} at the guest's reset: choose another \
                     name and COW, or call the rollback off with snapback rollback --cancel",
                pending.snapshot, keep.name, keep.cow
            ))),
            _ => Ok(()),
        }
    }

    /// What can be said about a new snapshot without looking at its COW.
    fn check_new(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let bad = |message: String| Err(ApiError::new(ErrorKind::BadRequest, message));
        let name = &spec.name;
        if let Err(message) = check_name(name) {
            return bad(message);
        }
        for path in std::iter::once(&spec.cow).chain(&spec.socket) {
            if !Path::new(path).is_absolute() {
                return bad(format!(
                    "snapshot {name}: path {path} must be absolute: the daemon has another directory"
                ));
            }
        }
        let state = lock(&self.state);
        if let Some(merge) = &state.state().merge {
            return Err(conflict(format!(
                "snapshot {name}: the merge of {} is running, and the origin is not itself until it ends; wait for it \
                 (snapback status shows how long)",
                merge.snapshot
            )));
        }
        if state.state().snapshot(name).is_some() {
            return Err(conflict(format!(
                "snapshot {name} exists already: choose another name, or remove it first"
            )));
        }
        Ok(())
    }

    /// Removes a snapshot.
    ///
    /// Order: 1 recorded as invalid, so that a crash from here on never leaves a
    /// store that is taken for good → 2 its view is closed → 3 the engine marks
    /// its header invalid and lets go of it → 4 dropped from the state file. If 3
    /// fails the record stays, invalid, unless `force`: without it the store
    /// would be taken for good.
    pub fn delete_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        let (id, device, store_type) = {
            let tables = lock(&self.tables);
            let Some(snapshot) = tables.snapshot(name) else {
                drop(tables);
                return Err(self.unknown(name));
            };
            if tables.merging.as_ref().is_some_and(|m| m.id == snapshot.id) {
                return Err(conflict(format!(
                    "snapshot {name} is being merged, and without it the origin would be a mixture of two moments; it goes \
                     away by itself when the merge ends"
                )));
            }
            if let Some(view) = snapshot.view.as_ref().filter(|v| v.is_attached()) {
                return Err(conflict(format!(
                    "snapshot {name} is in use by a guest at {}: detach it first",
                    view.socket.as_deref().unwrap_or("its socket")
                )));
            }
            (snapshot.id, snapshot.device, snapshot.spec.store_type)
        };
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
            self.tell_cancelled(name, "removed");
        }
        let view = {
            let mut tables = lock(&self.tables);
            tables
                .snapshots
                .iter_mut()
                .find(|s| s.id == id)
                .and_then(|s| s.view.take())
        };
        if let Some(view) = view {
            view.stop();
        }
        let request = ControlRequest::RemoveSnapshot {
            snapshot: id,
            force,
        };
        self.drive(&mut ops, request).map_err(|error| {
            let advice = match error {
                ControlError::NotMarked(_) => {
                    ". It is invalid from now on and stays listed, for without its record the store would pass for a good \
                     snapshot. Mend that and remove it again; --force drops the record all the same: then never use the \
                     COW again"
                }
                _ => "",
            };
            ApiError::new(
                ErrorKind::Io,
                format!("snapshot {name} could not be removed: {error}{advice}"),
            )
        })?;
        lock(&self.tables).snapshots.retain(|s| s.id != id);
        self.close_store(device, store_type);
        let record = lock(&self.state).state().snapshot(name).cloned();
        self.unrecord(name);
        record.iter().for_each(marking::release_cow);
        tracing::info!(snapshot = %name, "snapshot removed");
        self.events.tell(Some(name), Happening::SnapshotRemoved);
        Ok(())
    }

    /// Closes the COW of a removed snapshot; transient scratch space is cleared
    /// as far as is needed to be used again.
    fn close_store(&self, device: DeviceId, store_type: StoreType) {
        if store_type == StoreType::N
            && let Some(file) = self.devices.get(device)
            && let Ok(mut disk) = self.one_thread_disk()
            && let Err(error) = cow::clear_head(&mut *disk, device, file.size())
        {
            tracing::warn!(cow = %file.path().display(), %error, "the COW of the removed snapshot could not be cleared; clear or remove it before it is used again");
        }
        drop(self.devices.remove(device));
    }

    /// Takes a snapshot out of the state file. That this fails is no harm: the
    /// record says invalid, or belongs to an empty store.
    fn unrecord(&self, name: &str) {
        if let Err(error) = lock(&self.state).update(|s| s.drop_snapshot(name)) {
            tracing::warn!(snapshot = %name, %error, "the snapshot is removed, but the state file still lists it as invalid; remove it again after the next start");
        }
    }

    /// A disk for work that waits for each operation.
    pub fn one_thread_disk(&self) -> Result<Box<dyn Disk + Send>, ApiError> {
        open_disk(IoEngine::Threads, self.devices.clone(), 1)
            .map_err(|e| ApiError::new(ErrorKind::Io, format!("cannot start an I/O thread: {e}")))
    }
}

fn refused(name: &str, error: &CowError) -> ApiError {
    let kind = if error.is_io() {
        ErrorKind::Io
    } else if error.is_bad_request() {
        ErrorKind::BadRequest
    } else {
        ErrorKind::Conflict
    };
    ApiError::new(kind, format!("snapshot {name}: {error}"))
}
