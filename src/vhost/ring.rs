//! One running split ring, seen from the device.
//!
//! `virtio_queue` reads the available ring; the used ring is written here, so
//! that a batch of completions costs one index update and at most one signal.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::guest::MemoryHold;
use super::memory::GuestMap;
use super::notify::Call;

/// Offset of the index in both rings, after the flags.
const INDEX: u64 = 2;
/// Offset of the first element in both rings.
const ELEMENTS: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;
/// The driver wants no interrupts (without EVENT_IDX).
const NO_INTERRUPT: u16 = 1;

/// Why a ring cannot go on.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RingFault {
    #[error(
        "the available index went {available} ahead, but only {room} more requests can be under way"
    )]
    TooManyAvailable { available: u16, room: usize },
    #[error("head {0} is not in the descriptor table")]
    Head(u16),
    #[error("the ring's memory cannot be accessed")]
    Memory,
}

/// A ring that a worker owns while it runs.
pub struct Ring {
    queue: Queue,
    hold: Arc<MemoryHold>,
    call: Arc<Call>,
    /// The used index that the driver sees; `queue.next_used()` is ahead of it
    /// by what has been pushed and not published.
    published: u16,
    /// The driver was asked to kick.
    armed: bool,
}

impl Ring {
    /// Takes over a queue that is set up and valid in the memory held.
    pub fn new(
        mut queue: Queue,
        hold: Arc<MemoryHold>,
        call: Arc<Call>,
    ) -> Result<Self, RingFault> {
        let used = queue
            .used_idx(&*hold.map, Ordering::Acquire)
            .map_err(|_| RingFault::Memory)?;
        queue.set_next_used(used.0);
        Ok(Self {
            queue,
            hold,
            call,
            published: used.0,
            armed: true,
        })
    }

    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where the ring must go on when it is started again.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    pub const fn hold(&self) -> &Arc<MemoryHold> {
        &self.hold
    }

    /// Gives every available chain to `each`. `room`: requests that can still
    /// be under way; an honest driver never offers more.
    pub fn take_available(
        &mut self,
        room: usize,
        mut each: impl FnMut(u16, DescriptorChain<&GuestMap>),
    ) -> Result<usize, RingFault> {
        let map = &*self.hold.map;
        let index = self
            .queue
            .avail_idx(map, Ordering::Acquire)
            .map_err(|_| RingFault::Memory)?;
        let available = index.0.wrapping_sub(self.queue.next_avail());
        if usize::from(available) > room {
            return Err(RingFault::TooManyAvailable { available, room });
        }
        if available == 0 {
            return Ok(0);
        }
        let size = self.queue.size();
        let chains = self.queue.iter(map).map_err(|_| RingFault::Memory)?;
        let mut taken = 0;
        // The iterator may see a later index; what came after the check waits.
        for chain in chains.take(usize::from(available)) {
            let head = chain.head_index();
            if head >= size {
                return Err(RingFault::Head(head));
            }
            each(head, chain);
            taken += 1;
        }
        if taken == usize::from(available) {
            Ok(taken)
        } else {
            Err(RingFault::Memory)
        }
    }

    /// Puts a head on the used ring; the driver sees it after [`Self::publish`].
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingFault> {
        let next = self.queue.next_used();
        let index = u64::from(next)
            .checked_rem(u64::from(self.queue.size()))
            .unwrap_or(0);
        let address = at(self.queue.used_ring(), ELEMENTS + index * USED_ELEMENT)?;
        let element = u64::from(len) << 32 | u64::from(head);
        self.hold
            .map
            .write_obj(element.to_le(), address)
            .map_err(|_| RingFault::Memory)?;
        self.queue.set_next_used(next.wrapping_add(1));
        Ok(())
    }

    /// Shows the driver what was pushed, and signals it if it wants to know.
    pub fn publish(&mut self) -> Result<(), RingFault> {
        let (old, new) = (self.published, self.queue.next_used());
        if old == new {
            return Ok(());
        }
        let address = at(self.queue.used_ring(), INDEX)?;
        let map = &*self.hold.map;
        map.store(new.to_le(), address, Ordering::Release)
            .map_err(|_| RingFault::Memory)?;
        self.published = new;
        // The index before the driver's wish is read: it does it the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let offset = ELEMENTS + u64::from(self.queue.size()) * AVAIL_ELEMENT;
            let event = self.load(at(self.queue.avail_ring(), offset)?)?;
            // Whether `event` lies in old .. new.
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(GuestAddress(self.queue.avail_ring()))? & NO_INTERRUPT == 0
        };
        if wanted {
            self.call.notify();
        }
        Ok(())
    }

    /// Signals the driver without a reason: it may have missed one.
    pub fn signal(&self) {
        self.call.notify();
    }

    /// Asks for kicks. True: more became available meanwhile, look again.
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        self.armed = true;
        let map = &*self.hold.map;
        self.queue
            .enable_notification(map)
            .map_err(|_| RingFault::Memory)
    }

    /// Asks for no kicks while the ring is looked at anyway.
    pub fn disarm(&mut self) -> Result<(), RingFault> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        let map = &*self.hold.map;
        self.queue
            .disable_notification(map)
            .map_err(|_| RingFault::Memory)
    }

    fn load(&self, address: GuestAddress) -> Result<u16, RingFault> {
        let value = self.hold.map.load(address, Ordering::Relaxed);
        value.map(u16::from_le).map_err(|_| RingFault::Memory)
    }
}

fn at(base: u64, offset: u64) -> Result<GuestAddress, RingFault> {
    GuestAddress(base)
        .checked_add(offset)
        .ok_or(RingFault::Memory)
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
