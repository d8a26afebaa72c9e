//! The requests that a worker has under way, by the slot number that the engine uses for
//! them.

use super::guest::GuestData;
use super::ring::Taken;
use super::tally::Begun;
use crate::engine::{Patch, Request, Slot, SlotData, SlotRange};
use crate::io::{Buffer, OpKind, Zeroing};
use crate::units::byte_count;
use crate::virtio_blk::Action;
use vm_memory::GuestAddress;

/// What is needed to end a request.
pub struct InFlight {
    /// What goes back to the ring.
    pub head: Taken,
    /// Where the status byte goes.
    pub status: GuestAddress,
    pub data: RequestData,
    /// Further ranges of the request, the last one first.
    pub later: Vec<Action>,
    /// Bytes that the device writes on success, the status byte included.
    pub written: u32,
    pub progress: Progress,
    /// Bytes that it counts for in the memory of its queue.
    pub held: u64,
    /// What is counted of it.
    pub begun: Begun,
}

impl InFlight {
    /// From an offset in the window to one in the request's data, in bytes.
    fn place(&self, offset: usize) -> usize {
        byte_count(self.progress.before).saturating_add(offset)
    }

    /// Goes on with the next window, or with the first one of the next range; false if there
    /// is none.
    pub fn advance(&mut self) -> bool {
        self.progress.advance() || self.begin_next_range()
    }

    fn begin_next_range(&mut self) -> bool {
        let Some(next) = self.later.pop() else {
            return false;
        };
        let (sector, sectors) = match next {
            Action::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => {
                self.data = RequestData::zeroes(sectors, unmap);
                (sector, sectors)
            }
            Action::Discard { sector, sectors }
            | Action::Read { sector, sectors }
            | Action::Write { sector, sectors } => (sector, sectors),
            // They have no ranges.
            Action::Flush | Action::GetId => return false,
        };
        let whole = Request {
            sector,
            sectors,
            ..self.progress.request
        };
        self.progress = Progress::new(whole, self.progress.window);
        true
    }

    /// Whether something is left to hand in.
    pub fn has_more(&self) -> bool {
        self.progress.has_more() || !self.later.is_empty()
    }
}

/// How far a request has advanced: it is handed in window by window.
pub struct Progress {
    /// The window that is under way.
    pub request: Request,
    /// Sectors of the request before and after it.
    before: u64,
    after: u64,
    /// Most sectors of a window; a power of two.
    window: u64,
}

impl Progress {
    /// The first window of `whole`.
    pub fn new(whole: Request, window: u64) -> Self {
        let mut progress = Self {
            request: Request {
                sectors: 0,
                ..whole
            },
            before: 0,
            after: whole.sectors,
            window,
        };
        progress.advance();
        progress
    }

    /// Goes on with the next window; false if there is none.
    pub fn advance(&mut self) -> bool {
        if self.after == 0 {
            return false;
        }
        let request = &mut self.request;
        self.before += request.sectors;
        request.sector += request.sectors;
        let inside = request.sector & (self.window - 1);
        request.sectors = self.after.min(self.window - inside);
        self.after -= request.sectors;
        true
    }

    /// Whether another window follows.
    pub const fn has_more(&self) -> bool {
        self.after > 0
    }
}

/// The data of a request.
pub enum RequestData {
    Guest(GuestData),
    /// A write of `len` bytes of zero; `unmap`: their space may be given back.
    Zeroes {
        len: usize,
        unmap: bool,
    },
}

impl RequestData {
    /// Zeroes for so many sectors.
    pub fn zeroes(sectors: u64, unmap: bool) -> Self {
        Self::Zeroes {
            len: byte_count(sectors),
            unmap,
        }
    }

    /// The `len` bytes from `offset`; `None` if the data does not have them.
    fn buffer(&self, offset: usize, len: usize) -> Option<Buffer> {
        match self {
            Self::Guest(data) => data.buffer(offset, len).map(Buffer::Guest),
            Self::Zeroes { .. } => self.has(offset, len).then_some(Buffer::Zeroes { len }),
        }
    }

