//! Writes to a snapshot view.
//!
//! A write of a whole chunk without an exception goes straight to a new COW chunk. If
//! it covers only a part, the old chunk is read, patched in memory and written once. A
//! chunk with an exception is rewritten in place. The entry is durable before the
//! request completes; or, if the store has a record, the record lists it before the request
//! completes, and it is durable before the next FLUSH does (`record.rs`).

use std::ops::Range;

use super::Core;
use super::accounting::IoPurpose;
use super::buffers::PIECE_BYTES;
use super::request::{SlowRequest, Stage};
use super::snap::{Snap, StoreState};
use super::unsettled::When;
use super::waiting::{RequestId, Task, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, WRITE};
use crate::engine::views::{Extent, SharedSnapshot};
use crate::io::Buffer;
use crate::mutation::{self, Mutation};
use crate::store::RECORD_ROOM;
use crate::units::{SECTOR_SHIFT, byte_count};

/// Guest data for consecutive COW sectors.
#[derive(Debug)]
struct Gather {
    extent: Extent,
    /// Chunks that get their exception with it.
    fresh: Vec<u64>,
}

/// What a request writes of one chunk.
#[derive(Clone, Debug)]
struct Part {
    chunk: u64,
    /// The chunk's sectors, as far as the origin has them.
    all: Range<u64>,
    written: Range<u64>,
}

impl Part {
    fn new(request: &SlowRequest, shared: &SharedSnapshot, chunk: u64) -> Self {
        let cs = shared.chunk_size;
        let all = cs.first_sector(chunk)..cs.first_sector(chunk + 1).min(shared.covers);
        let written = request.start().max(all.start)..request.end().min(all.end);
        Self {
            chunk,
            all,
            written,
        }
    }

    /// Sectors of the chunk before those that are written.
    const fn before(&self) -> u64 {
        self.written.start - self.all.start
    }

    const fn sectors(&self) -> u64 {
        self.written.end - self.written.start
    }

    fn is_whole(&self) -> bool {
        self.written == self.all
    }

    /// Where it is in the chunk's COW chunk.
    const fn extent(&self, shared: &SharedSnapshot, cow_chunk: u64) -> Extent {
        Extent {
            device: Some(shared.device),
            device_sector: shared.chunk_size.first_sector(cow_chunk) + self.before(),
            sector: self.written.start,
            sectors: self.sectors(),
        }
    }
}

