//! The critical section: everything that changes state.
//!
//! An event comes in through [`Core::begin`] and one of the event methods, which
//! push [`Work`]; [`Core::run`] works it off until nothing moves any more. All
//! maps are ordered, so that the same events give the same commands.

mod buffers;
mod carrier;
mod commit;
mod control;
mod copyout;
mod discard;
mod inspect;
mod invalidate;
mod merge;
mod merge_batch;
mod request;
mod snapshot_write;
mod usage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use slab::Slab;

use self::buffers::BufferPool;
use self::commit::{Commit, Queued};
use self::control::{Drain, Gate, Syncing};
use self::copyout::{CopyJob, Piece};
use self::merge::Merge;
use self::request::{RequestId, SlowRequest};
use super::api::*;
use super::failure::{Attempt, FailedDevice, Failure};
use super::registrations::fence_change;
use super::shared::{PortShared, Shared};
use super::tags;
use super::views::{Config, PreserveList, SharedSnapshot, ViewMode};
use crate::io::{Buffer, DeviceId, Errno, Tag};
use crate::mutation::{self, Mutation};
use crate::store::Metadata;
use crate::sync::atomic::Ordering;

/// Who is told when something that was waited for has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    /// One of the request's waits has ended.
    Request(RequestId),
    /// A snapshot write's part in this chunk is to be looked at again.
    Part(RequestId, u64),
    /// One of this merge batch's waits has ended. By number: one that was given up
    /// may still stand in other snapshots' lists, and is no other one.
    Batch(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The exception can be looked up.
    Published,
    /// Its entry is durable.
    Committed,
    /// And the old reads of the origin chunk have ended.
    Settled,
}

/// An exception that is not settled yet.
#[derive(Debug)]
struct Pending {
    seq: u64,
    published: bool,
    waiters: Vec<(When, Waiter)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreState {
    Valid,
    Overflow,
    /// Its header is being written; origin writes that it needs to see wait.
    Invalidating(InvalidReason),
    Invalid,
}

/// The critical section's side of a snapshot.
#[derive(Debug)]
struct Snap {
    shared: Arc<SharedSnapshot>,
    metadata: Metadata,
    keep_on_overflow: bool,
    defer_commits: bool,
    state: StoreState,
    /// By origin chunk.
    pending: BTreeMap<u64, Pending>,
    /// Allocated and not yet committed, in allocation order.
    queue: VecDeque<Queued>,
    /// Sequence number of the queue's front.
    queue_base: u64,
    /// Everything below this sequence number is wanted durable.
    demand: u64,
    /// What the next commit waits for, so that one flush serves a whole group.
    goal: Option<u64>,
    commit: Option<Commit>,
    /// Waiting for the invalidation to be durable.
    on_invalid: Vec<Waiter>,
    /// I/O of the critical section under way for this snapshot.
    ios: usize,
    /// The step of its use that was told last, in percent; 0: none.
    usage_told: u64,
    /// The header says invalid, durably.
    marked: bool,
    removal: Option<Removal>,
}

/// The control request that removes a snapshot.
#[derive(Clone, Copy, Debug)]
struct Removal {
    port: usize,
    id: u64,
    /// Also if the header goes on saying valid.
    force: bool,
    /// Why the header could not be written.
    failed: Option<Failure>,
}

impl Snap {
    fn is_usable(&self) -> bool {
        matches!(self.state, StoreState::Valid | StoreState::Overflow)
    }

    fn is_invalidating(&self) -> bool {
        matches!(self.state, StoreState::Invalidating(_))
    }
}

/// What an I/O command of the critical section was for.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Guest data of a request; `fresh`: chunks that get their exception with it.
    Guest {
        request: RequestId,
        snapshot: Option<SnapshotId>,
        fresh: Vec<u64>,
    },
    RequestFlush {
        request: RequestId,
        /// `None`: of the origin.
        store: Option<SnapshotId>,
    },
    PatchRead {
        request: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
    },
    PatchWrite {
        request: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
    },
    CopyRead {
        job: usize,
        piece: usize,
    },
    CopyWrite {
        job: usize,
        piece: usize,
        snapshot: SnapshotId,
    },
    Commit {
        snapshot: SnapshotId,
    },
    Header {
        snapshot: SnapshotId,
    },
    MergeRead {
        origin_sector: u64,
    },
    MergeWrite,
    MergeFlush,
    MergeMove,
    MergeZero,
    Sync {
        /// `None`: the origin.
        snapshot: Option<SnapshotId>,
    },
    CutFlush,
}

