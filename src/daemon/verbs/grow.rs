//! More room for a snapshot while guests run.

use crate::control::api::{ApiError, ErrorKind};
use crate::daemon::state::StateError;
use crate::daemon::volume::{LiveVolume, conflict, lock};
use crate::engine::{ControlRequest, SnapshotState};
use crate::io::{BlockFile, OpenError};
use crate::units::SECTOR_SIZE;

impl LiveVolume {
    /// Enlarges a snapshot's COW to `bytes`, or takes note of a device that was
    /// enlarged.
    ///
    /// Order: 1 checked → 2 the file is larger, durably → 3 recorded, so that a
    /// start notices a COW that became smaller → 4 the engine uses the room. A
    /// failure after 2 leaves a file with more room than is used; the same
    /// request goes on from there.
    pub fn grow_store(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        let (id, device) = {
            let tables = lock(&self.tables);
            let Some(snapshot) = tables.snapshot(name) else {
                drop(tables);
                return Err(self.unknown(name));
            };
            (snapshot.id, snapshot.device)
        };
        let status = self.engine.status();
        let found = status.snapshots.iter().find(|s| s.snapshot == id);
        match found.map(|s| s.state) {
            Some(SnapshotState::Active | SnapshotState::Overflow) => {}
            Some(SnapshotState::Invalid) | None => {
                return Err(conflict(format!(
                    "snapshot {name} is invalid, and more room does not bring back what it has missed; remove it with snapback remove {name}, and take another"
                )));
            }
            Some(_) => {
                return Err(conflict(format!(
                    "snapshot {name} is being merged, which needs no more room"
                )));
            }
        }
        let file = self.devices.get(device).ok_or_else(|| self.unknown(name))?;
        let size = file.grow(bytes).map_err(|e| refused(name, &e))?;
        lock(&self.state)
            .update(|s| {
                if let Some(record) = s.snapshot_mut(name) {
                    record.spec.size = Some(size);
                }
            })
            .map_err(|e| grown_unrecorded(name, &file, &e))?;
        let mut tables = lock(&self.tables);
        if let Some(snapshot) = tables.snapshots.iter_mut().find(|s| s.id == id) {
            snapshot.spec.size = Some(size);
        }
        drop(tables);
        let request = ControlRequest::Grow {
            snapshot: id,
            cow_sectors: size / SECTOR_SIZE,
        };
        self.drive(&mut ops, request)
            .map_err(|e| ApiError::new(ErrorKind::Io, format!("snapshot {name}: {e}")))?;
        tracing::info!(snapshot = %name, size, "COW enlarged");
        Ok(())
    }
}

/// The state file could not be written after the file was enlarged.
fn grown_unrecorded(name: &str, file: &BlockFile, error: &StateError) -> ApiError {
    ApiError::new(
        ErrorKind::Io,
        format!(
            "snapshot {name}: {} is larger now, but this could not be recorded, so that its new room is not used: {error}. \
             Mend that and ask for the same size again",
            file.path().display()
        ),
    )
}

fn refused(name: &str, error: &OpenError) -> ApiError {
    let kind = match error {
        OpenError::OddSize { .. } => ErrorKind::BadRequest,
        OpenError::Shrink { .. } | OpenError::FixedSize { .. } => ErrorKind::Conflict,
        _ => ErrorKind::Io,
    };
    ApiError::new(kind, format!("snapshot {name}: {error}"))
}
