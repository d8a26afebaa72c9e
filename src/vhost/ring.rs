//! One running split ring, seen from the device.
//!
//! `virtio_queue` reads the available ring; the used ring is written here, so
//! that a batch of completions costs one index update and at most one signal, which the
//! worker sends.
//!
//! If this process dies, the next back end must find out which requests are done. With an
//! in-flight region the region records it, and requests go back in the order in which
//! they end. Without one, only the used index records it: requests go back in the order
//! in which they were taken, so that the used index counts the requests that are done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::dirty_log::UsedLog;
use super::guest::MemoryHold;
use super::inflight::InflightQueue;
use super::memory::GuestMap;
use super::ring_fault::RingFault;
use crate::mutation::{self, Mutation};
use crate::virtio_blk::last_written_byte;

/// Offset of the index in both rings, after the flags.
const INDEX: u64 = 2;
/// Bytes of the index, of the flags and of an event index.
const INDEX_LEN: u64 = 2;
/// Offset of the first element in both rings.
const ELEMENTS: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;
/// The driver wants no interrupts (without EVENT_IDX).
const NO_INTERRUPT: u16 = 1;

/// A request that was taken from the ring and must go back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub head: u16,
    /// The available index that it was taken at.
    position: u16,
}

/// The order in which requests go back.
enum Tracking {
    /// In available order: for each request from the oldest on that has not gone back,
    /// its head and length if it has ended.
    InOrder(VecDeque<Option<(u16, u32)>>),
    /// In any order.
    Region(InflightQueue),
}

/// A ring that a worker owns while it runs.
pub struct Ring {
    queue: Queue,
    hold: Arc<MemoryHold>,
    tracking: Tracking,
    /// The used index that the driver sees; `queue.next_used()` is ahead of it
    /// by what has been pushed and not published.
    published: u16,
    /// The driver was asked to kick.
    armed: bool,
    /// Where writes to the used ring are logged during a migration.
    used_log: Option<UsedLog>,
}

impl Ring {
    /// Takes over a queue that is set up and valid in the memory held, where the last
    /// back end left it; returns it with the heads that are to be done again, oldest
    /// first.
    ///
    /// The ring continues after the requests that are done, whichever index the front end
    /// resumes at: a front end that lost its connection may have read the used index too
    /// early, or count requests under way as done.
    pub fn new(
        mut queue: Queue,
        hold: Arc<MemoryHold>,
        inflight: Option<InflightQueue>,
    ) -> Result<(Self, Vec<u16>), RingFault> {
        let memory = |_| RingFault::Memory;
        let map = &**hold.map;
        let used = queue.used_idx(map, Ordering::Acquire).map_err(memory)?.0;
        let available = queue.avail_idx(map, Ordering::Acquire).map_err(memory)?.0;
        queue.set_next_used(used);
        let (tracking, replay) = match inflight {
            Some(region) if region.size() < queue.size() => {
                return Err(RingFault::InflightSize {
                    ring: queue.size(),
                    region: region.size(),
                });
            }
            Some(mut region) => {
                let replay = region.recover(queue.size(), used, available)?;
                // No more than the ring's size.
                let under_way = u16::try_from(replay.len()).unwrap_or(u16::MAX);
                if mutation::is(Mutation::ReplayCountForgotten) {
                    queue.set_next_avail(used);
                } else {
                    queue.set_next_avail(used.wrapping_add(under_way));
                }
                (Tracking::Region(region), replay)
            }
            None => {
                // Also if the indices are invalid, which is found when requests are taken:
                // a position is a distance from the used index.
                if !mutation::is(Mutation::ResumedAtTheTold) {
                    queue.set_next_avail(used);
                }
                (Tracking::InOrder(VecDeque::new()), Vec::new())
            }
        };
        let ring = Self {
            queue,
            hold,
            tracking,
            published: used,
            armed: true,
            used_log: None,
        };
        Ok((ring, replay))
    }

    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// From now on writes to the used ring are logged there.
    pub fn set_used_log(&mut self, log: Option<UsedLog>) {
        self.used_log = log;
    }