impl Op {
    const fn writes_metadata(&self) -> bool {
        matches!(
            self,
            Self::Commit { .. } | Self::Header { .. } | Self::MergeMove | Self::MergeZero
        )
    }
}

#[derive(Debug)]
enum Work {
    /// All waits of a request have ended.
    Request(RequestId),
    Part(RequestId, u64),
    Batch,
    Commit(SnapshotId),
    /// Room for copy-outs again.
    CopyRoom,
}

pub(super) struct Core {
    shared: Arc<Shared>,
    config: Arc<Config>,
    ports: Slab<Arc<PortShared>>,
    /// The port in whose name the critical section is at work: that of the event,
    /// or of the request whose turn it is.
    acting: usize,
    out: Vec<(usize, Command)>,
    work: VecDeque<Work>,
    snaps: BTreeMap<SnapshotId, Snap>,
    merge: Option<Merge>,
    /// Views of merged snapshots that went on as origin views.
    followers: BTreeSet<ViewId>,
    gate: Option<Gate>,
    syncing: Option<Syncing>,
    /// The flush of the origin that failed first.
    origin_failure: Option<Failure>,
    drains: Vec<Drain>,
    requests: Slab<SlowRequest>,
    /// With what was given out for it.
    ops: Slab<(Op, Option<Attempt>)>,
    jobs: Slab<CopyJob>,
    pieces: Slab<Piece>,
    /// Bytes of copy-out jobs under way.
    copy_bytes: u64,
    copy_waiters: VecDeque<Waiter>,
    buffers: BufferPool,
}

impl Core {
    pub fn new(shared: Arc<Shared>) -> Self {
        let mut core = Self {
            shared,
            config: Arc::new(Config::new(0, BTreeMap::new())),
            ports: Slab::new(),
            acting: usize::MAX,
            out: Vec::new(),
            work: VecDeque::new(),
            snaps: BTreeMap::new(),
            merge: None,
            followers: BTreeSet::new(),
            gate: None,
            syncing: None,
            origin_failure: None,
            drains: Vec::new(),
            requests: Slab::new(),
            ops: Slab::new(),
            jobs: Slab::new(),
            pieces: Slab::new(),
            copy_bytes: 0,
            copy_waiters: VecDeque::new(),
            buffers: BufferPool::default(),
        };
        core.publish_views();
        core
    }

    // ---- ports and commands

    pub fn add_port(&mut self, port: Arc<PortShared>) -> usize {
        self.ports.insert(port)
    }

    pub fn remove_port(&mut self, index: usize) {
        self.ports.try_remove(index);
    }

    pub fn port(&self, index: usize) -> Option<&Arc<PortShared>> {
        self.ports.get(index)
    }

    fn ports(&self) -> impl Iterator<Item = (usize, &Arc<PortShared>)> {
        self.ports.iter()
    }

    fn port_with(&self, role: PortRole) -> Option<usize> {
        self.ports
            .iter()
            .find(|(_, p)| p.role == role)
            .map(|(i, _)| i)
    }

    pub fn begin(&mut self, caller: usize) {
        self.acting = caller;
    }

    pub fn commands(&mut self) -> std::vec::IntoIter<(usize, Command)> {
        std::mem::take(&mut self.out).into_iter()
    }

    fn emit(&mut self, port: usize, command: Command) {
        if let Some((tag, attempt)) = Attempt::of(&command)
            && let Some((_, given_out)) = tags::core_number(tag).and_then(|t| self.ops.get_mut(t))
        {
            *given_out = Some(attempt);
        }
        self.out.push((port, command));
    }

    fn notify(&mut self, notice: Notice) {
        let role = if matches!(notice, Notice::MergeWork { .. }) {
            PortRole::Merger
        } else {
            PortRole::Notices
        };
        if let Some(port) = self.port_with(role) {
            self.emit(port, Command::Notice(notice));
        }
    }

