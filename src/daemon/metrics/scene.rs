//! A copy of all numbers, taken in one go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::control::api::{ApiError, ErrorKind, SlowIo, StoreType};
use crate::daemon::volume::views::ServedView;
use crate::daemon::volume::{LiveVolume, lock_within};
use crate::engine::{EngineStatus, SnapshotStatus};
use crate::vhost::ViewTotals;

/// How long a scrape waits for the tables.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Scene {
    pub views: Vec<View>,
    pub snapshots: Vec<Snapshot>,
    pub engine: EngineStatus,
    /// A merge runs, or its end is not recorded yet.
    pub merging: bool,
    pub origin_sectors: u64,
    pub rollback_pending: bool,
}

pub struct View {
    pub name: String,
    /// Empty: a descriptor.
    pub socket: String,
    pub kind: &'static str,
    pub read_only: bool,
    pub attached: bool,
    pub waiting: usize,
    pub sessions: u64,
    pub held_back_lines: u64,
    pub slow: Option<SlowIo>,
    pub totals: ViewTotals,
}

pub struct Snapshot {
    pub name: String,
    pub store_type: StoreType,
    pub status: SnapshotStatus,
}

impl View {
    fn of(view: &ServedView, kind: &'static str) -> Self {
        let socket = view.socket.as_ref().or(view.connects.as_ref());
        Self {
            name: view.name.clone(),
            socket: socket.cloned().unwrap_or_default(),
            kind,
            read_only: view.read_only,
            attached: view.is_attached(),
            waiting: view.waiting(),
            sessions: view.sessions(),
            held_back_lines: view.held_back_lines(),
            slow: view.slow_io(),
            totals: view.totals(),
        }
    }
}

impl LiveVolume {
    pub(super) fn scene(&self) -> Result<Scene, ApiError> {
        let Some(tables) = lock_within(&self.tables, PATIENCE) else {
            let message = "the daemon is busy with a disk that does not answer: look at its log, \
                           and ask again";
            return Err(ApiError::new(ErrorKind::Io, message));
        };
        let engine = self.engine.status();
        let merging = tables.merging.as_ref();
        let origin_kind = match merging {
            Some(_) => "merge",
            None => "origin",
        };
        let origin = tables.origin_views.iter();
        let mut views: Vec<View> = origin.map(|v| View::of(v, origin_kind)).collect();
        for snapshot in &tables.snapshots {
            let follows = merging.is_some_and(|m| m.follow && m.id == snapshot.id);
            let kind = if follows { "merge" } else { "snapshot" };
            views.extend(snapshot.view.as_ref().map(|view| View::of(view, kind)));
        }
        let snapshots = tables.snapshots.iter().filter_map(|snapshot| {
            let mut known = engine.snapshots.iter();
            let status = known.find(|s| s.snapshot == snapshot.id)?.clone();
            Some(Snapshot {
                name: snapshot.spec.name.clone(),
                store_type: snapshot.spec.store_type,
                status,
            })
        });
        let snapshots = snapshots.collect();
        let merging = merging.is_some();
        drop(tables);
        Ok(Scene {
            views,
            snapshots,
            merging,
            engine,
            origin_sectors: self.engine.origin_sectors(),
            rollback_pending: self.rollback_pending.load(Ordering::Acquire),
        })
    }
}