    /// `len` bytes at `offset` of the used ring were written.
    fn mark_used(&self, offset: u64, len: u64) {
        if let Some(log) = &self.used_log {
            log.mark(offset, len);
        }
    }

    /// The available index at which the ring must continue when it is started again.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    pub const fn hold(&self) -> &Arc<MemoryHold> {
        &self.hold
    }

    /// Passes available chains to `each` until it returns false: the others stay on the
    /// ring. Refuses more than the ring has room for beside the requests that have not
    /// gone back: a correct driver never makes that many available.
    pub fn take_available(
        &mut self,
        mut each: impl FnMut(Taken, DescriptorChain<&GuestMap>) -> bool,
    ) -> Result<usize, RingFault> {
        let map = &**self.hold.map;
        let index = self
            .queue
            .avail_idx(map, Ordering::Acquire)
            .map_err(|_| RingFault::Memory)?;
        let first = self.queue.next_avail();
        let available = index.0.wrapping_sub(first);
        if available == 0 {
            return Ok(0);
        }
        let size = self.queue.size();
        let under_way = first.wrapping_sub(self.queue.next_used());
        let room = size.saturating_sub(under_way);
        if available > room {
            return Err(RingFault::TooManyAvailable { available, room });
        }
        let chains = self.queue.iter(map).map_err(|_| RingFault::Memory)?;
        let mut taken = 0;
        // The iterator may see a later index; chains that came after the check wait.
        for chain in chains.take(usize::from(available)) {
            let head = chain.head_index();
            if head >= size {
                return Err(RingFault::Head(head));
            }
            let position = first.wrapping_add(taken);
            match &mut self.tracking {
                Tracking::InOrder(ended) => ended.push_back(None),
                Tracking::Region(region) => region.taken(head)?,
            }
            taken += 1;
            if !each(Taken { head, position }, chain) {
                return Ok(usize::from(taken));
            }
        }
        if taken == available {
            Ok(usize::from(taken))
        } else {
            Err(RingFault::Memory)
        }
    }

    /// Passes the chains of `heads`, which [`Self::new`] returned, to `each` until it
    /// returns false.
    ///
    /// `virtio_queue` makes chains from an available ring only, and the driver may have
    /// overwritten its own since; so they come from an available ring in a page of this
    /// process, beside the guest's memory.
    pub fn replay(
        &self,
        heads: &[u16],
        mut each: impl FnMut(Taken, DescriptorChain<&GuestMap>) -> bool,
    ) -> Result<(), RingFault> {
        if heads.is_empty() {
            return Ok(());
        }
        let memory = |_| RingFault::Memory;
        let (map, address) =
            super::memory::with_scratch(&self.hold.map).ok_or(RingFault::Memory)?;
        let mut queue = Queue::new(self.queue.size()).map_err(memory)?;
        queue.try_set_size(self.queue.size()).map_err(memory)?;
        let table = GuestAddress(self.queue.desc_table());
        queue.try_set_desc_table_address(table).map_err(memory)?;
        queue.try_set_avail_ring_address(address).map_err(memory)?;
        queue.set_ready(true);
        for (place, head) in (0_u64..).zip(heads) {
            let address = at(address.0, ELEMENTS + place * AVAIL_ELEMENT)?;
            map.write_obj(head.to_le(), address)
                .map_err(|_| RingFault::Memory)?;
        }
        let count = u16::try_from(heads.len()).map_err(|_| RingFault::Memory)?;
        map.store(count.to_le(), at(address.0, INDEX)?, Ordering::Release)
            .map_err(|_| RingFault::Memory)?;
        let chains = queue.iter(&map).map_err(memory)?;
        for (chain, head) in chains.zip(heads) {
            // With a region the position has no meaning.
            let taken = Taken {
                head: *head,
                position: 0,
            };
            if !each(taken, chain) {
                break;
            }
        }
        Ok(())
    }

    /// Where the chain of a request that cannot be carried out has its status byte.
    pub fn last_written_byte(&self, taken: Taken) -> Option<GuestAddress> {
        let table = GuestAddress(self.queue.desc_table());
        last_written_byte(&**self.hold.map, table, self.size(), taken.head)
    }

    /// A request has ended; its head goes to the used ring, now or when the requests
    /// before it have ended. The driver sees it after [`Self::publish`].
    pub fn give_back(&mut self, taken: Taken, len: u32) -> Result<(), RingFault> {
        let next_used = self.queue.next_used();
        match &mut self.tracking {
            Tracking::Region(region) => {
                region.given_back(taken.head)?;
                self.push_used(taken.head, len)
            }
            Tracking::InOrder(ended) => {
                if mutation::is(Mutation::PublishedOutOfOrder) {
                    return self.push_used(taken.head, len);
                }
                let place = usize::from(taken.position.wrapping_sub(next_used));
                if let Some(place) = ended.get_mut(place) {
                    *place = Some((taken.head, len));
                }
                while let Tracking::InOrder(ended) = &mut self.tracking
                    && let Some(Some((head, len))) = ended.front().copied()
                {
                    ended.pop_front();
                    self.push_used(head, len)?;
                }
                Ok(())
            }
        }
    }

    fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingFault> {
        let next = self.queue.next_used();
        let index = u64::from(next)
            .checked_rem(u64::from(self.queue.size()))
            .unwrap_or(0);
        let offset = ELEMENTS + index * USED_ELEMENT;
        let address = at(self.queue.used_ring(), offset)?;
        let element = u64::from(len) << 32 | u64::from(head);
        if !mutation::is_dead() {
            self.hold
                .map
                .write_obj(element.to_le(), address)
                .map_err(|_| RingFault::Memory)?;
        }
        self.mark_used(offset, USED_ELEMENT);
        self.queue.set_next_used(next.wrapping_add(1));
        Ok(())
    }

    /// Makes what went back visible to the driver. Returns whether the driver has to be
    /// signalled.
    pub fn publish(&mut self) -> Result<bool, RingFault> {
        let (old, new) = (self.published, self.queue.next_used());
        if old == new {
            return Ok(false);
        }
        let address = at(self.queue.used_ring(), INDEX)?;
        let map = &**self.hold.map;
        if !mutation::is_dead() {
            map.store(new.to_le(), address, Ordering::Release)
                .map_err(|_| RingFault::Memory)?;
        }
        self.mark_used(INDEX, INDEX_LEN);
        self.published = new;
        if let Tracking::Region(region) = &mut self.tracking {
            region.published(new)?;
        }
        // The index is stored before the driver's event index is read; the driver does it
        // in the opposite order.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let offset = ELEMENTS + u64::from(self.queue.size()) * AVAIL_ELEMENT;
            let event = self.load(at(self.queue.avail_ring(), offset)?)?;
            // Whether `event` lies in old .. new.
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            Ok(self.load(GuestAddress(self.queue.avail_ring()))? & NO_INTERRUPT == 0)
        }
    }

    /// Whether the driver has made more available.
    pub fn has_more(&self) -> bool {
        let index = self.queue.avail_idx(&**self.hold.map, Ordering::Acquire);
        // A fault is reported when requests are taken.
        index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Asks for kicks. True: more became available meanwhile, so look again.
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        self.armed = true;
        let map = &**self.hold.map;
        let more = self.queue.enable_notification(map);
        if self.queue.event_idx_enabled() {
            let event = ELEMENTS + u64::from(self.queue.size()) * USED_ELEMENT;
            self.mark_used(event, INDEX_LEN);
        } else {
            self.mark_used(0, INDEX_LEN);
        }
        more.map_err(|_| RingFault::Memory)
    }

    /// Asks for no kicks while the worker polls the ring.
    pub fn disarm(&mut self) -> Result<(), RingFault> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        let map = &**self.hold.map;
        let disarmed = self.queue.disable_notification(map);
        if !self.queue.event_idx_enabled() {
            self.mark_used(0, INDEX_LEN);
        }
        disarmed.map_err(|_| RingFault::Memory)
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