    /// Keeps account of an I/O command; the tag comes back with its end.
    fn tag(&mut self, op: Op) -> Tag {
        let snapshot = match &op {
            Op::Guest {
                snapshot: Some(s), ..
            }
            | Op::PatchRead { snapshot: s, .. }
            | Op::PatchWrite { snapshot: s, .. }
            | Op::CopyWrite { snapshot: s, .. }
            | Op::Commit { snapshot: s }
            | Op::Header { snapshot: s }
            | Op::Sync { snapshot: Some(s) } => Some(*s),
            _ => None,
        };
        if let Some(snap) = snapshot.and_then(|s| self.snaps.get_mut(&s)) {
            snap.ios += 1;
        }
        tags::core(self.ops.insert((op, None)))
    }

    fn origin_device(&self) -> DeviceId {
        self.shared.origin.device
    }

    fn origin_sectors(&self) -> u64 {
        self.shared.origin.sectors
    }

    // ---- events

    /// What an operation under way is for, for the seeded bugs in the tests' executor.
    #[cfg(test)]
    pub fn io_purpose(&self, tag: Tag) -> Option<Op> {
        let (op, _) = self.ops.get(tags::core_number(tag)?)?;
        Some(op.clone())
    }

    pub fn io_done(
        &mut self,
        _port: usize,
        number: usize,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
    ) {
        let Some((op, attempt)) = self.ops.try_remove(number) else {
            return;
        };
        let (origin, metadata) = (self.origin_device(), op.writes_metadata());
        let result = result.map_err(|errno| match attempt {
            Some(attempt) => attempt.failed(origin, metadata, errno),
            None => Failure::flush(FailedDevice::Origin, errno), // nothing is given out without
        });
        let snapshot = match op {
            Op::Guest {
                request,
                snapshot,
                fresh,
            } => {
                self.guest_io_done(request, snapshot, fresh, result);
                snapshot
            }
            Op::RequestFlush { request, store } => {
                self.request_flush_done(request, store, result);
                None
            }
            Op::PatchRead {
                request,
                snapshot,
                chunk,
            } => {
                self.patch_read_done(request, snapshot, chunk, result, buffer);
                Some(snapshot)
            }
            Op::PatchWrite {
                request,
                snapshot,
                chunk,
            } => {
                self.buffers.put_back(buffer);
                self.patch_write_done(request, snapshot, chunk, result);
                Some(snapshot)
            }
            Op::CopyRead { job, piece } => {
                self.copy_read_done(job, piece, result, buffer);
                None
            }
            Op::CopyWrite {
                job,
                piece,
                snapshot,
            } => {
                drop(buffer);
                self.copy_write_done(job, piece, snapshot, result);
                Some(snapshot)
            }
            Op::Commit { snapshot } => {
                self.commit_step_done(snapshot, result);
                Some(snapshot)
            }
            Op::Header { snapshot } => {
                self.header_written(snapshot, result);
                Some(snapshot)
            }
            Op::MergeRead { origin_sector } => {
                self.merge_read_done(origin_sector, result, buffer);
                None
            }
            Op::MergeWrite => {
                self.buffers.put_back(buffer);
                self.merge_write_done(result);
                None
            }
            Op::MergeFlush => {
                self.merge_flush_done(result);
                None
            }
            Op::MergeMove => {
                self.merge_move_done(result);
                None
            }
            Op::MergeZero => {
                self.merge_zero_done(result);
                None
            }
            Op::Sync { snapshot } => {
                self.sync_flush_done(snapshot, result);
                snapshot
            }
            Op::CutFlush => {
                self.cut_flushed(result);
                None
            }
        };
        if let Some(snap) = snapshot.and_then(|s| self.snaps.get_mut(&s)) {
            snap.ios = snap.ios.saturating_sub(1);
        }
    }

    /// A flush of the origin (`None`) or a store failed.
    pub fn flush_failed(&mut self, store: Option<SnapshotId>, failure: Failure) {
        match store {
            None => self.origin_flush_failed(failure),
            Some(id) => self.store_flush_failed(id, failure),
        }
    }

