//! Writes to a snapshot view.
//!
//! A whole chunk without an exception goes straight to a new COW chunk; of a
//! partial one the old chunk is read once, patched in memory and written once;
//! a chunk with an exception is rewritten in place. The entry is durable before
//! the request completes, or, with deferred commits, before the next FLUSH does.

use std::sync::Arc;

use super::accounting::IoPurpose;
use super::buffers::PIECE_BYTES;
use super::request::{RequestId, Stage};
use super::waiting::{Task, Waiter};
use super::{Core, StoreState, When};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, WRITE};
use crate::engine::views::{Extent, SharedSnapshot};
use crate::io::Buffer;
use crate::mutation::{self, Mutation};
use crate::units::{SECTOR_SHIFT, byte_count};

/// Guest data for consecutive COW sectors.
#[derive(Debug)]
struct Gather {
    extent: Extent,
    fresh: Vec<u64>,
}

impl Core {
    pub(super) fn snapshot_write(&mut self, id: RequestId, shared: &Arc<SharedSnapshot>) {
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
        self.flush_gather(id, shared, gather);
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
            self.flush_gather(id, &shared, gather);
        } else {
            self.set_failed(id);
        }
        self.wake(Waiter::Request(id));
    }

    fn write_chunk(
        &mut self,
        id: RequestId,
        shared: &Arc<SharedSnapshot>,
        chunk: u64,
        gather: &mut Option<Gather>,
    ) {
        let cs = shared.chunk_size;
        let origin_end = self.origin_sectors();
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (port, durable) = (request.port(), request.is_durable());
        let chunk_start = cs.first_sector(chunk);
        let chunk_end = cs.first_sector(chunk + 1).min(origin_end);
        let (start, end) = (
            request.start().max(chunk_start),
            request.end().min(chunk_end),
        );
        let Some(snap) = self.snaps.get_mut(&shared.id) else {
            return;
        };
        if snap.state != StoreState::Valid {
            request.set_failed();
            return;
        }
        if let Some(cow) = shared.table.get(chunk).cow_chunk() {
            if durable
                && snap.pending.contains_key(&chunk)
                && !mutation::is(Mutation::WriteThroughBeforeEntry)
            {
                snap.demand(chunk);
                snap.wait(chunk, When::Committed, Waiter::Request(id));
                request.waits().add(1);
                self.tasks.push_back(Task::Commit(shared.id));
            }
            let extent = Extent {
                device: Some(shared.device),
                device_sector: cs.first_sector(cow) + (start - chunk_start),
                sector: start,
                sectors: end - start,
            };
            return self.gather(id, shared, gather, extent, None);
        }
        if snap.pending.contains_key(&chunk) {
            request.waits().add(1);
            snap.wait(chunk, When::Published, Waiter::Part(id, chunk));
            return;
        }
        let whole = start == chunk_start && end == chunk_end
            || mutation::is(Mutation::PartialWriteTakenForWhole);
        let Some(cow) = snap.allocate(chunk) else {
            request.set_failed();
            return self.overflow(shared.id);
        };
        if mutation::is(Mutation::PublishedBeforeWritten) {
            self.publish_early(shared.id, chunk);
        }
        let (Some(snap), Some(request)) =
            (self.snaps.get_mut(&shared.id), self.requests.get_mut(id))
        else {
            return;
        };
        if !whole && cs.bytes() > PIECE_BYTES {
            // Too large for one buffer: copied out like for an origin write, then
            // written in place.
            request.waits().add(1);
            snap.demand(chunk);
            snap.wait(chunk, When::Published, Waiter::Part(id, chunk));
            return self.copy_one(shared.id, chunk, cow, port);
        }
        if (durable || !snap.defer_commits) && !mutation::is(Mutation::WriteAckedBeforeEntry) {
            snap.demand(chunk);
            snap.wait(chunk, When::Committed, Waiter::Request(id));
            request.waits().add(1);
        }
        if whole {
            let extent = Extent {
                device: Some(shared.device),
                device_sector: cs.first_sector(cow),
                sector: start,
                sectors: end - start,
            };
            return self.gather(id, shared, gather, extent, Some(chunk));
        }
        request.waits().add(1);
        let memory = self.buffers.take(byte_count(chunk_end - chunk_start));
        let purpose = IoPurpose::PatchRead {
            request: id,
            snapshot: shared.id,
            chunk,
        };
        let device = self.origin_device();
        self.issue(port, purpose, |tag| Command::Read {
            tag,
            device,
            offset: chunk_start << SECTOR_SHIFT,
            buffer: Buffer::Owned(memory),
        });
    }

    /// Collects neighbours into one I/O.
    fn gather(
        &mut self,
        id: RequestId,
        shared: &Arc<SharedSnapshot>,
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
        self.flush_gather(id, shared, full);
    }

    fn flush_gather(
        &mut self,
        id: RequestId,
        shared: &Arc<SharedSnapshot>,
        gather: Option<Gather>,
    ) {
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
        let origin_end = self.origin_sectors();
        let (Some(request), Some(snap), Some(buffer)) =
            (self.requests.get(id), self.snaps.get(&snapshot), buffer)
        else {
            return;
        };
        let cs = snap.shared.chunk_size;
        let chunk_start = cs.first_sector(chunk);
        let chunk_end = cs.first_sector(chunk + 1).min(origin_end);
        let (start, end) = (
            request.start().max(chunk_start),
            request.end().min(chunk_end),
        );
        let cow = snap.pending.get(&chunk).and_then(|p| {
            let at = usize::try_from(p.seq.checked_sub(snap.queue_base)?).ok()?;
            snap.queue.get(at).map(|q| q.new)
        });
        let Some(cow) = cow else { return };
        let patch = Patch {
            slot: request.slot(),
            slot_offset: byte_count(start - request.start()),
            buffer_offset: byte_count(start - chunk_start),
            len: byte_count(end - start),
        };
        let (port, device) = (request.port(), snap.shared.device);
        let offset = cs.first_sector(cow) << SECTOR_SHIFT;
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
        let defer = snap.defer_commits;
        self.mark_ready(snapshot, chunk);
        if defer {
            self.publish_early(snapshot, chunk);
        }
    }

    /// No space for a snapshot's own write: P is given up, PO stays readable.
    fn overflow(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if snap.keep_on_overflow == mutation::is(Mutation::OverflowMixedUp) {
            return self.invalidate(id, InvalidReason::Full);
        }
        if snap.state == StoreState::Valid {
            snap.state = StoreState::Overflow;
            self.publish_views();
            self.notify(Notice::Overflow { snapshot: id });
        }
    }
}
