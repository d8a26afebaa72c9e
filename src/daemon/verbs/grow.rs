//! Enlarging the COW of a snapshot while guests run.

use crate::control::api::{ApiError, ErrorKind};
use crate::daemon::state::StateError;
use crate::daemon::volume::{LiveVolume, conflict, lock};
use crate::engine::{ControlRequest, SnapshotId, SnapshotState};
use crate::io::{BlockFile, DeviceId, OpenError};
use crate::size::in_words;
use crate::units::SECTOR_SIZE;

impl LiveVolume {
    /// Enlarges a snapshot's COW to `bytes`, or makes the engine use a device that was
    /// enlarged.
    ///
    /// Order: 1 everything is checked → 2 the file is enlarged, durably → 3 the new size
    /// is recorded, so that a start notices a COW that was truncated → 4 the engine uses
    /// the new space. A failure after 2 leaves a file with space that is not used; the
    /// same request continues from there.
    pub fn grow_store(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        let mut ops = lock(&self.ops);
        let (id, device) = self.check_growable(name)?;
        let file = self.devices.get(device).ok_or_else(|| self.unknown(name))?;
        let size = file.grow(bytes).map_err(|e| refused(name, &e))?;
        lock(&self.state)
            .update(|s| {
                if let Some(record) = s.snapshot_mut(name) {
                    record.spec.size = Some(size);
                }
            })
            .map_err(|e| size_not_recorded(name, &file, &e))?;
        if let Some(snapshot) = lock(&self.tables).snapshot_by_id_mut(id) {
            snapshot.spec.size = Some(size);
        }
        let request = ControlRequest::Grow {
            snapshot: id,
            cow_sectors: size / SECTOR_SIZE,
        };
        self.drive(&mut ops, request)
            .map_err(|e| ApiError::new(ErrorKind::Io, format!("snapshot {name}: {e}")))?;
        tracing::info!(snapshot = %name, size = %in_words(size), "COW enlarged");
        Ok(())
    }

    fn check_growable(&self, name: &str) -> Result<(SnapshotId, DeviceId), ApiError> {
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
            Some(SnapshotState::Active | SnapshotState::Overflow) => Ok((id, device)),
            Some(SnapshotState::Invalid) | None => Err(conflict(format!(
                "snapshot {name} is invalid, and more space does not restore the data that it has missed; remove it with \
                 snapback remove {name}, and take another"
            ))),
            Some(
                SnapshotState::Merging | SnapshotState::MergePaused | SnapshotState::MergeFailed,
            ) => Err(conflict(format!(
                "snapshot {name} is being merged, which needs no more space"
            ))),
        }
    }
}

/// The state file could not be written after the file was enlarged.
fn size_not_recorded(name: &str, file: &BlockFile, error: &StateError) -> ApiError {
    ApiError::new(
        ErrorKind::Io,
        format!(
            "snapshot {name}: {} is larger now, but its new space is not used, because this could not be recorded: {error}. \
             Remove the cause and ask for the same size again",
            file.path().display()
        ),
    )
}

fn refused(name: &str, error: &OpenError) -> ApiError {
    ApiError::new(refusal_kind(error), format!("snapshot {name}: {error}"))
}

/// The kind of a refusal to make a file longer.
pub const fn refusal_kind(error: &OpenError) -> ErrorKind {
    match error {
        OpenError::OddSize { .. } => ErrorKind::BadRequest,
        // Another size is possible.
        OpenError::Shrink { .. }
        | OpenError::FixedSize { .. }
        | OpenError::NoSpace { .. }
        | OpenError::TooLarge { .. } => ErrorKind::Conflict,
        OpenError::Missing { .. }
        | OpenError::Exists { .. }
        | OpenError::WrongType { .. }
        | OpenError::TooSmall { .. }
        | OpenError::InUse { .. }
        | OpenError::OwnUse { .. }
        | OpenError::OtherNameInUse { .. }
        | OpenError::LoopOver { .. }
        | OpenError::DeviceBusy { .. }
        | OpenError::Denied { .. }
        | OpenError::WriteProtected { .. }
        | OpenError::Cut { .. }
        | OpenError::Io { .. } => ErrorKind::Io,
    }
}