    /// As [`Shared::is_flush_lost`](super::shared::Shared::is_flush_lost).
    fn is_flush_lost(&self, store: Option<SnapshotId>) -> bool {
        let lost = |store: Option<&SharedSnapshot>| self.shared.is_flush_lost(store);
        match store {
            None => lost(None),
            Some(id) => (self.snaps.get(&id)).is_some_and(|snap| lost(Some(&snap.shared))),
        }
    }

    /// The failure because of which a flush must not be believed, though it may
    /// end well.
    fn flush_lost(&self, store: Option<SnapshotId>) -> Option<Failure> {
        if !self.is_flush_lost(store) {
            return None;
        }
        let first = self.origin_failure.filter(|_| store.is_none());
        let device = match store {
            None => FailedDevice::Origin,
            Some(_) => FailedDevice::Cow,
        };
        Some(first.unwrap_or(Failure::flush(device, Errno::EIO)))
    }

    fn origin_flush_failed(&mut self, failure: Failure) {
        if !mutation::is(Mutation::FailedFlushForgotten) {
            self.shared
                .origin_flush_failed
                .store(true, Ordering::Release);
        }
        if self.origin_failure.is_none() {
            self.origin_failure = Some(failure);
            self.notify(Notice::OriginFlushFailed { failure });
            if self.merge.as_ref().is_some_and(|m| m.failed.is_some()) {
                self.fail_merge(failure);
            }
        }
    }

    /// A store's device lost what a flush should have kept. A store that merges
    /// cannot be given up: it is all that there is of its chunks.
    fn store_flush_failed(&mut self, id: SnapshotId, failure: Failure) {
        if self.merge.as_ref().is_some_and(|m| m.snapshot == id)
            && let Some(snap) = self.snaps.get(&id)
        {
            let failed = !mutation::is(Mutation::FailedStoreFlushForgotten);
            snap.shared.flush_failed.store(failed, Ordering::Release);
            self.fail_merge(failure);
        } else {
            self.invalidate(id, InvalidReason::Io(failure));
        }
    }

    /// A registration that somebody may wait for has ended.
    pub fn recheck(&mut self) {}

    /// Works off everything that an event set off.
    pub fn run(&mut self) {
        let caller = self.acting;
        loop {
            while let Some(work) = self.work.pop_front() {
                self.acting = caller;
                match work {
                    Work::Request(id) => {
                        self.act_for(id);
                        self.request_ready(id)
                    }
                    Work::Part(id, chunk) => {
                        self.act_for(id);
                        self.part_ready(id, chunk)
                    }
                    Work::Batch => {
                        self.acting = self.batch_port().unwrap_or(self.acting);
                        self.batch_ready()
                    }
                    Work::Commit(id) => self.maybe_commit(id),
                    Work::CopyRoom => self.copy_room(),
                }
            }
            self.acting = caller;
            if self.drains.is_empty() || !self.finish_drains() {
                if self.syncing.is_some() {
                    self.advance_sync();
                }
                break;
            }
        }
    }

