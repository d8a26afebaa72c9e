//! The requests that a worker has under way, by the slot number the engine
//! knows them by.

use super::guest::GuestData;
use crate::engine::Slot;
use vm_memory::GuestAddress;

/// What is needed to end a request.
pub struct InFlight {
    /// The chain's head, to go back to the used ring.
    pub head: u16,
    /// Where the status byte goes.
    pub status: GuestAddress,
    pub data: GuestData,
    /// Bytes that the device writes on success, the status byte included.
    pub written: u32,
}

/// A fixed number of slots; the one freed last is used next, while it is warm.
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

    /// Slots that a request can still take.
    pub const fn free(&self) -> usize {
        self.free.len()
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
