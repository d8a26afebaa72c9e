//! The requests that a worker has under way, by the slot number that the engine uses for
//! them.

use super::guest::GuestData;
use super::ring::Taken;
use crate::engine::{Patch, Slot, SlotData, SlotRange};
use crate::io::{Buffer, OpKind, Zeroing};
use vm_memory::GuestAddress;

/// What is needed to end a request.
pub struct InFlight {
    /// What goes back to the ring.
    pub head: Taken,
    /// Where the status byte goes.
    pub status: GuestAddress,
    pub data: RequestData,
    /// Bytes that the device writes on success, the status byte included.
    pub written: u32,
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

    /// Puts a request into a slot; gives it back if all are taken.
    pub fn insert(&mut self, request: InFlight) -> Result<Slot, InFlight> {
        let Some(slot) = self.free.pop() else {
            return Err(request);
        };
        match self.entries.get_mut(usize::from(slot)) {
            Some(entry) => {
                *entry = Some(request);
                Ok(slot)
            }
            None => Err(request),
        }
    }

    pub fn get(&self, slot: Slot) -> Option<&InFlight> {
        self.entries.get(usize::from(slot))?.as_ref()
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
        self.get(range.slot)?.data.buffer(range.offset, range.len)
    }

    fn write_op(&mut self, range: SlotRange, offset: u64, durable: bool) -> Option<OpKind> {
        let data = &self.get(range.slot)?.data;
        let buffer = data.buffer(range.offset, range.len)?;
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
        match &request.data {
            RequestData::Guest(data) => data.copy_out(patch.slot_offset, target),
            RequestData::Zeroes { .. } => {
                target.fill(0);
                request.data.has(patch.slot_offset, patch.len)
            }
        }
    }
}