    fn has(&self, offset: usize, wanted: usize) -> bool {
        match self {
            Self::Guest(data) => offset.saturating_add(wanted) <= data.len(),
            Self::Zeroes { len, .. } => offset.saturating_add(wanted) <= *len,
        }
    }
}

/// A fixed number of slots. The slot that was freed last is used next, because it is in
/// the cache.
pub struct Slots {
    entries: Vec<Option<InFlight>>,
    free: Vec<Slot>,
}

impl Slots {
    pub fn new(count: u16) -> Self {
        Self {
            entries: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Requests under way.
    pub const fn taken(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// No request is under way.
    pub const fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Puts a request into a slot; `None` if all are taken.
    pub fn insert(&mut self, request: InFlight) -> Option<Slot> {
        let slot = self.free.pop()?;
        *self.entries.get_mut(usize::from(slot))? = Some(request);
        Some(slot)
    }

    fn get(&self, slot: Slot) -> Option<&InFlight> {
        self.entries.get(usize::from(slot))?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut InFlight> {
        self.entries.get_mut(usize::from(slot))?.as_mut()
    }

    /// Ends a request; its slot is free again.
    pub fn remove(&mut self, slot: Slot) -> Option<InFlight> {
        let request = self.entries.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        Some(request)
    }
}

impl SlotData for Slots {
    fn read_buffer(&mut self, range: SlotRange) -> Option<Buffer> {
        let request = self.get(range.slot)?;
        request.data.buffer(request.place(range.offset), range.len)
    }

    fn write_op(&mut self, range: SlotRange, offset: u64, durable: bool) -> Option<OpKind> {
        let request = self.get(range.slot)?;
        let data = &request.data;
        let buffer = data.buffer(request.place(range.offset), range.len)?;
        match data {
            // Zeroing cannot be durable by itself, so a durable write writes zeroes.
            RequestData::Zeroes { unmap, .. } if !durable => Some(OpKind::Zero {
                offset,
                len: u64::try_from(range.len).ok()?,
                how: if *unmap {
                    Zeroing::Unmap
                } else {
                    Zeroing::Keep
                },
            }),
            RequestData::Zeroes { .. } | RequestData::Guest(_) => Some(OpKind::Write {
                offset,
                buffer,
                durable,
            }),
        }
    }

    fn lay_over(&mut self, buffer: &mut Buffer, patch: Patch) -> bool {
        let Some(request) = self.get(patch.slot) else {
            return false;
        };
        let Buffer::Owned(owned) = buffer else {
            return false;
        };
        let end = patch.buffer_offset.saturating_add(patch.len);
        let Some(target) = owned.as_mut_slice().get_mut(patch.buffer_offset..end) else {
            return false;
        };
        let place = request.place(patch.slot_offset);
        match &request.data {
            RequestData::Guest(data) => data.copy_out(place, target),
            RequestData::Zeroes { .. } => {
                target.fill(0);
                request.data.has(place, patch.len)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::RequestKind;

    #[test]
    fn windows_cover_a_request_once_and_end_at_multiples_of_their_length() {
        for (sector, sectors, window) in [(0, 8, 8), (5, 100, 16), (16, 16, 16), (7, 1, 64)] {
            let whole = Request {
                slot: 3,
                kind: RequestKind::Read,
                sector,
                sectors,
            };
            let mut progress = Progress::new(whole, window);
            let mut at = sector;
            loop {
                let now = progress.request;
                assert_eq!((now.sector, progress.before), (at, at - sector));
                assert!(now.sectors > 0);
                at += now.sectors;
                assert!(at.is_multiple_of(window) || at == sector + sectors);
                assert_eq!(progress.has_more(), at < sector + sectors);
                if !progress.advance() {
                    break;
                }
            }
            assert_eq!(at, sector + sectors);
        }
        // A flush has no sectors, and one window.
        let flush = Request {
            slot: 0,
            kind: RequestKind::Flush,
            sector: 0,
            sectors: 0,
        };
        assert!(!Progress::new(flush, 8).has_more());
    }
}
