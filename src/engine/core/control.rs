//! Control requests: adding and removing snapshots, handover, clean stop; and
//! the waiting for requests that were decided before a change.

use super::merge::Merge;
use super::request::RequestId;
use super::{Core, Op, Snap, StoreState, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, PASSDOWN, READ_ORIGIN, WRITE};
use crate::engine::views::{SharedSnapshot, ViewMode};
use crate::mutation::{self, Mutation};
use std::sync::Arc;

/// A change that requests wait for.
#[derive(Debug)]
pub(super) struct Gate {
    kind: GateKind,
    pub(super) port: usize,
    id: u64,
    /// Requests that came meanwhile.
    pub(super) queue: Vec<RequestId>,
    /// A cut: what the origin holds was made durable, or not.
    flushed: Option<Result<(), Failure>>,
}

#[derive(Debug)]
enum GateKind {
    Cut {
        snapshot: SnapshotId,
        store: Option<Box<SnapshotStore>>,
    },
    Handover {
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    },
}

impl Gate {
    /// Only writes to origin views wait.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.kind, GateKind::Cut { .. })
    }

    /// Everything on the origin's and this snapshot's view waits.
    pub(super) fn handover(&self) -> Option<SnapshotId> {
        match self.kind {
            GateKind::Handover { snapshot, .. } => Some(snapshot),
            GateKind::Cut { .. } => None,
        }
    }
}

/// Waits for requests to end that were decided before a change.
#[derive(Debug)]
pub(super) enum Drain {
    /// Reads of these (sorted) origin chunks through a snapshot's view.
    SnapshotReads {
        snapshot: SnapshotId,
        chunks: Vec<u64>,
    },
    /// Writes to the chunks of the merge batch.
    MergeWrites { chunks: Vec<u64> },
    /// What the gate waits for.
    Gate,
    /// Reads of the origin through the view of a snapshot that was given up.
    InvalidReads { snapshot: SnapshotId, tell: bool },
    /// Reads of the merged store's COW device.
    MergeEnd,
    /// Whatever uses a snapshot that is being removed.
    Removal { snapshot: SnapshotId },
}

/// A clean stop: entries first, then every device flushed.
#[derive(Debug)]
pub(super) struct Syncing {
    pub(super) port: usize,
    id: u64,
    flushing: bool,
    left: usize,
    failed: Option<Failure>,
}

fn overlaps(chunks: &[u64], shared: &SharedSnapshot, start: u64, end: u64) -> bool {
    let range = shared.chunks(start, end);
    let at = chunks.partition_point(|c| *c < range.start);
    chunks.get(at).is_some_and(|c| *c < range.end)
}

impl Core {
    pub(in crate::engine) fn control(&mut self, port: usize, id: u64, request: ControlRequest) {
        let result = match request {
            ControlRequest::AddSnapshot { snapshot, store } => {
                self.add_snapshot(port, id, snapshot, store)
            }
            ControlRequest::RemoveSnapshot { snapshot, force } => {
                if self.gate.is_some() {
                    Err(ControlError::Busy)
                } else {
                    self.remove_snapshot(port, id, snapshot, force)
                }
            }
            ControlRequest::Handover {
                snapshot,
                writes,
                follow,
            } => self.start_handover(port, id, snapshot, writes, follow),
            ControlRequest::Sync => self.start_sync(port, id),
            other => {
                let result = self.at_once(other);
                return self.control_done(port, id, result);
            }
        };
        if let Err(error) = result {
            self.control_done(port, id, Err(error));
        }
    }

