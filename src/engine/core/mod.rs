//! The critical section: everything that changes state, under one lock.
//!
//! Every [`Event`] comes in through [`Core::apply`] and queues [`Task`]s, which
//! [`Core::run`] works off until nothing moves any more. All maps are ordered, so that
//! the same events, with the same registrations, give the same commands.

mod accounting;
mod add_snapshot;
mod buffers;
mod carrier;
mod clean_stop;
mod commit;
mod control;
mod copyout;
mod decide;
mod discard;
mod drain_list;
mod drains;
mod event;
mod flush;
mod gate;
mod handover;
mod inspect;
mod invalidate;
mod lost_flush;
mod merge;
mod ports;
mod publish;
mod record;
mod removal;
mod request;
mod resize;
mod snap;
mod snapshot_write;
mod unsettled;
mod usage;
mod waiting;
mod zero_ahead;

pub(super) use self::event::Event;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use slab::Slab;

use self::accounting::Accounts;
pub(super) use self::accounting::IoPurpose;
use self::buffers::BufferPool;
use self::clean_stop::Syncing;
use self::copyout::CopyOuts;
use self::drain_list::DrainList;
use self::drains::Drain;
use self::gate::Gate;
use self::merge::Merge;
use self::ports::Ports;
use self::request::SlowRequest;
use self::snap::Snap;
use self::waiting::Task;
use super::api::*;
use super::counts::EngineCounts;
use super::failure::Failure;
use super::shared::Shared;
use super::views::Config;
use crate::io::{Buffer, DeviceId, Errno};

pub(super) struct Core {
    shared: Arc<Shared>,
    config: Arc<Config>,
    ports: Ports,
    /// The port that the critical section acts for: that of the event, or that of the
    /// request or batch whose task is performed.
    acting: usize,
    tasks: VecDeque<Task>,
    snaps: BTreeMap<SnapshotId, Snap>,
    merge: Option<Merge>,
    /// Views of merged snapshots that went on as origin views.
    followers: BTreeSet<ViewId>,
    gate: Option<Gate>,
    syncing: Option<Syncing>,
    /// The first failed flush of the origin.
    origin_failure: Option<Failure>,
    drains: DrainList,
    requests: Slab<SlowRequest>,
    accounts: Accounts,
    copy_outs: CopyOuts,
    buffers: BufferPool,
    counts: EngineCounts,
}

impl Core {
    pub fn new(shared: Arc<Shared>) -> Self {
        let mut core = Self {
            shared,
            config: Arc::new(Config::new(0, BTreeMap::new())),
            ports: Ports::default(),
            acting: usize::MAX,
            tasks: VecDeque::new(),
            snaps: BTreeMap::new(),
            merge: None,
            followers: BTreeSet::new(),
            gate: None,
            syncing: None,
            origin_failure: None,
            drains: DrainList::default(),
            requests: Slab::new(),
            accounts: Accounts::default(),
            copy_outs: CopyOuts::default(),
            buffers: BufferPool::default(),
            counts: EngineCounts::default(),
        };
        core.publish_views();
        core
    }

    fn origin_device(&self) -> DeviceId {
        self.shared.origin
    }

    fn origin_sectors(&self) -> u64 {
        self.shared.origin_sectors()
    }

    /// The snapshot that is being merged.
    fn merging(&self) -> Option<SnapshotId> {
        self.merge.as_ref().map(Merge::snapshot)
    }

    fn is_merging(&self, id: SnapshotId) -> bool {
        self.merging() == Some(id)
    }

    /// The one entry: `event` comes from this port, and all that it sets off is done
    /// when this returns; [`Core::commands`] has the commands. Returns the answer to
    /// [`Event::MergeStep`].
    pub fn apply(&mut self, port: usize, event: Event) -> Option<MergeStep> {
        self.acting = port;
        let mut step = None;
        match event {
            Event::Request(request, part) => {
                self.registration_ended(port, request.slot);
                self.request(port, request, part);
            }
            Event::IoDone {
                number,
                result,
                buffer,
            } => self.io_done(number, result, buffer),
            Event::FlushFailed { store, failure } => {
                self.count_failure(failure);
                self.flush_failed(store, failure);
            }
            Event::RegistrationEnded { slot } => self.registration_ended(port, slot),
            Event::Control { id, request } => self.control(port, id, request),
            Event::MergeStep { background, urgent } => {
                step = Some(self.merge_step(port, background, urgent));
            }
        }
        self.run();
        step
    }

