//! What the engine tells, and what the volume does about it.

use std::sync::Arc;
use std::time::Duration;

use crate::control::api::MergeOutcome;
use crate::control::events::Happening;
use crate::daemon::state::VolumeState;
use crate::daemon::volume::{LiveVolume, lock};
use crate::engine::{ControlRequest, FailedDevice, InvalidReason, Notice, SnapshotId};
use crate::executor::{Executor, Report};

/// How long to wait before a state file that could not be written is tried again.
pub const RETRY: Duration = Duration::from_secs(1);

/// The notice port's side of the volume. Runs on the main thread, which never
/// waits for the engine, so that the engine never waits for it in vain.
pub struct Notices {
    executor: Executor,
    /// Invalidations that are neither in the store's header nor in the state
    /// file yet. Origin writes wait for them: the guest stalls, but no snapshot
    /// that missed a copy-out comes back as valid.
    unrecorded: Vec<(SnapshotId, InvalidReason)>,
    /// What is added and handed over was so before this daemon.
    starting: bool,
}

impl Notices {
    pub fn new(executor: Executor) -> Self {
        Self {
            executor,
            unrecorded: Vec::new(),
            starting: true,
        }
    }

    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Something is waiting for [`RETRY`] to pass.
    pub fn wants_retry(&self) -> bool {
        !self.unrecorded.is_empty()
    }

    /// Everything that the volume begins with is in the engine, and was heard of.
    pub fn started(&mut self) {
        self.starting = false;
    }

    /// Takes what the engine has told, and tries again what failed.
    pub fn turn(&mut self, volume: &Arc<LiveVolume>) {
        volume.turns.take(|| self.take_turn(volume));
    }

    fn take_turn(&mut self, volume: &Arc<LiveVolume>) {
        self.hear(volume);
        self.unrecorded.retain(|&(snapshot, reason)| {
            let recorded = volume.record_invalid(snapshot);
            if let Some(end) = &recorded {
                self.executor
                    .start(ControlRequest::InvalidRecorded { snapshot });
                volume.tell_invalid(snapshot, reason);
                volume.tell_called_off(end);
            }
            recorded.is_none()
        });
        // Carries out what the answers set going; more may have been told meanwhile.
        if !self.executor.is_idle() {
            self.hear(volume);
        }
    }

    fn hear(&mut self, volume: &Arc<LiveVolume>) {
        let mut reports = Vec::new();
        self.executor.turn(&mut reports);
        for report in reports {
            match report {
                Report::Notice(notice) => self.take(volume, notice),
                Report::ControlDone { result, .. } => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "an answer to the engine was refused");
                    }
                }
            }
        }
    }

    fn take(&mut self, volume: &Arc<LiveVolume>, notice: Notice) {
        match notice {
            Notice::Added { snapshot } => volume.tell_added(snapshot, self.starting),
            Notice::HandedOver { snapshot } => {
                let merging = lock(&volume.tables).merging.clone();
                if let Some(merging) = merging.filter(|m| m.id == snapshot) {
                    let handover = Happening::Handover {
                        follow: merging.follow,
                        chunks: merging.chunks,
                        at_start: self.starting,
                    };
                    volume.events.tell(Some(&merging.name), handover);
                }
            }
            Notice::MergePaused { snapshot } => volume.tell(snapshot, Happening::MergePaused),
            Notice::MergeResumed { snapshot } => volume.tell(snapshot, Happening::MergeResumed),
            Notice::Grown { snapshot } => {
                let size = volume.cow_size(snapshot);
                volume.tell(snapshot, Happening::SnapshotGrown { size });
            }
            Notice::Usage { snapshot, percent } => {
                volume.say_usage(snapshot, percent);
                volume.tell(snapshot, Happening::UsageThreshold { percent });
            }
            Notice::Invalid {
                snapshot,
                reason,
                durable,
            } => {
                volume.say_invalid(snapshot, reason);
                if !durable {
                    self.unrecorded.push((snapshot, reason));
                } else if reason != InvalidReason::Removed {
                    // The header says it already; the state file may fail to.
                    volume.tell_invalid(snapshot, reason);
                    if let Some(end) = volume.record_invalid(snapshot) {
                        volume.tell_called_off(&end);
                    }
                }
            }
            Notice::Overflow { snapshot } => {
                let tables = lock(&volume.tables);
                let name = tables.name_of(snapshot).unwrap_or("?");
                tracing::warn!(snapshot = %name, "the COW is full: reads of the snapshot go on, writes fail; give it more room with `snapback grow {name} SIZE`");
                drop(tables);
                volume.tell(snapshot, Happening::SnapshotOverflow);
            }
            Notice::MergeDone { snapshot } => volume.tidy_up_merge(snapshot),
            Notice::MergeFailed { snapshot, stop } => volume.tell_merge_failed(snapshot, stop),
            Notice::OriginFlushFailed { failure } => {
                let error = volume.in_words(failure, None);
                tracing::error!("{error}; guests' flushes fail until the daemon is started again");
                let failed = Happening::OriginFlushFailed { error };
                volume.events.tell(None, failed);
            }
            // The merger has its own.
            Notice::MergeWork { .. } => {}
        }
    }
}

/// An invalidation is in the state file.
#[derive(Debug, Default)]
struct Recorded {
    /// The snapshot whose rollback was pending until then.
    called_off: Option<String>,
}

impl LiveVolume {
    fn say_usage(&self, snapshot: SnapshotId, percent: u64) {
        let tables = lock(&self.tables);
        let name = tables.name_of(snapshot).unwrap_or("?");
        tracing::warn!(snapshot = %name,
            "{percent} % of the COW is used; give it more room with `snapback grow {name} SIZE`");
    }