    fn add_wait(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Request(id) => {
                if let Some(request) = self.requests.get_mut(id) {
                    request.waits += 1;
                }
            }
            Waiter::Part(..) => {} // counted by its request when it was parked
            Waiter::Batch(number) => {
                if let Some(batch) = self.batch_of(number) {
                    batch.waits += 1;
                }
            }
        }
    }

    fn wake(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Request(id) => {
                if let Some(request) = self.requests.get_mut(id) {
                    request.waits = request.waits.saturating_sub(1);
                }
            }
            Waiter::Part(id, chunk) => return self.work.push_back(Work::Part(id, chunk)),
            Waiter::Batch(number) => {
                if let Some(batch) = self.batch_of(number) {
                    batch.waits = batch.waits.saturating_sub(1);
                }
            }
        }
        self.look_again(waiter);
    }

    /// Queues a turn for a waiter that waits for nothing, once.
    fn look_again(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Request(id) => {
                if let Some(request) = self.requests.get_mut(id)
                    && request.waits == 0
                    && !std::mem::replace(&mut request.queued, true)
                {
                    self.work.push_back(Work::Request(id));
                }
            }
            Waiter::Part(..) => {}
            Waiter::Batch(number) => {
                if let Some(batch) = self.batch_of(number)
                    && batch.waits == 0
                    && !std::mem::replace(&mut batch.queued, true)
                {
                    self.work.push_back(Work::Batch);
                }
            }
        }
    }

    // ---- configuration

    /// Builds and publishes what every view shows. A scan of the registrations
    /// after this finds every request that was decided before.
    fn publish_views(&mut self) {
        let merging = self.merge.as_ref().map(|m| m.snapshot);
        let preserve = Arc::new(
            self.snaps
                .values()
                .filter(|s| (s.is_usable() || s.is_invalidating()) && Some(s.shared.id) != merging)
                .map(|s| s.shared.clone())
                .collect::<Vec<_>>(),
        );
        let gated = self.gate.as_ref();
        let origin = match self
            .merge
            .as_ref()
            .filter(|m| !m.ending)
            .and_then(|m| Some((m, self.snaps.get(&m.snapshot)?)))
        {
            Some((merge, snap)) => Arc::new(ViewMode::Merge {
                snapshot: snap.shared.clone(),
                preserve: preserve.clone(),
                writes: merge.writes,
            }),
            None => Arc::new(ViewMode::Origin {
                preserve: preserve.clone(),
                write_gate: gated.is_some_and(Gate::is_cut),
            }),
        };
        let mut views = BTreeMap::new();
        for snap in self.snaps.values() {
            let id = snap.shared.id;
            let mode = match self.merge.as_ref().filter(|m| m.snapshot == id) {
                Some(merge) if merge.follow => origin.clone(),
                Some(_) => Arc::new(ViewMode::Failed),
                None if snap.removal.is_some() => Arc::new(ViewMode::Failed),
                None if snap.is_usable() => Arc::new(ViewMode::Snapshot {
                    snapshot: snap.shared.clone(),
                    overflow: snap.state == StoreState::Overflow,
                    passdown: self.passdown(id, &preserve),
                }),
                None => Arc::new(ViewMode::Failed),
            };
            views.insert(id, mode);
        }
        for id in self.followers.iter().chain([&ViewId::ORIGIN]) {
            views.insert(*id, origin.clone());
        }
        if let Some(snapshot) = gated.and_then(Gate::handover) {
            let blocked: Vec<ViewId> = self
                .followers
                .iter()
                .copied()
                .chain([ViewId::ORIGIN, snapshot])
                .collect();
            for id in blocked {
                views.insert(id, Arc::new(ViewMode::Gated));
            }
        }
        self.config = Arc::new(Config::new(self.config.epoch + 1, views));
        self.shared
            .publish(Config::new(self.config.epoch, self.config.views.clone()));
    }

    /// Whom a discard of the origin through a snapshot's view has to spare. `None`
    /// while anything special is under way: it is a hint, and nothing waits for it.
    fn passdown(&self, id: SnapshotId, preserve: &PreserveList) -> Option<PreserveList> {
        let discards = self.snaps.get(&id)?.shared.discards;
        if !discards.passdown_origin || self.gate.is_some() || self.merge.is_some() {
            return None;
        }
        let others = preserve
            .iter()
            .filter(|s| s.id != id && !mutation::is(Mutation::PassdownSparesNobody));
        Some(Arc::new(others.cloned().collect()))
    }

    // ---- drains

    /// Runs `drain.then` once nothing that it waits for is registered any more.
    fn add_drain(&mut self, drain: Drain) {
        self.drains.push(drain);
        self.tell_drains();
        fence_change();
    }

    fn finish_drains(&mut self) -> bool {
        let mut moved = false;
        let mut at = 0;
        while let Some(drain) = self.drains.get(at) {
            if self.is_drained(drain) {
                let drain = self.drains.swap_remove(at);
                self.drained(drain);
                moved = true;
            } else {
                at += 1;
            }
        }
        self.tell_drains();
        moved
    }

    /// Ports look at the number when a registration ends.
    fn tell_drains(&self) {
        let waiting = self.drains.len();
        self.shared.drains.store(waiting, Ordering::Release);
    }
}
