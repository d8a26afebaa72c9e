//! Taking a snapshot while guests run.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::control::api::{ApiError, ErrorKind, SnapshotSpec, check_name};
use crate::control::events::EventKind;
use crate::daemon::cow::error::CowError;
use crate::daemon::cow::{self, Given, InspectedCow, OpenCow, OpenRecord, Purpose};
use crate::daemon::identity::same_path;
use crate::daemon::provenance::cow_verdict::belongs_elsewhere;
use crate::daemon::provenance::{golden, marking, marks};
use crate::daemon::state::SnapshotRecord;
use crate::daemon::volume::undo::Undo;
use crate::daemon::volume::views::{self, Entrance, ServedView, ViewDescription};
use crate::daemon::volume::{LiveVolume, Snapshot, conflict, lock, not_recorded};
use crate::engine::{ControlError, ControlRequest, SnapshotStore, ViewId};
use crate::executor::Executor;
use crate::io::{DeviceId, Disk, Identity, Lock};
use crate::sandbox;
use crate::units::{ChunkSize, SECTOR_SIZE};
use crate::vhost::ViewSocket;

/// A snapshot about to be taken: its store is made, and its socket is bound.
pub struct NewSnapshot {
    pub record: SnapshotRecord,
    id: ViewId,
    device: DeviceId,
    identity: Identity,
    device_string: String,
    chunk_size: ChunkSize,
    /// `None` once the engine has it.
    store: Option<SnapshotStore>,
    /// The store's record, until the snapshot is in the tables.
    deferral: Option<OpenRecord>,
    cow: OpenCow,
    socket: Option<ViewSocket>,
}