    /// Control requests that need not wait for anything.
    fn at_once(&mut self, request: ControlRequest) -> Result<(), ControlError> {
        match request {
            ControlRequest::PauseMerge => self.pause_merge(true),
            ControlRequest::ResumeMerge => self.pause_merge(false),
            ControlRequest::SetMergeWrites(writes) => {
                self.merge.as_mut().ok_or(ControlError::NoMerge)?.writes = writes;
                self.publish_views();
                // Whoever waited under the other rule decides again.
                self.release_merge_waiters();
                Ok(())
            }
            ControlRequest::InvalidRecorded { snapshot } => {
                self.add_drain(Drain::InvalidReads {
                    snapshot,
                    tell: false,
                });
                Ok(())
            }
            ControlRequest::Grow {
                snapshot,
                cow_sectors,
            } => {
                let snap = self
                    .snaps
                    .get_mut(&snapshot)
                    .ok_or(ControlError::UnknownSnapshot)?;
                snap.metadata.set_cow_sectors(cow_sectors);
                if snap.state == StoreState::Overflow {
                    snap.state = StoreState::Valid;
                    self.publish_views();
                }
                self.notify(Notice::Grown { snapshot });
                self.watch_usage(snapshot);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn control_done(&mut self, port: usize, id: u64, result: Result<(), ControlError>) {
        self.emit(port, Command::ControlDone { id, result });
    }

    // ---- a new snapshot

    fn add_snapshot(
        &mut self,
        port: usize,
        id: u64,
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    ) -> Result<(), ControlError> {
        if self.gate.is_some() || self.snaps.contains_key(&snapshot) || snapshot == ViewId::ORIGIN {
            return Err(ControlError::Busy);
        }
        if self.merge.is_some() {
            // It would see the raw origin, which is neither the old nor the new image.
            return Err(ControlError::MergeRunning);
        }
        self.gate = Some(Gate {
            kind: GateKind::Cut {
                snapshot,
                store: Some(store),
            },
            port,
            id,
            queue: Vec::new(),
            flushed: None,
        });
        self.publish_views();
        self.add_drain(Drain::Gate);
        Ok(())
    }

    fn install(&mut self, id: SnapshotId, store: SnapshotStore) {
        let chunk_size = store.metadata.layout().chunk_size;
        // For the whole origin: Linux may have left entries behind the snapshot's end.
        let table = crate::engine::table::ExceptionTable::new(
            chunk_size.chunks_covering(self.origin_sectors()),
        );
        for e in store.metadata.entries() {
            // Entries that were loaded are durable, and nothing reads the origin for them.
            table.set(e.old, e.new, true);
        }
        let shared = Arc::new(SharedSnapshot {
            id,
            device: store.device,
            chunk_size,
            sectors: store.sectors.min(self.origin_sectors()),
            table,
            defer_commits: store.defer_commits,
            discards: store.discards,
            flush_failed: false.into(),
        });
        self.snaps.insert(
            id,
            Snap {
                shared,
                metadata: store.metadata,
                keep_on_overflow: store.keep_on_overflow,
                defer_commits: store.defer_commits,
                state: if store.valid {
                    StoreState::Valid
                } else {
                    StoreState::Invalid
                },
                pending: Default::default(),
                queue: Default::default(),
                queue_base: 0,
                demand: 0,
                goal: None,
                commit: None,
                on_invalid: Vec::new(),
                ios: 0,
                usage_told: 0,
                marked: store.marked,
                removal: None,
            },
        );
    }

    // ---- handover

    fn start_handover(
        &mut self,
        port: usize,
        id: u64,
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    ) -> Result<(), ControlError> {
        if self.gate.is_some() {
            return Err(ControlError::Busy);
        }
        if self.merge.is_some() {
            return Err(ControlError::MergeRunning);
        }
        let snap = self
            .snaps
            .get_mut(&snapshot)
            .ok_or(ControlError::UnknownSnapshot)?;
        if snap.metadata.is_transient() {
            return Err(ControlError::Transient);
        }
        if !snap.is_usable() || snap.removal.is_some() {
            return Err(ControlError::Invalid);
        }
        snap.demand = snap.queue_base + snap.queue.len() as u64;
        self.work.push_back(super::Work::Commit(snapshot));
        self.gate = Some(Gate {
            kind: GateKind::Handover {
                snapshot,
                writes,
                follow,
            },
            port,
            id,
            queue: Vec::new(),
            flushed: None,
        });
        self.publish_views();
        self.add_drain(Drain::Gate);
        Ok(())
    }

    /// Order of a cut: 1 new writes wait → 2 older ones have ended → 3 the origin
    /// flushed, or power loss would take from the snapshot what it shows → 4 the
    /// snapshot is there → 5 writes go on.
    fn open_gate(&mut self) {
        let Some(gate) = &self.gate else { return };
        if gate.is_cut() && gate.flushed.is_none() {
            let (port, device) = (gate.port, self.origin_device());
            let tag = self.tag(Op::CutFlush);
            return self.emit(port, Command::Flush { tag, device });
        }
        let Some(gate) = self.gate.take() else { return };
        let result = match gate.kind {
            GateKind::Cut { snapshot, store } => match (gate.flushed, store) {
                (Some(Err(failure)), _) => Err(ControlError::Io(failure)),
                (_, Some(store)) => {
                    self.install(snapshot, *store);
                    self.notify(Notice::Added { snapshot });
                    self.watch_usage(snapshot);
                    Ok(())
                }
                (_, None) => Ok(()),
            },
            GateKind::Handover {
                snapshot,
                writes,
                follow,
            } => {
                if self.snaps.get(&snapshot).is_some_and(Snap::is_usable) {
                    self.merge = Some(Merge::new(snapshot, writes, follow));
                    self.notify(Notice::HandedOver { snapshot });
                    self.notify(Notice::MergeWork { snapshot });
                    Ok(())
                } else {
                    Err(ControlError::Invalid)
                }
            }
        };
        self.publish_views();
        self.control_done(gate.port, gate.id, result);
        for request in gate.queue {
            self.look_again(Waiter::Request(request));
        }
    }

    pub(super) fn cut_flushed(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // A flush before this one failed: what that covered may be lost.
        let flushed = self.flush_lost(None).map_or(Ok(()), Err);
        if let Some(gate) = &mut self.gate {
            gate.flushed = Some(flushed);
        }
        self.open_gate();
    }

    // ---- clean stop

    fn start_sync(&mut self, port: usize, id: u64) -> Result<(), ControlError> {
        if self.syncing.is_some() {
            return Err(ControlError::Busy);
        }
        let ids: Vec<SnapshotId> = self.snaps.keys().copied().collect();
        for snapshot in ids {
            if let Some(snap) = self.snaps.get_mut(&snapshot)
                && let Some(chunk) = snap.newest_ready()
                && !mutation::is(Mutation::SyncForgetsEntries)
            {
                snap.demand(chunk);
                self.work.push_back(super::Work::Commit(snapshot));
            }
        }
        self.syncing = Some(Syncing {
            port,
            id,
            flushing: false,
            left: 0,
            failed: None,
        });
        self.advance_sync();
        Ok(())
    }

    pub(super) fn advance_sync(&mut self) {
        let committed = self
            .snaps
            .values()
            .all(|s| !s.is_usable() || s.demand <= s.queue_base);
        let Some(syncing) = &mut self.syncing else {
            return;
        };
        if syncing.flushing {
            return self.end_sync();
        }
        if !committed {
            return;
        }
        syncing.flushing = true;
        let port = syncing.port;
        let mut devices = vec![(self.origin_device(), None)];
        devices.extend(
            self.snaps
                .values()
                .filter(|s| s.is_usable())
                .map(|s| (s.shared.device, Some(s.shared.id))),
        );
        if let Some(syncing) = &mut self.syncing {
            syncing.left = devices.len();
        }
        for (device, snapshot) in devices {
            let tag = self.tag(Op::Sync { snapshot });
            self.emit(port, Command::Flush { tag, device });
        }
    }

    pub(super) fn sync_flush_done(
        &mut self,
        snapshot: Option<SnapshotId>,
        result: Result<(), Failure>,
    ) {
        // As for a guest's flush: what is lost now, no later flush brings back.
        if let Err(failure) = result
            && !mutation::is(Mutation::FailedSyncForgotten)
        {
            self.flush_failed(snapshot, failure);
        }
        // A store that was given up since then promises nothing and fails nothing.
        let merging = self.merge.as_ref().map(|m| m.snapshot);
        let counts = snapshot.is_none() || snapshot == merging;
        let lost = self.flush_lost(snapshot).filter(|_| counts);
        let result = result.and(lost.map_or(Ok(()), Err));
        let Some(syncing) = &mut self.syncing else {
            return;
        };
        if let Err(failure) = result {
            syncing.failed = Some(failure);
        }
        syncing.left = syncing.left.saturating_sub(1);
    }

    /// Ends when all is flushed. A store that a flush has cost is invalid in its
    /// header by then, or somebody was told that it could not be.
    fn end_sync(&mut self) {
        let giving_up = (self.snaps.values()).any(|s| s.is_invalidating() && s.ios > 0);
        if (self.syncing.as_ref()).is_some_and(|s| s.left == 0 && !giving_up)
            && let Some(syncing) = self.syncing.take()
        {
            let failed = syncing.failed.or(self.flush_lost(None));
            let result = failed.map_or(Ok(()), |e| Err(ControlError::Io(e)));
            self.control_done(syncing.port, syncing.id, result);
        }
    }

    // ---- drains

    pub(super) fn is_drained(&self, drain: &Drain) -> bool {
        let skipped = match drain {
            Drain::SnapshotReads { .. } => Mutation::SnapshotReadsNotDrained,
            Drain::InvalidReads { .. } => Mutation::InvalidReadsNotDrained,
            Drain::MergeWrites { .. } => Mutation::MergeWritesNotDrained,
            Drain::Gate if self.gate.as_ref().is_some_and(Gate::is_cut) => Mutation::CutNotDrained,
            Drain::Gate => Mutation::HandoverNotDrained,
            Drain::MergeEnd => Mutation::MergeEndNotDrained,
            Drain::Removal { .. } => Mutation::RemovalNotDrained,
        };
        if mutation::is(skipped) {
            return true;
        }
        match drain {
            Drain::SnapshotReads { snapshot, chunks } => {
                let Some(snap) = self.snaps.get(snapshot) else {
                    return true;
                };
                !self.ports().any(|(_, p)| {
                    p.role == PortRole::View(*snapshot)
                        && p.registrations
                            .any(READ_ORIGIN, |s, e| overlaps(chunks, &snap.shared, s, e))
                })
            }
            Drain::InvalidReads { snapshot, .. } => !self.ports().any(|(_, p)| {
                p.role == PortRole::View(*snapshot) && p.registrations.any(READ_ORIGIN, |_, _| true)
            }),
            Drain::MergeWrites { chunks } => {
                let Some(snap) = self
                    .merge
                    .as_ref()
                    .and_then(|m| self.snaps.get(&m.snapshot))
                else {
                    return true;
                };
                !self
                    .ports_where(|m| matches!(m, ViewMode::Merge { .. }))
                    .any(|p| {
                        p.registrations
                            .any(WRITE, |s, e| overlaps(chunks, &snap.shared, s, e))
                    })
            }
            // A snapshot's own view may write the origin, too.
            Drain::Gate if self.is_passing_down() => false,
            Drain::Gate => match self.gate.as_ref().map(|g| &g.kind) {
                None => true,
                Some(GateKind::Cut { .. }) => !self
                    .ports_where(|m| matches!(m, ViewMode::Origin { .. }))
                    .any(|p| p.registrations.any(WRITE, |_, _| true)),
                Some(GateKind::Handover { snapshot, .. }) => {
                    self.snaps.get(snapshot).is_none_or(|s| {
                        !s.is_usable() || (s.pending.is_empty() && s.commit.is_none())
                    }) && !self
                        .ports_where(|m| matches!(m, ViewMode::Gated))
                        .any(|p| p.registrations.any(u64::MAX, |_, _| true))
                }
            },
            Drain::MergeEnd => {
                let merged = self.merge.as_ref().map(|m| m.snapshot);
                merged
                    .and_then(|id| self.snaps.get(&id))
                    .is_none_or(|s| s.ios == 0)
                    && !self
                        .ports_where(|m| matches!(m, ViewMode::Origin { .. }))
                        .any(|p| p.registrations.any(COW, |_, _| true))
            }
            Drain::Removal { snapshot } => {
                self.snaps
                    .get(snapshot)
                    .is_none_or(|s| s.ios == 0 && s.state == StoreState::Invalid)
                    && !self.ports().any(|(_, p)| {
                        p.role == PortRole::View(*snapshot) && p.registrations.any(COW, |_, _| true)
                    })
            }
        }
    }

    fn is_passing_down(&self) -> bool {
        !mutation::is(Mutation::PassdownNotDrained)
            && self
                .ports()
                .any(|(_, p)| p.registrations.any(PASSDOWN, |_, _| true))
    }

    fn ports_where(
        &self,
        which: impl Fn(&ViewMode) -> bool,
    ) -> impl Iterator<Item = &Arc<crate::engine::shared::PortShared>> {
        self.ports().filter_map(move |(_, p)| match p.role {
            PortRole::View(view) if which(self.config.mode(view)) => Some(p),
            _ => None,
        })
    }

    pub(super) fn drained(&mut self, drain: Drain) {
        match drain {
            Drain::SnapshotReads { snapshot, chunks } => {
                self.settled(snapshot, &chunks);
            }
            Drain::InvalidReads { snapshot, tell } => self.invalidated(snapshot, tell),
            Drain::MergeWrites { .. } => self.batch_drained(),
            Drain::Gate => self.open_gate(),
            Drain::MergeEnd => self.merge_ended(),
            Drain::Removal { snapshot } => self.removed(snapshot),
        }
    }
}
