//! The volume while it is served: the engine, and what the engine does not
//! know (names, paths, sockets, the state file).
//!
//! Three locks, taken in this order and never the other way round:
//! `ops` makes operations take turns and may be held while the engine drains;
//! `state` is held while the state file is written; `tables` only for look-ups.
//! The main thread, which must always be able to answer the engine's notices,
//! takes the last two only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::turns::Turns;
use super::views::{View, ViewSettings};
use crate::control::api::{
    ApiError, ErrorKind, MergeOutcome, MergeRequest, RollbackReply, RollbackRequest, SnapshotSpec,
    Volume, VolumeStatus,
};
use crate::control::events::EventLog;
use crate::daemon::cow::OriginFacts;
use crate::daemon::monitor::watch::Watch;
use crate::daemon::state::{StateError, StateFile};
use crate::daemon::verbs::merging::Undo;
use crate::daemon::verbs::resets::Waited;
use crate::engine::{ControlError, ControlRequest, Engine, MergeWrites, SnapshotId};
use crate::executor::{Executor, Report};
use crate::io::{DeviceId, Devices, Identity};
use crate::merger::Merger;
use crate::units::ChunkSize;

/// What does not change while the volume is served.
#[derive(Debug)]
pub struct VolumeFacts {
    /// As shown in the status.
    pub path: String,
    pub origin: OriginFacts,
    pub origin_device: DeviceId,
    /// `major:minor`, `0:0` for a file.
    pub device_string: String,
    pub read_only: bool,
    /// For merges that start from now on.
    pub merge_writes: MergeWrites,
    /// The origin view's socket was given as a descriptor, and nothing else is served.
    pub on_descriptor: bool,
    pub views: ViewSettings,
}

/// One served volume.
pub struct LiveVolume {
    /// For what outlives a call: views and their hooks.
    pub this: Weak<LiveVolume>,
    pub facts: VolumeFacts,
    pub engine: Arc<Engine>,
    pub devices: Arc<Devices>,
    pub ops: Mutex<Executor>,
    pub state: Mutex<StateFile>,
    pub tables: Mutex<Tables>,
    /// `None` once it was stopped.
    pub merger: Mutex<Option<Merger>>,
    /// Cheap to ask at every reset; the truth is in the state.
    pub rollback_pending: AtomicBool,
    /// The guest of the last daemon may come back: none has started rings yet.
    pub may_come_back: AtomicBool,
    /// Told to stop.
    pub stopping: Arc<AtomicBool>,
    /// Threads that tidy up after a merge.
    pub tidying: Mutex<Vec<JoinHandle<()>>>,
    /// Takes a lock of its own, under which nothing is done: any other may be held.
    pub events: EventLog,
    pub turns: Turns,
    /// QEMU's monitor, while a rollback waits that it tells the reset of. No other
    /// lock is taken under it.
    pub watch: Mutex<Option<Watch>>,
    /// The next handover fails in the engine.
    #[cfg(test)]
    pub fail_handover: AtomicBool,
}

/// What is alive, by name.
#[derive(Default)]
pub struct Tables {
    /// In the order of their creation.
    pub snapshots: Vec<Snapshot>,
    /// The origin's own view first, then those that went over to it.
    pub origin_views: Vec<View>,
    pub merging: Option<Merging>,
    pub last_merge: Option<MergeOutcome>,
    /// Why the rollback that waits did not happen when a driver began.
    pub waited: Option<Waited>,
    /// A handover that did not happen and is still recorded.
    pub undo: Option<Undo>,
    /// Number of the newest snapshot; the origin is 0.
    pub last_id: u32,
}

/// A snapshot that the engine has.
pub struct Snapshot {
    pub id: SnapshotId,
    /// With name, absolute paths and the store's chunk size.
    pub spec: SnapshotSpec,
    pub device: DeviceId,
    pub identity: Identity,
    pub device_string: String,
    /// Length of what it shows.
    pub sectors: u64,
    pub chunk_size: ChunkSize,
    pub view: Option<View>,
}

/// A merge that the engine runs.
#[derive(Clone, Debug)]
pub struct Merging {
    pub name: String,
    pub id: SnapshotId,
    pub follow: bool,
    /// Chunks that there were at the handover.
    pub chunks: u64,
}