impl LiveVolume {
    /// Takes a snapshot.
    ///
    /// Order: 1 everything is checked, and nothing is changed → 2 the socket is bound, the
    /// store is made, durably → 3 the snapshot is recorded in the state file → 4 the cut in
    /// the engine → 5 the view is served. If a step fails, the previous ones are undone.
    ///
    /// `cow`: the descriptor of its COW, if the client has opened it.
    pub fn create_snapshot(
        &self,
        spec: SnapshotSpec,
        cow: Option<OwnedFd>,
    ) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        self.check_not_kept_by_rollback(&spec)?;
        let given = given(&spec, cow)?;
        let mut new = self.make_snapshot(spec, given.as_ref())?;
        let record = new.record.clone();
        let recorded = lock(&self.state).update(|s| s.snapshots.push(record));
        if let Err(error) = recorded {
            self.restore_cow(&new);
            return Err(not_recorded(&error));
        }
        self.mark_origin();
        if let Err(error) = self.cut(&mut ops, &mut new) {
            let undo = Undo {
                not_taken: Some(new.record.spec.name.clone()),
                not_merged: None,
                rollback: None,
            };
            // A snapshot that is still recorded must find its store at the next start.
            if self.undo_record(undo) {
                self.restore_cow(&new);
            }
            return Err(error);
        }
        self.finish_snapshot(new)
    }

    /// Steps 1 and 2: a snapshot that is ready to be taken. A COW file and a socket that
    /// were made are removed if it is dropped.
    pub fn make_snapshot(
        &self,
        mut spec: SnapshotSpec,
        given: Option<&Given>,
    ) -> Result<NewSnapshot, ApiError> {
        let name = spec.name.clone();
        let mut disk = self.one_thread_disk()?;
        let inspected = self.check_snapshot(&spec, given, &mut *disk)?;
        let inspected = inspected.remembered(lock(&self.state).path().is_some());
        let socket = spec
            .socket
            .as_deref()
            .map(|path| views::bind(path, self.facts.socket_access))
            .transpose()
            .map_err(|e| conflict(with_advice(e.to_string(), spec.socket.as_deref())))?;
        let sectors = self.origin().sectors;
        let prepared = inspected
            .prepare(sectors, sectors, &self.devices, &mut *disk)
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
            unflushed: prepared.record.as_ref().and_then(OpenRecord::note),
        };
        marking::mark_new_cow(&lock(&self.state), &record, prepared.open.file().as_fd());
        Ok(NewSnapshot {
            id: lock(&self.tables).next_id(),
            record,
            device: prepared.store.device,
            identity: prepared.identity,
            device_string: prepared.device_string,
            chunk_size: prepared.chunk_size,
            store: Some(prepared.store),
            deferral: prepared.record,
            cow: prepared.open,
            socket,
        })
    }

    /// Marks the origin, because the first snapshot has created the state file.
    pub fn mark_origin(&self) {
        let origin = Path::new(&self.facts.path);
        marking::mark_origin(&mut lock(&self.state), origin, self.facts.read_only);
    }

    /// Step 4: the cut. The snapshot is recorded already.
    pub fn cut(&self, ops: &mut Executor, new: &mut NewSnapshot) -> Result<(), ApiError> {
        let id = new.id;
        let Some(store) = new.store.take() else {
            return Ok(());
        };
        // It is in the tables before, because a notice about it may come at once.
        lock(&self.tables).snapshots.push(Snapshot {
            id,
            spec: new.record.spec.clone(),
            device: new.device,
            identity: new.identity,
            device_string: new.device_string.clone(),
            sectors: store.sectors,
            chunk_size: new.chunk_size,
            deferral: new.deferral.take(),
            view: None,
        });
        let request = ControlRequest::AddSnapshot {
            snapshot: id,
            store: Box::new(store),
        };
        self.drive(ops, request).map_err(|error| {
            lock(&self.tables).snapshots.retain(|s| s.id != id);
            let name = &new.record.spec.name;
            // All later flushes fail, too, so that another attempt would not help.
            let is_flush = matches!(error, ControlError::Io(failure) if failure.is_origin_flush());
            let advice = if is_flush {
                "; restart the daemon, then take the snapshot"
            } else {
                ""
            };
            ApiError::new(
                ErrorKind::Io,
                format!("snapshot {name} was not taken: {error}{advice}"),
            )
        })
    }

    /// Removes a snapshot right after its cut, before anybody has used it, and restores its
    /// COW. Its record must have been removed from the state file, or be removed later.
    pub fn undo_cut(&self, ops: &mut Executor, new: &NewSnapshot) {
        if lock(&self.tables).snapshot_by_id(new.id).is_none() {
            // The cut itself has failed.
            return self.restore_cow(new);
        }
        let name = &new.record.spec.name;
        let request = ControlRequest::RemoveSnapshot {
            snapshot: new.id,
            // The store is restored right after this.
            force: true,
        };
        if let Err(error) = self.drive(ops, request) {
            tracing::warn!(snapshot = %name, %error, "the snapshot that --keep asked for could not be removed");
            return;
        }
        lock(&self.tables).snapshots.retain(|s| s.id != new.id);
        self.restore_cow(new);
        self.events.publish(Some(name), EventKind::SnapshotRemoved);
    }

    /// Restores the COW of a snapshot that was not taken.
    pub fn restore_cow(&self, new: &NewSnapshot) {
        if let Some(noted) = &new.record.unflushed {
            let _ = std::fs::remove_file(&noted.path); // it lists nothing
        }
        marking::release_cow(&new.record);
        let restored = self
            .one_thread_disk()
            .map_err(|e| e.to_string())
            .and_then(|mut disk| new.cow.restore(&mut *disk).map_err(|e| e.to_string()));
        if let Err(error) = restored {
            tracing::warn!(cow = %new.record.spec.cow, %error, "the COW could not be restored; clear or remove it before it is used again");
        }
    }

    /// Step 5: the snapshot is kept, and its view is served.
    pub fn finish_snapshot(&self, new: NewSnapshot) -> Result<(), ApiError> {
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
            self.serve_snapshot(&name, id, Entrance::Bound(socket), spec.socket)
                .map_err(|e| {
                    ApiError::new(
                        ErrorKind::Io,
                        format!("snapshot {name} was taken, but its view cannot be served: {e}"),
                    )
                })?;
        }
        Ok(())
    }

    /// Step 1: whether the snapshot could be taken now.
    pub fn check_snapshot(
        &self,
        spec: &SnapshotSpec,
        given: Option<&Given>,
        disk: &mut dyn Disk,
    ) -> Result<InspectedCow, ApiError> {
        self.check_new(spec)?;
        let used = lock(&self.tables).storage();
        let inspected = cow::inspect(
            spec,
            (Purpose::New, Lock::Exclusive, given),
            &self.origin(),
            &used,
            &self.devices,
            disk,
        )
        .map_err(|e| refused(&spec.name, &e))?;
        self.check_unclaimed(spec)?;
        Ok(inspected)
    }

    /// Refuses a COW path that belongs to another snapshot, even if no file is there, or
    /// the file itself does not show it.
    fn check_unclaimed(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let SnapshotSpec { name, cow, .. } = spec;
        let state = lock(&self.state);
        // The other snapshot may be using its file although the file was deleted.
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

    /// Serves a snapshot's own view.
    pub fn serve_snapshot(
        &self,
        name: &str,
        id: ViewId,
        entrance: Entrance,
        path: Option<String>,
    ) -> std::io::Result<()> {
        let (follows, sectors, read_only, max_discard_sectors) = {
            let tables = lock(&self.tables);
            let Some(s) = tables.snapshot(name) else {
                return Ok(());
            };
            let follows = tables.merging.as_ref();
            let follows = follows.is_some_and(|m| m.follow && m.id == id);
            let discards = views::max_discard_sectors(&s.spec);
            (follows, s.sectors, s.spec.is_read_only(), discards)
        };
        let description = ViewDescription {
            id,
            snapshot: Some(name),
            follows,
            sectors,
            read_only,
            max_discard_sectors,
        };
        let view = ServedView::start(self.this.clone(), description, entrance, path)?;
        if let Some(snapshot) = lock(&self.tables).snapshot_by_id_mut(id) {
            snapshot.view = Some(view);
        }
        Ok(())
    }

    /// Refuses the name and the COW of the snapshot that a pending rollback will take
    /// (`--keep`).
    fn check_not_kept_by_rollback(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let state = lock(&self.state);
        let Some(pending) = &state.state().rollback_at_reset else {
            return Ok(());
        };
        match &pending.keep {
            Some(keep) if keep.name == spec.name || keep.cow == spec.cow => Err(conflict(format!(
                "the pending rollback to {} will take the snapshot {} with the COW {} at the guest's reset: choose another \
                     name and COW, or cancel the rollback with snapback rollback --cancel",
                pending.snapshot, keep.name, keep.cow
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Checks a new snapshot without looking at its COW.
    fn check_new(&self, spec: &SnapshotSpec) -> Result<(), ApiError> {
        let bad = |message: String| Err(ApiError::new(ErrorKind::BadRequest, message));
        let name = &spec.name;
        if let Err(message) = check_name(name) {
            return bad(message);
        }
        for path in std::iter::once(&spec.cow).chain(&spec.socket) {
            if !Path::new(path).is_absolute() {
                return bad(format!(
                    "snapshot {name}: the path {path} must be absolute, because the daemon has another working directory"
                ));
            }
        }
        if spec.socket.as_ref() == Some(&spec.cow) {
            return bad(format!(
                "snapshot {name}: {} is both its COW and its socket: give each a path of its own",
                spec.cow
            ));
        }
        let state = lock(&self.state);
        let own = state
            .path()
            .is_some_and(|own| same_path(&own.to_string_lossy(), &spec.cow));
        if own {
            return bad(format!(
                "snapshot {name}: {} is the state file of the disk: give the snapshot a file or device of its own",
                spec.cow
            ));
        }
        if let Some(merge) = &state.state().merge {
            return Err(conflict(format!(
                "snapshot {name}: the merge of {} is running, and the origin is not complete until it ends; wait for it \
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
}

/// The `error` of a file at `path`, with what to do if the sandbox is the reason.
fn with_advice(error: String, path: Option<&str>) -> String {
    match path.and_then(|path| sandbox::advice(Path::new(path))) {
        Some(advice) => format!("{error} ({advice})"),
        None => error,
    }
}

/// The COW of `spec`, if the client has opened it.
///
/// # Errors
/// The descriptor is not that of the COW.
pub fn given(spec: &SnapshotSpec, cow: Option<OwnedFd>) -> Result<Option<Given>, ApiError> {
    let checked = cow.map(|descriptor| Given::check(descriptor, Path::new(&spec.cow)));
    checked.transpose().map_err(|e| refused(&spec.name, &e))
}

fn refused(name: &str, error: &CowError) -> ApiError {
    let kind = if matches!(error, CowError::Outside { .. }) {
        ErrorKind::Outside
    } else if error.is_io() {
        ErrorKind::Io
    } else if error.is_bad_request() {
        ErrorKind::BadRequest
    } else {
        ErrorKind::Conflict
    };
    ApiError::new(kind, format!("snapshot {name}: {error}"))
}
