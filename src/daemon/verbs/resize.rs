//! Enlarging the origin while guests run.

use super::grow::refusal_kind;
use crate::control::api::{ApiError, ErrorKind, ResizeReply};
use crate::control::events::EventKind;
use crate::daemon::state::{StateError, VolumeState};
use crate::daemon::volume::views::ServedView;
use crate::daemon::volume::{LiveVolume, conflict, lock};
use crate::engine::ControlRequest;
use crate::io::{BlockFile, OpenError};
use crate::size::in_words;
use crate::units::SECTOR_SIZE;

impl LiveVolume {
    /// Enlarges the origin to `bytes`, or uses the size that it has now.
    ///
    /// Order: 1 everything is checked → 2 the file is enlarged, durably → 3 the new size is
    /// recorded, or the next start would refuse an origin that has changed → 4 the engine
    /// takes requests up to there → 5 the views show the size, and front ends are told. A
    /// failure after 2 leaves a file that is longer than its disk; the same request
    /// continues from there.
    pub fn resize_origin(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError> {
        let mut ops = lock(&self.ops);
        if self.facts.read_only {
            return Err(conflict(format!(
                "the disk {} is served read-only, so its size stays; start snapback serve without \
                 --read-only to change it",
                self.facts.path
            )));
        }
        let before = self.engine.origin_sectors().saturating_mul(SECTOR_SIZE);
        let gone = || ApiError::new(ErrorKind::Io, "the disk is closed");
        let file = self
            .devices
            .get(self.facts.origin_device)
            .ok_or_else(gone)?;
        let size = self.enlarge(&file, before, bytes)?;
        if size != before {
            lock(&self.state)
                .update(|state| record(state, before, size))
                .map_err(|e| not_recorded(&file, &e))?;
            let sectors = size / SECTOR_SIZE;
            self.drive(&mut ops, ControlRequest::ResizeOrigin { sectors })
                .map_err(|e| ApiError::new(ErrorKind::Io, e.to_string()))?;
            tracing::info!(before = %in_words(before), size = %in_words(size), "the disk was enlarged");
            self.events.publish(None, EventKind::OriginResized { size });
        }
        let (told, untold) = self.show_size(size / SECTOR_SIZE);
        Ok(ResizeReply {
            before,
            size,
            told,
            untold,
        })
    }

    /// Says so if others have enlarged the origin. That is for the operator to use, because they
    /// may not be done with it.
    pub fn look_for_more(&self) {
        let served = self.engine.origin_sectors().saturating_mul(SECTOR_SIZE);
        let file = self.devices.get(self.facts.origin_device);
        let Some(size) = file.and_then(|file| file.present_size().ok()) else {
            return;
        };
        if size <= served || self.facts.read_only {
            return;
        }
        self.events.publish(None, EventKind::OriginLarger { size });
    }

    /// Steps 1 and 2. Returns the size of the file.
    fn enlarge(&self, file: &BlockFile, before: u64, to: Option<u64>) -> Result<u64, ApiError> {
        let path = || self.facts.path.as_str();
        let block = u64::from(self.facts.origin.block_size);
        if let Some(to) = to.filter(|to| !to.is_multiple_of(block)) {
            return Err(ApiError::new(
                ErrorKind::BadRequest,
                format!(
                    "{}: {} is not a multiple of its block size, {}",
                    path(),
                    in_words(to),
                    in_words(block)
                ),
            ));
        }
        let now = file.refresh_size().map_err(|e| refused(&e))?;
        if now < before {
            return Err(ApiError::new(
                ErrorKind::Io,
                format!(
                    "{} was cut to {} while it was served with {}; bring the file back from a copy \
                     that is whole",
                    path(),
                    in_words(now),
                    in_words(before)
                ),
            ));
        }
        let Some(to) = to else {
            return match now.is_multiple_of(block) {
                true => file.extend(now).map_err(|e| refused(&e)),
                false => Err(conflict(format!(
                    "{} has {}, which is not a multiple of its block size, {}; give the new size",
                    path(),
                    in_words(now),
                    in_words(block)
                ))),
            };
        };
        file.extend(to).map_err(|e| refused(&e))
    }

    /// Step 5, for the views that show the origin.
    fn show_size(&self, sectors: u64) -> (Vec<Option<String>>, Vec<Option<String>>) {
        let tables = lock(&self.tables);
        let follows = tables.merging.as_ref().filter(|m| m.follow);
        let follower = follows
            .and_then(|merging| tables.snapshot_by_id(merging.id))
            .and_then(|snapshot| snapshot.view.as_ref());
        let (mut told, mut untold) = (Vec::new(), Vec::new());
        for view in tables.origin_views.iter().chain(follower) {
            if view.resize(sectors) {
                told.push(view.socket.clone());
            } else if ServedView::is_attached(view) {
                untold.push(view.socket.clone());
            }
        }
        (told, untold)
    }
}

/// Snapshots of older state files have the length of the origin that is recorded.
fn record(state: &mut VolumeState, before: u64, size: u64) {
    for snapshot in &mut state.snapshots {
        snapshot.length.get_or_insert(before);
    }
    state.origin.size = size;
}

/// The state file could not be written after the file was enlarged.
fn not_recorded(file: &BlockFile, error: &StateError) -> ApiError {
    ApiError::new(
        ErrorKind::Io,
        format!(
            "{} is larger now, but the disk is not, because this could not be recorded: {error}. \
             Remove the cause and ask for the same size again",
            file.path().display()
        ),
    )
}

fn refused(error: &OpenError) -> ApiError {
    ApiError::new(refusal_kind(error), error.to_string())
}
