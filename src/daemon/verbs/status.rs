//! The status of the volume.

use std::sync::MutexGuard;
use std::time::Duration;

use crate::control::api::{
    MergeStatus, OriginStatus, SnapshotStatus, State, ViewKind, ViewStatus, VolumeStatus,
};
use crate::control::socket_status::{GroupAndMode, SocketAccess};
use crate::control::view_io::ViewIo;
use crate::daemon::state::{AccessRecord, MergeRecord, StateFile, VolumeState};
use crate::daemon::volume::events::retry;
use crate::daemon::volume::left_over::LeftOver;
use crate::daemon::volume::views::ServedView;
use crate::daemon::volume::{LiveVolume, Snapshot, Tables, lock, lock_within};
use crate::engine::{EngineStatus, SnapshotState, SnapshotStatus as EngineSnapshot};
use crate::merger::Merger;
use crate::sandbox;
use crate::store::Usage;
use crate::units::SECTOR_SIZE;
use crate::vhost::{Operation, OperationTotals, ViewTotals};

/// How long the status waits while the state file is written.
const STATE_PATIENCE: Duration = Duration::from_millis(400);

impl LiveVolume {
    /// The state at one moment: everything in it is read while the tables are locked, and
    /// it lists every snapshot that it mentions.
    pub fn current_status(&self) -> VolumeStatus {
        let bytes_per_second = lock(&self.merger)
            .as_ref()
            .map_or(0, Merger::bytes_per_second);
        let (recorded, state) = self.recorded_state();
        let tables = lock(&self.tables);
        let engine = self.engine.status();
        let rollback_at_reset = state.rollback_at_reset.as_ref();
        let merge = self.merge_status(&tables, &engine, state.merge.as_ref(), bytes_per_second);
        let left_over = tables.left_over.clone();
        let mut status = VolumeStatus {
            origin: OriginStatus {
                path: self.facts.path.clone(),
                sectors: self.engine.origin_sectors(),
                read_only: self.facts.read_only,
                device: self.facts.device_string.clone(),
            },
            views: views(&tables),
            snapshots: tables
                .snapshots
                .iter()
                .filter_map(|snapshot| snapshot_status(snapshot, &tables, &engine))
                .collect(),
            merge,
            rollback_at_reset: rollback_at_reset.map(|r| r.snapshot.clone()),
            rollback: Self::pending_rollback(&state, &tables),
            sandbox: sandbox::enforced().map(str::to_owned),
            last_merge: tables.last_merge.clone(),
            pid: Some(std::process::id()),
            access: SocketAccess {
                sockets: group_and_mode(&state.socket_access),
                control: group_and_mode(&state.control_access),
            },
        };
        // The file system may take long to answer.
        drop((tables, recorded));
        if let Some(last) = &mut status.last_merge {
            let unused = |left: &&LeftOver| status.snapshots.iter().all(|s| s.cow != left.path());
            let left_over = left_over.as_deref().filter(unused);
            let left_over = left_over.filter(|left| left.is_there());
            last.cow = left_over.map(|left| left.path().to_owned());
        }
        status
    }

    /// The state file's content. While it is written for long: as it was before.
    fn recorded_state(&self) -> (Option<MutexGuard<'_, StateFile>>, VolumeState) {
        let file = lock_within(&self.state, STATE_PATIENCE);
        let mut shown = lock(&self.shown);
        if let Some(file) = &file {
            shown.clone_from(file.state());
        }
        (file, shown.clone())
    }

    /// The merge, if one runs. Waits for no disk.
    pub fn merge_progress(&self) -> Option<MergeStatus> {
        let record = match lock_within(&self.state, Duration::ZERO) {
            Some(file) => file.state().merge.clone(),
            None => lock(&self.shown).merge.clone(),
        };
        let tables = lock(&self.tables);
        tables.merging.as_ref()?;
        self.merge_status(&tables, &self.engine.status(), record.as_ref(), 0)
    }

