//! The served volume: the engine, and what the engine does not hold (names, paths,
//! sockets, the state file).
//!
//! Three locks, always taken in this order:
//! `ops` serializes the operations and may be held while the engine drains;
//! `state` is held while the state file is written; `tables` is held for look-ups only.
//! The main thread must always be able to answer the engine's notices, so it takes only
//! the last two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::left_over::LeftOver;
use super::notice_barrier::NoticeBarrier;
use super::reset_rule::Postponed;
use super::undo::Undo;
use super::views::{ServedView, ViewSettings};
use crate::control::api::{ApiError, ErrorKind, MergeOutcome, SnapshotSpec};
use crate::control::events::EventLog;
use crate::daemon::cow::{Given, OpenRecord, OriginFacts};
use crate::daemon::monitor::watch::Watch;
use crate::daemon::state::{StateError, StateFile, VolumeState};
use crate::engine::{ControlError, ControlRequest, Engine, MergeWrites, SnapshotId};
use crate::executor::{Executor, Output};
use crate::io::{DeviceId, Devices, Disk, Identity, IoEngine, open_disk};
use crate::merger::Merger;
use crate::socket_access::SocketAccess;
use crate::units::ChunkSize;

/// How long to wait before a write of the state file that failed is repeated.
pub const RETRY: Duration = Duration::from_secs(1);

/// Who the volume is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Guests and control clients.
    Daemon,
    /// A merge without a daemon.
    OfflineMerge,
}

/// What does not change while the volume is served.
#[derive(Debug)]
pub struct VolumeFacts {
    pub service: Service,
    /// As shown in the status.
    pub path: String,
    /// When the volume was opened; see [`LiveVolume::origin`].
    pub origin: OriginFacts,
    pub origin_device: DeviceId,
    /// `major:minor`, `0:0` for a file.
    pub device_string: String,
    pub read_only: bool,
    /// For merges that start from now on.
    pub merge_writes: MergeWrites,
    /// The origin view's socket was passed as a descriptor, and nothing else is served.
    pub on_descriptor: bool,
    pub views: ViewSettings,
    /// Of the sockets of snapshots that are taken from now on.
    pub socket_access: SocketAccess,
}

/// One served volume.
pub struct LiveVolume {
    /// For threads and views that outlive a call.
    pub this: Weak<LiveVolume>,
    pub facts: VolumeFacts,
    pub engine: Arc<Engine>,
    pub devices: Arc<Devices>,
    pub ops: Mutex<Executor>,
    pub state: Mutex<StateFile>,
    /// What the status has last shown of the state file: while that is being written, to a
    /// disk that may not answer, the status does not wait for it.
    pub shown: Mutex<VolumeState>,
    pub tables: Mutex<Tables>,
    /// `None` once it was stopped.
    pub merger: Mutex<Option<Merger>>,
    /// A copy of what the state file says, for a cheap check at every ring start.
    pub rollback_pending: AtomicBool,
    /// The guest of the previous daemon may reconnect: none has started rings yet.
    pub may_come_back: AtomicBool,
    /// The daemon has been asked to stop.
    pub stopping: Arc<AtomicBool>,
    /// Another daemon takes the volume over: no ring starts any more, and this one stops.
    pub released: Arc<AtomicBool>,
    /// Threads that record the ends of merges.
    pub merge_ends: Mutex<Vec<JoinHandle<()>>>,
    /// Its own lock is held for the log's bookkeeping only, so that it may be used under
    /// any other lock. It outlives the volume in the thread that runs a command on events.
    pub events: Arc<EventLog>,
    pub notice_barrier: NoticeBarrier,
    /// QEMU's monitor, while a rollback waits for the reset that it reports. No other
    /// lock is taken while this one is held.
    pub watch: Mutex<Option<Watch>>,
    /// The COW of the snapshot that a rollback at the guest's reset takes first, if a client has
    /// opened it. No other lock is taken while this one is held.
    pub kept_cow: Mutex<Option<Given>>,
    /// The next handover fails in the engine.
    #[cfg(test)]
    pub fail_handover: AtomicBool,
}

