//! A guest write under `wait` that replaces whole chunks which are not merged: nothing
//! of them has to be copied.
//!
//! Order: 1 the other snapshots have what the write overwrites; the chunks are fenced,
//! and the writes to them before have ended → 2 the guest's data to the origin. The
//! entries are still there, so that views and a start after a crash show the old data,
//! torn or not → 3 the origin is flushed → 4 the entries are removed, durable → 5 dropped
//! from memory → 6 the write is acknowledged. Not before 4: the death of the process
//! would bring the old data back. From 4 on the origin's data is shown, which is durable
//! because of 3: so a write that is not acknowledged leaves each chunk as before or as
//! written.

use super::batch::Kind;
use crate::engine::api::*;
use crate::engine::core::Core;
use crate::engine::core::accounting::IoPurpose;
use crate::engine::core::request::Stage;
use crate::engine::core::waiting::{RequestId, Waiter};
use crate::engine::failure::Failure;
use crate::engine::registrations::WRITE;
use crate::engine::views::SharedSnapshot;
use crate::mutation::{self, Mutation};
use crate::store::Entry;
use crate::units::{SECTOR_SHIFT, byte_count};

impl Core {
    /// Starts a write to `chunks`, which are those of its range that are not merged, as
    /// a batch of its own. False if it has to be merged first: if it keeps a part of a
    /// chunk, or if others wait for a chunk or copy it.
    pub(super) fn start_direct(
        &mut self,
        id: RequestId,
        shared: &SharedSnapshot,
        chunks: &[u64],
    ) -> bool {
        let (Some(merge), Some(request)) = (&self.merge, self.requests.get(id)) else {
            return false;
        };
        let cs = shared.chunk_size;
        let whole = |c: u64| {
            let end = cs.first_sector(c + 1).min(shared.sectors);
            request.start() <= cs.first_sector(c) && end <= request.end()
                || mutation::is(Mutation::PartialWriteDirect)
        };
        if !chunks
            .iter()
            .all(|c| whole(*c) && !merge.waiting.contains_key(c))
        {
            return false;
        }
        let port = request.port();
        for chunk in chunks {
            if !self.hurry(*chunk) {
                return false;
            }
        }
        let entries = chunks.iter().filter_map(|old| {
            let new = shared.table.get(*old).cow_chunk()?;
            Some(Entry { old: *old, new })
        });
        let entries: Vec<Entry> = entries.collect();
        let Some(merge) = &mut self.merge else {
            return false;
        };
        self.counts.merge.batches += 1;
        let number = merge.start_batch(port, Kind::Direct(id), entries);
        if let Some(request) = self.requests.get_mut(id) {
            request.set_stage(Stage::Issued);
            request.waits().add(1); // for step 5
        }
        self.look_again(Waiter::Batch(number));
        true
    }

    /// Step 2. Not durable by itself, also for a write that must be: step 3 is.
    pub(super) fn write_direct(&mut self, number: u64, id: RequestId) {
        self.register(id, WRITE);
        let device = self.origin_device();
        if let Some(batch) = self.batch(number) {
            batch.ios += 1;
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.waits().add(1);
        let (port, slot) = (request.port(), request.slot());
        let (start, sectors) = (request.start(), request.end() - request.start());
        let purpose = IoPurpose::MergeGuestWrite {
            batch: number,
            request: id,
        };
        self.issue(port, purpose, |tag| Command::GuestWrite {
            tag,
            device,
            offset: start << SECTOR_SHIFT,
            slot,
            slot_offset: 0,
            len: byte_count(sectors),
            durable: false,
        });
        if mutation::is(Mutation::DirectWriteFlushedEarly) {
            self.direct_written(number, id, Ok(()));
        }
    }

    /// The data is in the origin. If it is not, only this write has failed: the chunks
    /// stay as they were.
    pub(in crate::engine::core) fn direct_written(
        &mut self,
        number: u64,
        id: RequestId,
        result: Result<(), Failure>,
    ) {
        if result.is_err() {
            self.set_failed(id);
            self.abandon_batch(number);
        }
        if self.batch_io_ended(number, Ok(())) {
            self.look_at_batch(number);
            if let Some(snapshot) = self.merging() {
                // This thread is a guest's; the merger does the rest.
                self.notify(Notice::MergeWork { snapshot });
            }
        } else {
            self.unregister(id);
        }
        self.wake(Waiter::Request(id));
    }

    /// The write touches nothing any more.
    pub(super) fn unregister(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get(id) {
            self.end_registration(request.port(), request.slot());
        }
    }

    /// Step 5 will not happen for this write: it is decided by the present state.
    pub(super) fn decide_again(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(id)
            && !mutation::is(Mutation::AbandonedWriteAcked)
        {
            request.set_stage(Stage::Waiting);
        }
        self.wake(Waiter::Request(id));
    }
}