impl Tables {
    pub fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.spec.name == name)
    }

    pub fn name_of(&self, id: SnapshotId) -> Option<&str> {
        self.snapshots
            .iter()
            .find(|s| s.id == id)
            .map(|s| s.spec.name.as_str())
    }

    /// The storage of all COWs, with the names of their snapshots.
    pub fn storage(&self) -> Vec<(String, Identity)> {
        self.snapshots
            .iter()
            .map(|s| (s.spec.name.clone(), s.identity))
            .collect()
    }

    pub fn next_id(&mut self) -> SnapshotId {
        // Four thousand million snapshots in one process do not happen.
        self.last_id = self.last_id.saturating_add(1);
        crate::engine::ViewId(self.last_id)
    }

    /// A front end is connected to a view of the origin.
    pub fn origin_attached(&self) -> bool {
        self.origin_views.iter().any(View::is_attached)
    }

    /// A guest of the origin is in its firmware or boot loader.
    pub fn in_firmware(&self) -> bool {
        self.origin_views.iter().any(View::is_in_firmware)
    }

    /// Where a guest of the origin has rings that run.
    pub fn running_at(&self) -> Option<String> {
        let running = self.origin_views.iter().find(|v| v.runs())?;
        let at = running.socket.as_deref();
        Some(at.unwrap_or("the given descriptor").to_owned())
    }
}

/// Nothing under the daemon's locks can be left half-way by a panic: panics abort.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Conflict, message)
}

/// The state file could not be written: nothing has changed.
pub fn not_recorded(error: &StateError) -> ApiError {
    ApiError::new(
        ErrorKind::Io,
        format!("nothing was changed, because it could not be recorded: {error}"),
    )
}

impl LiveVolume {
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub fn downgrade(&self) -> Weak<Self> {
        self.this.clone()
    }

    pub fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    pub fn view_settings(&self) -> &ViewSettings {
        &self.facts.views
    }

    /// Has the engine carry out a control request. `ops` shows that it is our turn.
    pub fn drive(&self, ops: &mut Executor, request: ControlRequest) -> Result<(), ControlError> {
        let mut others: Vec<Report> = Vec::new();
        let result = ops.drive(request, &mut others);
        for other in others {
            tracing::debug!(?other, "not for the control port");
        }
        result
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The one front end that this volume was started for has left, and no other
    /// can come.
    pub fn is_deserted(&self) -> bool {
        self.facts.on_descriptor
            && lock(&self.tables)
                .origin_views
                .iter()
                .all(View::is_finished)
    }

    /// The error for a snapshot that is not there.
    pub fn unknown(&self, name: &str) -> ApiError {
        let known: Vec<String> = lock(&self.tables)
            .snapshots
            .iter()
            .map(|s| s.spec.name.clone())
            .collect();
        let known = if known.is_empty() {
            "there are none".to_owned()
        } else {
            format!("known are: {}", known.join(", "))
        };
        ApiError::new(ErrorKind::NotFound, format!("no snapshot {name}; {known}"))
    }
}

/// After a change the main thread has its turn, so that the events of the change
/// are in the log before the client has its answer.
impl Volume for LiveVolume {
    fn status(&self) -> VolumeStatus {
        self.build_status()
    }

    fn add_snapshot(&self, spec: SnapshotSpec) -> Result<(), ApiError> {
        self.turns.settle_after(self.create_snapshot(spec))
    }

    fn remove_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError> {
        self.turns.settle_after(self.delete_snapshot(name, force))
    }

    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        self.turns.settle_after(self.grow_store(name, bytes))
    }

    fn rollback(&self, request: RollbackRequest) -> Result<RollbackReply, ApiError> {
        self.turns.settle_after(self.roll_back(request))
    }

    fn cancel_rollback(&self) -> Result<(), ApiError> {
        self.call_rollback_off()
    }

    fn merge(&self, request: MergeRequest) -> Result<(), ApiError> {
        self.turns.settle_after(self.merge_now(&request))
    }

    fn pause_merge(&self) -> Result<(), ApiError> {
        self.turns.settle_after(self.set_paused(true))
    }

    fn resume_merge(&self) -> Result<(), ApiError> {
        self.turns.settle_after(self.set_paused(false))
    }

    fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ApiError> {
        self.set_rate(bytes_per_second)
    }

    fn events(&self) -> &EventLog {
        &self.events
    }
}