/// The snapshots, views and merges of the volume.
#[derive(Default)]
pub struct Tables {
    /// In the order of their creation.
    pub snapshots: Vec<Snapshot>,
    /// The origin's own view first, then the views that followed their merges.
    pub origin_views: Vec<ServedView>,
    pub merging: Option<Merging>,
    pub last_merge: Option<MergeOutcome>,
    /// The COW of that merge, if it ended well.
    pub left_over: Option<Arc<LeftOver>>,
    /// Why the pending rollback did not happen when a driver started.
    pub postponed: Option<Postponed>,
    /// Changes that failed and are still recorded.
    pub undo: Vec<Undo>,
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
    /// Length of the snapshot's view.
    pub sectors: u64,
    pub chunk_size: ChunkSize,
    /// The record of its unflushed writes, if its entries are deferred.
    pub deferral: Option<OpenRecord>,
    pub view: Option<ServedView>,
}

/// A merge that the engine runs.
#[derive(Clone, Debug)]
pub struct Merging {
    pub name: String,
    pub id: SnapshotId,
    pub follow: bool,
    /// Number of chunks at the handover.
    pub chunks: u64,
}

impl Tables {
    pub fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.spec.name == name)
    }

    pub fn snapshot_by_id(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.id == id)
    }

    pub fn snapshot_by_id_mut(&mut self, id: SnapshotId) -> Option<&mut Snapshot> {
        self.snapshots.iter_mut().find(|s| s.id == id)
    }

    pub fn name_of(&self, id: SnapshotId) -> Option<&str> {
        self.snapshot_by_id(id).map(|s| s.spec.name.as_str())
    }

    /// The storage of all COWs, with the names of their snapshots.
    pub fn storage(&self) -> Vec<(String, Identity)> {
        self.snapshots
            .iter()
            .map(|s| (s.spec.name.clone(), s.identity))
            .collect()
    }

    pub fn next_id(&mut self) -> SnapshotId {
        // One process does not take four thousand million snapshots.
        self.last_id = self.last_id.saturating_add(1);
        crate::engine::ViewId(self.last_id)
    }

    /// A front end is connected to a view of the origin.
    pub fn origin_attached(&self) -> bool {
        self.origin_views.iter().any(ServedView::is_attached)
    }

    /// A guest of the origin is in its firmware or boot loader.
    pub fn in_firmware(&self) -> bool {
        self.origin_views.iter().any(ServedView::is_in_firmware)
    }

    /// The socket at which a guest of the origin has running rings.
    pub fn running_at(&self) -> Option<String> {
        let running = self.origin_views.iter().find(|v| v.is_running())?;
        let at = running.socket.as_deref();
        Some(at.unwrap_or("the given descriptor").to_owned())
    }
}

/// A panic cannot leave a change under these locks half done, because panics abort.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], but waits for no longer than `patience`.
pub fn lock_within<T>(mutex: &Mutex<T>, patience: Duration) -> Option<MutexGuard<'_, T>> {
    const PAUSE: Duration = Duration::from_millis(2);
    let start = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}

pub fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Conflict, message)
}

/// The state file could not be written, so nothing has been changed.
pub fn not_recorded(error: &StateError) -> ApiError {
    ApiError::new(
        ErrorKind::Io,
        format!("nothing was changed, because the change could not be recorded: {error}"),
    )
}

impl LiveVolume {
    /// Has the engine carry out a control request. `ops` proves that no other
    /// operation is running.
    pub fn drive(&self, ops: &mut Executor, request: ControlRequest) -> Result<(), ControlError> {
        let mut others: Vec<Output> = Vec::new();
        let result = ops.drive(request, &mut others);
        for other in others {
            tracing::debug!(?other, "not for the control port");
        }
        result
    }

    /// The origin with its present size.
    pub fn origin(&self) -> OriginFacts {
        OriginFacts {
            sectors: self.engine.origin_sectors(),
            ..self.facts.origin
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The only front end that this volume was started for has left, and no other
    /// front end can connect.
    pub fn is_deserted(&self) -> bool {
        self.facts.on_descriptor
            && lock(&self.tables)
                .origin_views
                .iter()
                .all(ServedView::is_finished)
    }

    /// A disk for work that waits for each operation.
    pub fn one_thread_disk(&self) -> Result<Box<dyn Disk + Send>, ApiError> {
        open_disk(IoEngine::Threads, self.devices.clone(), 1)
            .map_err(|e| ApiError::new(ErrorKind::Io, format!("cannot start an I/O thread: {e}")))
    }

    /// The error for a snapshot that does not exist.
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
