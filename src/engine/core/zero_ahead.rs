//! Zeroes that are written ahead of a store's data.
//!
//! Of a file whose space was allocated and never written, the file system notes for each
//! block that it is written now, and the next flush has to make that durable, too: a
//! commit of its journal for each group of exceptions. So the space is written before it
//! is used, in pieces of many chunks.
//!
//! Order: 1 zeroes are written from the next free chunk on → 2 when they have ended,
//! chunks there are allocated. No data, no entries and no later area are ever there
//! meanwhile, and nothing is read there, so it makes no difference which of the zeroes a
//! crash leaves.

use super::Core;
use super::accounting::IoPurpose;
use super::waiting::Waiter;
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::Buffer;
use crate::mutation::{self, Mutation};
use crate::store::Metadata;
use crate::units::{SECTOR_SHIFT, byte_count};

#[derive(Debug)]
pub(super) struct ZeroAhead {
    /// Chunks of one piece. The next one begins when fewer are left.
    piece: u64,
    /// Everything from the first free chunk to here is written.
    written: u64,
    /// The end of the piece that is being written from there on.
    running: Option<u64>,
    /// Waiters for its end, who need chunks of it.
    waiters: Vec<Waiter>,
}

impl ZeroAhead {
    /// `bytes` of a piece; `None` if it is 0.
    pub(super) fn new(store: &SnapshotStore) -> Option<Self> {
        let chunk = store.metadata.layout().chunk_size.bytes();
        (store.zero_ahead > 0).then(|| Self {
            piece: (store.zero_ahead / chunk).max(1),
            written: store.metadata.next_free(),
            running: None,
            waiters: Vec::new(),
        })
    }

    /// Whether one of the next `count` chunks of the store is being zeroed.
    pub(super) fn is_zeroing(&self, metadata: &Metadata, count: usize) -> bool {
        // With the chunks of areas that lie between them.
        let areas = count / metadata.layout().area_len() + 1;
        let end = metadata.next_free() + (count + areas) as u64;
        self.running.is_some()
            && end > self.written
            && !mutation::is(Mutation::AllocatedWhileZeroed)
    }

    /// Fails if somebody waits for nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.running.is_none() && !self.waiters.is_empty() {
            return Err("waiters for zeroes, and none are written".into());
        }
        Ok(())
    }

    /// `waiter`, which counts this wait, is woken when the piece under way has ended.
    pub(super) fn wait(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
    }

    /// Takes the next piece, chunks `.0 .. .1` of the store, if it is due.
    fn take_next(&mut self, metadata: &Metadata) -> Option<(u64, u64)> {
        let next = metadata.next_free();
        let from = if mutation::is(Mutation::ZeroedBehind) {
            self.written
        } else {
            self.written.max(next)
        };
        let chunk_size = metadata.layout().chunk_size;
        let most = chunk_size.whole_chunks(metadata.cow_sectors());
        let to = (from + self.piece).min(most);
        let due = self.running.is_none() && from < next + self.piece && from < to;
        due.then(|| {
            self.written = from;
            self.running = Some(to);
            (from, to)
        })
    }
}

impl Core {
    /// Chunks were allocated: the next piece of zeroes begins, if few are left.
    pub(super) fn zero_ahead(&mut self, id: SnapshotId, port: usize) {
        let Some(snap) = self.snaps.get_mut(&id).filter(|s| s.is_usable()) else {
            return;
        };
        let (device, chunk_size) = (snap.shared.device, snap.shared.chunk_size);
        let next = |ahead: &mut ZeroAhead| ahead.take_next(&snap.metadata);
        let Some((from, to)) = snap.zero_ahead.as_mut().and_then(next) else {
            return;
        };
        let len = byte_count(chunk_size.first_sector(to) - chunk_size.first_sector(from));
        self.issue(port, IoPurpose::ZeroAhead { snapshot: id }, |tag| {
            Command::Write {
                tag,
                device,
                offset: chunk_size.first_sector(from) << SECTOR_SHIFT,
                buffer: Buffer::Zeroes { len },
                durable: false,
                patch: None,
            }
        });
    }

    /// A piece is written. If it could not be, the store does without: a write of data
    /// there shows whether it is good.
    pub(super) fn zeroed_ahead(&mut self, id: SnapshotId, result: Result<(), Failure>) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(ahead) = &mut snap.zero_ahead else {
            return;
        };
        ahead.written = ahead.running.take().unwrap_or(ahead.written);
        let waiters = std::mem::take(&mut ahead.waiters);
        if result.is_err() {
            snap.zero_ahead = None;
        }
        for waiter in waiters {
            self.wake(waiter);
        }
    }
}