    fn tell_called_off(&self, recorded: &Recorded) {
        if let Some(name) = &recorded.called_off {
            self.tell_cancelled(name, "invalid");
        }
    }

    fn say_invalid(&self, snapshot: SnapshotId, reason: InvalidReason) {
        let tables = lock(&self.tables);
        let name = tables.name_of(snapshot).unwrap_or("?");
        match reason {
            InvalidReason::Removed => {}
            InvalidReason::Loaded => {
                tracing::warn!(snapshot = %name, "the snapshot was invalid before")
            }
            InvalidReason::Full => tracing::error!(snapshot = %name,
                "the COW is full: the snapshot is invalid for good; remove it with `snapback remove {name}`. \
                 The origin is not affected"),
            InvalidReason::Io(failure) => {
                let name = name.to_owned();
                drop(tables);
                let error = self.in_words(failure, Some(snapshot));
                let origin = match failure.device {
                    FailedDevice::Origin => "What it needed from there could not be saved",
                    FailedDevice::Cow => "The origin is not affected",
                };
                tracing::error!(snapshot = %name,
                    "{error}: the snapshot is invalid for good; remove it with `snapback remove {name}`. {origin}");
            }
        }
    }

    /// Notes durably that a snapshot is invalid; says so if that failed.
    fn record_invalid(&self, snapshot: SnapshotId) -> Option<Recorded> {
        let Some(name) = lock(&self.tables).name_of(snapshot).map(str::to_owned) else {
            return Some(Recorded::default());
        };
        let mut called_off = None;
        let recorded = lock(&self.state).update(|s| {
            called_off = s.rollback_at_reset.take_if(|r| r.snapshot == name);
            if let Some(record) = s.snapshot_mut(&name) {
                record.valid = false;
            }
        });
        self.refresh_pending();
        match recorded {
            Ok(()) => Some(Recorded {
                called_off: called_off.map(|r| r.snapshot),
            }),
            Err(error) => {
                tracing::error!(snapshot = %name, %error, "the snapshot is invalid, and the state file could not be written; it is tried every second, and what guests \
                     write to the disk may wait until it succeeds");
                None
            }
        }
    }

    /// A merge has ended. What is left to do may have to wait for its turn, so a
    /// thread of its own does it.
    fn tidy_up_merge(self: &Arc<Self>, snapshot: SnapshotId) {
        let volume = self.clone();
        let spawned = std::thread::Builder::new()
            .name("merge end".into())
            .spawn(move || volume.end_merge(snapshot));
        match spawned {
            Ok(thread) => lock(&self.tidying).push(thread),
            Err(error) => {
                tracing::error!(%error, "the end of the merge could not be recorded; the next start does it")
            }
        }
    }

    /// Order: 1 the state file forgets the snapshot (again and again until it
    /// does: the merge is not over before) → 2 its view is closed, if it did not
    /// follow → 3 the COW is closed → 4 at one moment the merge and the snapshot are
    /// gone from the status, and a view that followed is the origin's.
    fn end_merge(&self, id: SnapshotId) {
        // The lock is not held between tries, so that control requests go on.
        let (_turn, merging, record) = loop {
            let turn = lock(&self.ops);
            let Some(merging) = lock(&self.tables).merging.clone().filter(|m| m.id == id) else {
                return;
            };
            let record = lock(&self.state).state().snapshot(&merging.name).cloned();
            match lock(&self.state).update(|s| forget_merged(s, &merging.name, merging.follow)) {
                Ok(()) => break (turn, merging, record),
                Err(error) => tracing::error!(snapshot = %merging.name, %error,
                    "the merge has ended, and the state file could not be written; it is tried again every second"),
            }
            drop(turn);
            // The next start finds an empty store and ends the merge again.
            if self.is_stopping() {
                return;
            }
            std::thread::sleep(RETRY);
        };
        let merged = {
            let mut tables = lock(&self.tables);
            let merged = tables.snapshots.iter_mut().find(|s| s.id == id);
            merged.map(|m| {
                let view = m.view.take_if(|_| !merging.follow);
                (m.device, m.spec.cow.clone(), view)
            })
        };
        if let Some((device, cow, view)) = merged {
            if let Some(view) = view {
                view.stop();
            }
            drop(self.devices.remove(device));
            record
                .iter()
                .for_each(crate::daemon::provenance::marking::release_cow);
            tracing::info!(snapshot = %merging.name, chunks = merging.chunks, %cow,
                "merged: the origin is complete, the COW is not needed any more and can be removed");
        }
        let (name, chunks) = (merging.name, merging.chunks);
        let mut tables = lock(&self.tables);
        self.events
            .tell(Some(&name), Happening::MergeDone { chunks });
        let merged = tables.snapshots.iter().position(|s| s.id == id);
        let merged = merged.map(|place| tables.snapshots.remove(place));
        let followed = merged.and_then(|m| m.view);
        tables.origin_views.extend(followed);
        tables.last_merge = Some(MergeOutcome {
            snapshot: name,
            chunks,
            error: None,
        });
        tables.merging = None;
    }
}

fn forget_merged(state: &mut VolumeState, name: &str, follow: bool) {
    let spec = state.snapshot(name).map(|s| s.spec.clone());
    if follow && let Some((spec, socket)) = spec.and_then(|s| Some((s.clone(), s.socket?))) {
        if spec.is_read_only() {
            state.read_only_sockets.push(socket.clone());
        }
        state.followed_sockets.push(socket);
    }
    state.drop_snapshot(name);
}