    /// A merge is shown until its end is recorded, so that a client that waits for it to
    /// disappear can rely on the end.
    fn merge_status(
        &self,
        tables: &Tables,
        engine: &EngineStatus,
        record: Option<&MergeRecord>,
        bytes_per_second: u64,
    ) -> Option<MergeStatus> {
        let paused = record.is_some_and(|r| r.paused);
        let merging = tables.merging.as_ref()?;
        let stopped = engine.merge.as_ref().and_then(|m| m.stopped);
        let error = stopped
            .map(|stop| tables.describe_failure(stop.failure, Some(merging.id), &self.facts.path));
        let chunk_bytes = tables
            .snapshot(&merging.name)
            .map_or(0, |s| s.chunk_size.bytes());
        let begins = || engine.snapshots.iter().any(|s| s.snapshot == merging.id);
        let (chunks_done, chunks_left) = match &engine.merge {
            Some(progress) => (progress.chunks_done, progress.chunks_left),
            None if begins() => (0, merging.chunks),
            None => (merging.chunks, 0),
        };
        let left = chunks_left.saturating_mul(chunk_bytes);
        Some(MergeStatus {
            snapshot: merging.name.clone(),
            chunks_done,
            chunks_left,
            bytes_per_second,
            rate_limit: record.map(|r| r.rate).filter(|rate| *rate > 0),
            seconds_left: if paused || error.is_some() {
                None
            } else {
                left.checked_div(bytes_per_second)
            },
            paused,
            retry: error.as_ref().and(stopped.as_ref()).map(retry),
            error,
        })
    }
}

fn group_and_mode(record: &AccessRecord) -> Option<GroupAndMode> {
    let is_set = record.group.is_some() || record.mode.is_some();
    is_set.then(|| GroupAndMode {
        group: record.group.clone(),
        mode: format!("{:o}", record.effective_mode()),
    })
}

/// All views, as the status shows them.
pub fn views(tables: &Tables) -> Vec<ViewStatus> {
    let merging = tables.merging.as_ref();
    let status = |view: &ServedView, snapshot: Option<&Snapshot>, kind| ViewStatus {
        snapshot: snapshot.map(|s| s.spec.name.clone()),
        kind,
        socket: view.socket.clone(),
        connects: view.connects.clone(),
        attached: view.is_attached(),
        waiting: view.waiting(),
        read_only: view.read_only,
        slow_io: view.slow_io(),
        hint: view.hint(),
        io: io(&view.totals()),
    };
    let origin_kind = match merging {
        Some(_) => ViewKind::Merge,
        None => ViewKind::Origin,
    };
    let origin = tables.origin_views.iter();
    let mut views: Vec<ViewStatus> = origin.map(|v| status(v, None, origin_kind)).collect();
    for snapshot in &tables.snapshots {
        let kind = match merging.is_some_and(|m| m.follow && m.id == snapshot.id) {
            true => ViewKind::Merge,
            false => ViewKind::Snapshot,
        };
        let view = snapshot.view.as_ref();
        views.extend(view.map(|view| status(view, Some(snapshot), kind)));
    }
    views
}

fn io(totals: &ViewTotals) -> ViewIo {
    let of = |operation| totals.operation(operation);
    let all = || Operation::ALL.into_iter().map(of);
    let micros = |totals: &OperationTotals| totals.nanoseconds / 1000;
    let (reads, writes) = (of(Operation::Read), of(Operation::Write));
    let (zeroes, discards) = (of(Operation::WriteZeroes), of(Operation::Discard));
    let flushes = of(Operation::Flush);
    ViewIo {
        reads: reads.requests(),
        writes: writes.requests(),
        write_zeroes: zeroes.requests(),
        discards: discards.requests(),
        flushes: flushes.requests(),
        others: of(Operation::GetId).requests() + of(Operation::Other).requests(),
        read_bytes: reads.bytes,
        write_bytes: writes.bytes,
        write_zeroes_bytes: zeroes.bytes,
        discard_bytes: discards.bytes,
        errors: all().map(|of| of.errors.iter().sum::<u64>()).sum(),
        in_flight: totals.in_flight,
        latency_us_sum: all().map(|of| of.nanoseconds).sum::<u64>() / 1000,
        read_latency_us_sum: micros(&reads),
        write_latency_us_sum: micros(&writes),
        flush_latency_us_sum: micros(&flushes),
    }
}

fn snapshot_status(
    snapshot: &Snapshot,
    tables: &Tables,
    engine: &EngineStatus,
) -> Option<SnapshotStatus> {
    let known = engine.snapshots.iter().find(|s| s.snapshot == snapshot.id);
    let ended = || {
        let merging = tables.merging.as_ref();
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
        defer_entries: (snapshot.deferral.as_ref()).is_some_and(|r| r.id().is_some()),
    })
}

/// The snapshot of a merge whose end is not recorded yet: the engine has released its
/// store, which holds nothing but the header and an empty area.
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
        counts: Default::default(),
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
