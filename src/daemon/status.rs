//! The volume as users see it.

use super::telling::retry;
use super::volume::{LiveVolume, lock};
use crate::control::api::{
    MergeStatus, OriginStatus, SnapshotStatus, State, ViewKind, ViewStatus, VolumeStatus,
};
use crate::engine::SnapshotState;
use crate::merger::Merger;

impl LiveVolume {
    pub(super) fn build_status(&self) -> VolumeStatus {
        let (recorded, rollback_at_reset) = {
            let state = lock(&self.state);
            let state = state.state();
            (
                state.merge.clone(),
                state.rollback_at_reset.as_ref().map(|r| r.snapshot.clone()),
            )
        };
        let rollback = self.pending_rollback();
        let bytes_per_second = lock(&self.merger)
            .as_ref()
            .map_or(0, Merger::bytes_per_second);
        let engine = self.engine.status();
        let stopped = engine.merge.as_ref().and_then(|m| m.stopped);
        let merged = lock(&self.tables).merging.as_ref().map(|m| m.id);
        let error = stopped.map(|stop| self.in_words(stop.failure, merged));
        let tables = lock(&self.tables);
        let merging = tables.merging.as_ref();

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
            let status = engine
                .snapshots
                .iter()
                .find(|s| s.snapshot == snapshot.id)?;
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
            let progress = engine.merge.unwrap_or_default();
            let chunk_bytes = tables
                .snapshot(&merging.name)
                .map_or(0, |s| s.chunk_size.bytes());
            let paused = recorded.is_some_and(|r| r.paused);
            let left = progress.chunks_left.saturating_mul(chunk_bytes);
            MergeStatus {
                snapshot: merging.name.clone(),
                chunks_done: if engine.merge.is_some() {
                    progress.chunks_done
                } else {
                    merging.chunks
                },
                chunks_left: progress.chunks_left,
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
            rollback_at_reset,
            rollback,
            last_merge: tables.last_merge.clone(),
        }
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