impl Core {
    pub(super) fn snapshot_write(&mut self, id: RequestId, shared: &SharedSnapshot) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.set_stage(Stage::Issued);
        request.waits().add(1); // held until every chunk has been looked at
        let chunks = shared.chunks(request.start(), request.end());
        // Counts as under way from here to its end, whatever its parts wait for.
        self.register(id, WRITE | COW);
        let mut gather = None;
        for chunk in chunks {
            self.write_chunk(id, shared, chunk, &mut gather);
        }
        self.write_gathered(id, shared, gather);
        self.wake(Waiter::Request(id));
    }

    /// A parked part: its chunk's exception was published, or is gone.
    pub(super) fn part_ready(&mut self, id: RequestId, chunk: u64) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        // Not by the view's mode: a gate may have closed behind this request.
        if let Some(shared) = self.snaps.get(&request.view()).map(|s| s.shared.clone()) {
            let mut gather = None;
            self.write_chunk(id, &shared, chunk, &mut gather);
            self.write_gathered(id, &shared, gather);
        } else {
            self.set_failed(id);
        }
        self.wake(Waiter::Request(id));
    }

    fn write_chunk(
        &mut self,
        id: RequestId,
        shared: &SharedSnapshot,
        chunk: u64,
        gather: &mut Option<Gather>,
    ) {
        let (Some(request), Some(snap)) =
            (self.requests.get_mut(id), self.snaps.get_mut(&shared.id))
        else {
            return;
        };
        if snap.state() != StoreState::Valid {
            return request.set_failed();
        }
        let part = Part::new(request, shared, chunk);
        if let Some(cow) = shared.table.get(chunk).cow_chunk() {
            if request.is_durable() && snap.unsettled.contains(chunk) {
                wait_for_entry(id, request, snap, chunk);
                self.tasks.push_back(Task::Commit(shared.id));
            }
            let extent = part.extent(shared, cow);
            return self.gather(id, shared, gather, extent, None);
        }
        if snap.unsettled.contains(chunk) {
            return park(id, request, snap, chunk);
        }
        if snap.wait_for_zeroes(1, Waiter::Part(id, chunk)) {
            return request.waits().add(1);
        }
        let port = request.port();
        match snap.allocate(chunk) {
            Some(cow) => {
                self.zero_ahead(shared.id, port);
                self.write_new_chunk(id, shared, &part, cow, gather);
            }
            None => {
                request.set_failed();
                self.overflow(shared.id);
            }
        }
    }

    /// The first write to a chunk, whose exception has been allocated.
    fn write_new_chunk(
        &mut self,
        id: RequestId,
        shared: &SharedSnapshot,
        part: &Part,
        cow: u64,
        gather: &mut Option<Gather>,
    ) {
        let chunk = part.chunk;
        if mutation::is(Mutation::PublishedBeforeWritten) {
            self.publish_early(shared.id, chunk);
        }
        let (Some(request), Some(snap)) =
            (self.requests.get_mut(id), self.snaps.get_mut(&shared.id))
        else {
            return;
        };
        let port = request.port();
        if !part.is_whole() && shared.chunk_size.bytes() > PIECE_BYTES {
            // Too large for one buffer: copied out like for an origin write, then
            // written in place.
            snap.unsettled.demand(chunk);
            park(id, request, snap, chunk);
            return self.copy_one(shared.id, chunk, cow, port);
        }
        if may_be_recorded(request, snap, chunk) {
            request.waits().add(1);
            let waiter = Waiter::Request(id);
            snap.unsettled.wait(chunk, When::Published, waiter);
        } else if !mutation::is(Mutation::WriteAckedBeforeEntry) {
            wait_for_entry(id, request, snap, chunk);
        }
        if part.is_whole() {
            let extent = part.extent(shared, cow);
            return self.gather(id, shared, gather, extent, Some(chunk));
        }
        request.waits().add(1);
        self.read_for_patch(id, port, shared.id, part);
    }

    /// Reads the old content of a chunk of which a part is written.
    fn read_for_patch(&mut self, id: RequestId, port: usize, snapshot: SnapshotId, part: &Part) {
        let memory = self.buffers.take(byte_count(part.all.end - part.all.start));
        let purpose = IoPurpose::PatchRead {
            request: id,
            snapshot,
            chunk: part.chunk,
        };
        let device = self.origin_device();
        self.issue(port, purpose, |tag| Command::Read {
            tag,
            device,
            offset: part.all.start << SECTOR_SHIFT,
            buffer: Buffer::Owned(memory),
        });
    }

    /// Joins neighbouring sectors into one I/O.
    fn gather(
        &mut self,
        id: RequestId,
        shared: &SharedSnapshot,
        gather: &mut Option<Gather>,
        extent: Extent,
        fresh: Option<u64>,
    ) {
        if let Some(g) = gather
            && g.extent.device_sector + g.extent.sectors == extent.device_sector
            && g.extent.sector + g.extent.sectors == extent.sector
        {
            g.extent.sectors += extent.sectors;
            g.fresh.extend(fresh);
            return;
        }
        let full = gather.replace(Gather {
            extent,
            fresh: fresh.into_iter().collect(),
        });
        self.write_gathered(id, shared, full);
    }

    fn write_gathered(&mut self, id: RequestId, shared: &SharedSnapshot, gather: Option<Gather>) {
        if let Some(g) = gather {
            self.guest_io(id, g.extent, Some(shared.id), g.fresh);
        }
    }

    pub(super) fn guest_io_done(
        &mut self,
        id: RequestId,
        snapshot: Option<SnapshotId>,
        fresh: Vec<u64>,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            self.set_failed(id);
            if let Some(snapshot) = snapshot.filter(|_| !fresh.is_empty()) {
                // The store's log cannot have a gap: without its data, no later entry either.
                self.invalidate(snapshot, InvalidReason::Io(failure));
            }
        } else if let Some(snapshot) = snapshot {
            for chunk in fresh {
                self.fresh_written(id, snapshot, chunk);
            }
        }
        self.wake(Waiter::Request(id));
    }

    pub(super) fn patch_read_done(
        &mut self,
        id: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        let usable = self.snaps.get(&snapshot).is_some_and(|s| s.is_usable());
        if result.is_err() || !usable {
            self.buffers.put_back(buffer);
            self.set_failed(id);
            if let Err(failure) = result {
                self.invalidate(snapshot, InvalidReason::Io(failure));
            }
            return self.wake(Waiter::Request(id));
        }
        let (Some(request), Some(snap), Some(buffer)) =
            (self.requests.get(id), self.snaps.get(&snapshot), buffer)
        else {
            return;
        };
        let shared = &snap.shared;
        let part = Part::new(request, shared, chunk);
        let Some(cow) = snap.unsettled.cow_chunk(chunk) else {
            return;
        };
        let patch = Patch {
            slot: request.slot(),
            slot_offset: byte_count(part.written.start - request.start()),
            buffer_offset: byte_count(part.before()),
            len: byte_count(part.sectors()),
        };
        let (port, device) = (request.port(), shared.device);
        let offset = shared.chunk_size.first_sector(cow) << SECTOR_SHIFT;
        let purpose = IoPurpose::PatchWrite {
            request: id,
            snapshot,
            chunk,
        };
        self.issue(port, purpose, |tag| Command::Write {
            tag,
            device,
            offset,
            buffer,
            durable: false,
            patch: Some(patch),
        });
    }

    pub(super) fn patch_write_done(
        &mut self,
        id: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
        result: Result<(), Failure>,
    ) {
        match result {
            Ok(()) => self.fresh_written(id, snapshot, chunk),
            Err(failure) => {
                self.set_failed(id);
                self.invalidate(snapshot, InvalidReason::Io(failure));
            }
        }
        self.wake(Waiter::Request(id));
    }

    /// The data of a new exception is in the store.
    pub(super) fn fresh_written(&mut self, id: RequestId, snapshot: SnapshotId, chunk: u64) {
        let Some(snap) = self.snaps.get(&snapshot) else {
            return;
        };
        if !snap.is_usable() {
            self.set_failed(id);
            return;
        }
        let request = self.requests.get(id);
        let recorded = request.is_some_and(|request| may_be_recorded(request, snap, chunk));
        self.mark_ready(snapshot, chunk);
        if recorded {
            self.record(snapshot, chunk, id);
        }
    }

    /// There is no space for a snapshot's own write: a P snapshot is invalidated, and a
    /// PO snapshot stays readable.
    fn overflow(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if snap.keeps_on_overflow() == mutation::is(Mutation::OverflowMixedUp) {
            return self.invalidate(id, InvalidReason::Full);
        }
        if snap.overflow() {
            self.publish_views();
            self.notify(Notice::Overflow { snapshot: id });
        }
    }
}

/// Whether the record may list the chunk's exception until it is durable. Once this is
/// so, it stays so.
fn may_be_recorded(request: &SlowRequest, snap: &Snap, chunk: u64) -> bool {
    let place = snap.unsettled.place(chunk);
    !request.is_durable() && snap.recorder.is_some() && place.is_some_and(|at| at < RECORD_ROOM)
}

/// Lets a part of a request wait until its chunk's exception can be looked up.
fn park(id: RequestId, request: &mut SlowRequest, snap: &mut Snap, chunk: u64) {
    request.waits().add(1);
    let waiter = Waiter::Part(id, chunk);
    snap.unsettled.wait(chunk, When::Published, waiter);
}

/// Lets a request wait until the chunk's entry is durable.
fn wait_for_entry(id: RequestId, request: &mut SlowRequest, snap: &mut Snap, chunk: u64) {
    request.waits().add(1);
    snap.unsettled.demand(chunk);
    let waiter = Waiter::Request(id);
    snap.unsettled.wait(chunk, When::Committed, waiter);
}
