//! The volume as users see it.

use crate::control::api::{
    MergeStatus, OriginStatus, SnapshotStatus, State, ViewKind, ViewStatus, VolumeStatus,
};
use crate::daemon::volume::events::retry;
use crate::daemon::volume::{LiveVolume, Snapshot, lock};
use crate::engine::{SnapshotState, SnapshotStatus as EngineSnapshot};
use crate::merger::Merger;
use crate::store::Usage;
use crate::units::SECTOR_SIZE;

impl LiveVolume {
    /// What holds at one moment: all that it is made of is held or asked while the
    /// tables are held, and what it names is in it.
    pub fn build_status(&self) -> VolumeStatus {
        let bytes_per_second = lock(&self.merger)
            .as_ref()
            .map_or(0, Merger::bytes_per_second);
        let file = lock(&self.state);
        let tables = lock(&self.tables);
        let engine = self.engine.status();
        let recorded = file.state().merge.as_ref();
        let rollback_at_reset = file.state().rollback_at_reset.as_ref();
        let merging = tables.merging.as_ref();
        let stopped = engine.merge.as_ref().and_then(|m| m.stopped);
        let merged = merging.map(|m| m.id);
        let error = stopped.map(|stop| tables.in_words(stop.failure, merged, &self.facts.path));

        let mut views: Vec<ViewStatus> = Vec::new();
        for view in &tables.origin_views {
            views.push(ViewStatus {
                snapshot: None,
                kind: if merging.is_some() {
                    ViewKind::Merge
                } else {
                    ViewKind::Origin
                },
                socket: view.socket.clone(),
                attached: view.is_attached(),
                read_only: view.read_only,
            });
        }
        for snapshot in &tables.snapshots {
            let followed = merging.is_some_and(|m| m.follow && m.id == snapshot.id);
            views.extend(snapshot.view.as_ref().map(|view| ViewStatus {
                snapshot: Some(snapshot.spec.name.clone()),
                kind: if followed {
                    ViewKind::Merge
                } else {
                    ViewKind::Snapshot
                },
                socket: view.socket.clone(),
                attached: view.is_attached(),
                read_only: view.read_only,
            }));
        }

        let snapshots = tables.snapshots.iter().filter_map(|snapshot| {
            let known = engine.snapshots.iter().find(|s| s.snapshot == snapshot.id);
            let ended = || {
                let merged = merging.is_some_and(|m| m.id == snapshot.id);
                merged.then(|| ended_merge(snapshot))
            };
            let status = known.cloned().or_else(ended)?;
            Some(SnapshotStatus {
                name: snapshot.spec.name.clone(),
                cow: snapshot.spec.cow.clone(),
                store_type: snapshot.spec.store_type,
                cow_device: snapshot.device_string.clone(),
                state: state(status.state),
                sectors: snapshot.sectors,
                read_only: snapshot.spec.is_read_only(),
                chunk_sectors: status.chunk_sectors,
                allocated_sectors: status.usage.allocated,
                total_sectors: status.usage.total,
                metadata_sectors: status.usage.metadata,
                discard_zeroes_cow: snapshot.spec.discard_zeroes_cow == Some(true),
                discard_passdown_origin: snapshot.spec.discard_passdown_origin == Some(true),
            })
        });

        // A merge lasts until its end is recorded, so that who waits for it to
        // vanish from here finds it over for good.
        let merge = merging.map(|merging| {
            let chunk_bytes = tables
                .snapshot(&merging.name)
                .map_or(0, |s| s.chunk_size.bytes());
            let begins = || engine.snapshots.iter().any(|s| s.snapshot == merging.id);
            let (chunks_done, chunks_left) = match engine.merge {
                Some(progress) => (progress.chunks_done, progress.chunks_left),
                None if begins() => (0, merging.chunks),
                None => (merging.chunks, 0),
            };
            let paused = recorded.is_some_and(|r| r.paused);
            let left = chunks_left.saturating_mul(chunk_bytes);
            MergeStatus {
                snapshot: merging.name.clone(),
                chunks_done,
                chunks_left,
                bytes_per_second,
                seconds_left: if paused || error.is_some() {
                    None
                } else {
                    left.checked_div(bytes_per_second)
                },
                paused,
                retry: error.as_ref().and(stopped.as_ref()).map(retry),
                error,
            }
        });

        VolumeStatus {
            origin: OriginStatus {
                path: self.facts.path.clone(),
                sectors: self.facts.origin.sectors,
                read_only: self.facts.read_only,
                device: self.facts.device_string.clone(),
            },
            views,
            snapshots: snapshots.collect(),
            merge,
            rollback_at_reset: rollback_at_reset.map(|r| r.snapshot.clone()),
            rollback: Self::pending_rollback(file.state(), &tables),
            last_merge: tables.last_merge.clone(),
        }
    }
}

/// A merge whose end is still to be recorded: the engine has let go of its store,
/// in which there is nothing but the header and an empty area.
fn ended_merge(snapshot: &Snapshot) -> EngineSnapshot {
    let metadata = snapshot.chunk_size.first_sector(2);
    EngineSnapshot {
        snapshot: snapshot.id,
        state: SnapshotState::Merging,
        chunk_sectors: snapshot.chunk_size.sectors(),
        usage: Usage {
            allocated: metadata,
            total: snapshot.spec.size.unwrap_or(0) / SECTOR_SIZE,
            metadata,
        },
        transient: false,
        exceptions: 0,
    }
}

const fn state(state: SnapshotState) -> State {
    match state {
        SnapshotState::Active => State::Active,
        SnapshotState::Overflow => State::Overflow,
        SnapshotState::Invalid => State::Invalid,
        SnapshotState::Merging => State::Merging,
        SnapshotState::MergePaused => State::MergePaused,
        SnapshotState::MergeFailed => State::MergeFailed,
    }
}