    fn io_done(&mut self, number: usize, result: Result<(), Errno>, buffer: Option<Buffer>) {
        if let Some((purpose, result, snapshot)) = self.ended_io(number, result) {
            self.purpose_done(purpose, result, buffer);
            self.close_account(snapshot);
        }
    }

    fn purpose_done(
        &mut self,
        purpose: IoPurpose,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        match purpose {
            IoPurpose::Guest {
                request,
                snapshot,
                fresh,
            } => self.guest_io_done(request, snapshot, fresh, result),
            IoPurpose::RequestFlush { request, store } => {
                self.request_flush_done(request, store, result);
            }
            IoPurpose::PatchRead {
                request,
                snapshot,
                chunk,
            } => self.patch_read_done(request, snapshot, chunk, result, buffer),
            IoPurpose::PatchWrite {
                request,
                snapshot,
                chunk,
            } => {
                self.buffers.put_back(buffer);
                self.patch_write_done(request, snapshot, chunk, result);
            }
            IoPurpose::CopyRead { job, piece } => self.copy_read_done(job, piece, result, buffer),
            IoPurpose::CopyWrite {
                job,
                piece,
                snapshot,
            } => {
                drop(buffer);
                self.copy_write_done(job, piece, snapshot, result);
            }
            IoPurpose::Commit { snapshot } | IoPurpose::Padding { snapshot } => {
                self.commit_step_done(snapshot, result)
            }
            IoPurpose::Record { snapshot } => self.record_written(snapshot, result),
            IoPurpose::Header { snapshot } => self.header_written(snapshot, result),
            IoPurpose::ZeroAhead { snapshot } => self.zeroed_ahead(snapshot, result),
            IoPurpose::MergeRead {
                batch,
                origin_sector,
                sectors,
            } => {
                let piece = (origin_sector, sectors);
                self.merge_read_done(batch, piece, result, buffer);
            }
            IoPurpose::MergeWrite { batch, sectors } => {
                self.buffers.put_back(buffer);
                self.merge_copy_ended(batch, sectors, result);
            }
            IoPurpose::MergeGuestWrite { batch, request } => {
                self.direct_written(batch, request, result);
            }
            IoPurpose::MergeFlush => self.merge_flush_done(result),
            IoPurpose::MergeMove | IoPurpose::MergeZero => self.merge_log_done(&purpose, result),
            IoPurpose::SyncFlush { snapshot } => self.sync_flush_done(snapshot, result),
            IoPurpose::CutFlush => self.cut_flushed(result),
        }
    }

    /// Works off everything that an event set off.
    fn run(&mut self) {
        let caller = self.acting;
        loop {
            while let Some(task) = self.tasks.pop_front() {
                self.acting = caller;
                self.perform(task);
            }
            self.acting = caller;
            if !self.end_drains() {
                break;
            }
        }
        if self.syncing.is_some() {
            self.advance_sync();
        }
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Request(id) => {
                self.act_for(id);
                self.request_ready(id);
            }
            Task::Part(id, chunk) => {
                self.act_for(id);
                self.part_ready(id, chunk);
            }
            Task::Batch(number) => {
                self.acting = self.port_of_batch(number).unwrap_or(self.acting);
                self.batch_ready(number);
            }
            Task::Commit(id) => self.maybe_commit(id),
            Task::Record(id) => self.write_record(id),
            Task::CopyRoom => self.copy_room(),
        }
    }

    /// Goes on with the changes whose drains have ended. False if there were none.
    fn end_drains(&mut self) -> bool {
        if self.drains.is_empty() {
            return false;
        }
        let mut moved = false;
        for number in self.drains.take_due() {
            if let Some(drain) = self.take_if_ended(number) {
                self.drained(drain);
                moved = true;
            }
        }
        self.publish_drains();
        moved
    }

    fn drained(&mut self, drain: Drain) {
        match drain {
            Drain::SnapshotReads { snapshot, chunks } => self.settled(snapshot, &chunks),
            Drain::InvalidReads { snapshot, notify } => self.invalidated(snapshot, notify),
            Drain::MergeWrites { batch, .. } => self.batch_drained(batch),
            Drain::Gate => self.gate_drained(),
            Drain::MergeEnd => self.merge_ended(),
            Drain::Removal { snapshot } => self.removed(snapshot),
        }
    }
}
