//! One split ring in guest memory, seen from its driver, which keeps it over any
//! number of back ends.

use std::collections::HashSet;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Largest data of one request.
pub const BUFFER: usize = 64 << 10;
pub const MAX_DEPTH: usize = 128;
/// Guest memory of one ring.
pub const RING_BYTES: u64 = BUFFERS + (2 * MAX_DEPTH * BUFFER) as u64;

// Where its parts are.
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x6000;
const HEADERS: u64 = 0x8000;
const TABLES: u64 = 0xc000;
const BUFFERS: u64 = 0x1_0000;
/// Header, status byte and the segment of a write of zeroes, for each slot; an
/// indirect table has the same size.
const SLOT: u64 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const ZEROES: u32 = 13;

/// How the driver uses its rings.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub queues: usize,
    /// Requests under way in each queue, at most.
    pub depth: usize,
    pub indirect: bool,
    pub event_idx: bool,
}

impl Shape {
    pub fn ring_size(&self) -> u16 {
        let descriptors = if self.indirect {
            self.depth
        } else {
            3 * self.depth
        };
        descriptors.next_power_of_two().max(2) as u16
    }

    fn head(&self, slot: usize) -> u16 {
        if self.indirect {
            slot as u16
        } else {
            3 * slot as u16
        }
    }

    pub fn slot(&self, head: u32) -> Option<usize> {
        let head = head as usize;
        let slot = if self.indirect {
            head
        } else if head.is_multiple_of(3) {
            head / 3
        } else {
            return None;
        };
        (slot < self.depth).then_some(slot)
    }
}

pub struct Ring {
    pub index: usize,
    pub shape: Shape,
    pub kick: EventFd,
    pub call: EventFd,
    memory: GuestMemoryMmap<()>,
    base: u64,
    /// Made available, and seen on the used ring, by the driver.
    pub avail: u16,
    pub seen: u16,
    /// The available index when the driver last thought about a kick.
    told: u16,
}

/// What a back end that takes the ring at some index gets to see.
#[derive(Clone, Debug, Default)]
pub struct Offered {
    /// Heads that are under way.
    pub under_way: HashSet<usize>,
    /// Heads that were completed before, or are there twice.
    pub completed: u64,
}

impl Ring {
    pub fn new(memory: &GuestMemoryMmap<()>, index: usize, shape: Shape) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            index,
            shape,
            kick: event(),
            call: event(),
            memory: memory.clone(),
            base: index as u64 * RING_BYTES,
            avail: 0,
            seen: 0,
            told: 0,
        }
    }

    /// As a driver that has reset the device: both rings are empty.
    pub fn clear(&mut self) {
        (self.avail, self.seen, self.told) = (0, 0, 0);
        let zeroes = [0; HEADERS as usize];
        self.memory.write_slice(&zeroes, self.at(0)).unwrap();
        while self.call.read().is_ok() || self.kick.read().is_ok() {}
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.base + offset)
    }

    pub fn addresses(&self) -> [GuestAddress; 3] {
        [self.at(0), self.at(AVAIL), self.at(USED)]
    }

    pub fn buffer(&self, buffer: usize) -> GuestAddress {
        self.at(BUFFERS + (buffer * BUFFER) as u64)
    }

    fn size(&self) -> u64 {
        u64::from(self.shape.ring_size())
    }

    /// Puts a request into a slot and makes it available.
    pub fn submit(&mut self, slot: usize, kind: u32, sector: u64, buffer: usize, len: usize) {
        let header = self.at(HEADERS + slot as u64 * SLOT);
        let place = |offset| GuestAddress(header.0 + offset);
        let words = [u64::from(kind), if kind == ZEROES { 0 } else { sector }];
        self.memory.write_obj(words[0], header).unwrap();
        self.memory.write_obj(words[1], place(8)).unwrap();
        self.memory.write_obj(0xff_u8, place(16)).unwrap();
        let data = match kind {
            FLUSH => None,
            ZEROES => {
                self.memory.write_obj(sector, place(32)).unwrap();
                let sectors = (len / 512) as u64;
                self.memory.write_obj(sectors, place(40)).unwrap();
                Some((place(32).0, 16, 0))
            }
            IN => Some((self.buffer(buffer).0, len as u32, WRITE)),
            _ => Some((self.buffer(buffer).0, len as u32, 0)),
        };
        let mut chain = vec![(header.0, 16, 0)];
        chain.extend(data);
        chain.push((place(16).0, 1, WRITE));
        let head = self.shape.head(slot);
        let (table, first) = if self.shape.indirect {
            let table = self.at(TABLES + slot as u64 * SLOT);
            let len = 16 * chain.len() as u32;
            self.descriptor(self.at(0), head, (table.0, len, INDIRECT), 0);
            (table, 0)
        } else {
            (self.at(0), head)
        };
        let last = chain.len() - 1;
        for (i, (address, len, flags)) in chain.into_iter().enumerate() {
            let index = first + i as u16;
            let more = if i < last { NEXT } else { 0 };
            self.descriptor(table, index, (address, len, flags | more), index + 1);
        }
        self.offer(slot);
    }

    /// A read of `segments` times `len` bytes from the disk's start, all into the same
    /// memory. All slots share one header and have a table and a status of their own.
    /// For rings with indirect tables that nothing else uses.
    pub fn submit_large(&mut self, slot: usize, segments: u64, len: u32) {
        let status = GuestAddress(self.at(HEADERS + slot as u64 * SLOT).0 + 16);
        self.memory.write_obj(0xff_u8, status).unwrap();
        let table = self.buffer(slot);
        let data = self.buffer(MAX_DEPTH).0;
        let mut chain = vec![(self.at(HEADERS).0, 16, 0)];
        chain.extend((0..segments).map(|_| (data, len, WRITE)));
        chain.push((status.0, 1, WRITE));
        for (index, (address, len, flags)) in (0..).zip(&chain) {
            let more = if usize::from(index) + 1 < chain.len() {
                NEXT
            } else {
                0
            };
            self.descriptor(table, index, (*address, *len, flags | more), index + 1);
        }
        let bytes = 16 * chain.len() as u32;
        self.descriptor(self.at(0), slot as u16, (table.0, bytes, INDIRECT), 0);
        self.offer(slot);
    }

    fn descriptor(
        &self,
        table: GuestAddress,
        index: u16,
        (address, len, flags): (u64, u32, u16),
        next: u16,
    ) {
        let next = if flags & NEXT == 0 { 0 } else { next };
        let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        let place = GuestAddress(table.0 + 16 * u64::from(index));
        self.memory.write_obj(raw, place).unwrap();
    }

    /// Makes the request that a slot holds available.
    pub fn offer(&mut self, slot: usize) {
        let head = self.shape.head(slot);
        let place = self.at(AVAIL + 4 + 2 * (u64::from(self.avail) % self.size()));
        self.memory.write_obj(head, place).unwrap();
        self.avail = self.avail.wrapping_add(1);
        let index = self.at(AVAIL + 2);
        self.memory
            .store(self.avail, index, Ordering::Release)
            .unwrap();
    }

    /// Kicks if something was made available and the back end wants to know.
    pub fn notify(&mut self) {
        let (old, new) = (self.told, self.avail);
        if old == new {
            return;
        }
        self.told = new;
        fence(Ordering::SeqCst);
        let wanted = if self.shape.event_idx {
            let event = self.load(USED + 4 + 8 * self.size());
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(USED) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    pub fn used_index(&self) -> u16 {
        self.load(USED + 2)
    }

    fn load(&self, offset: u64) -> u16 {
        self.memory
            .load(self.at(offset), Ordering::Acquire)
            .unwrap()
    }

    /// The next used element, if there is one: head and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            // Asks for an interrupt at the next one, and looks again.
            let place = self.at(AVAIL + 4 + 2 * self.size());
            self.memory
                .store(self.seen, place, Ordering::Release)
                .unwrap();
            fence(Ordering::SeqCst);
            if self.used_index() == self.seen {
                return None;
            }
        }
        let place = USED + 4 + 8 * (u64::from(self.seen) % self.size());
        let head = self.memory.read_obj(self.at(place)).unwrap();
        let len = self.memory.read_obj(self.at(place + 4)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        Some((head, len))
    }

    pub fn status(&self, slot: usize) -> u8 {
        let place = self.at(HEADERS + slot as u64 * SLOT + 16);
        self.memory.read_obj(place).unwrap()
    }

    /// What lies on the available ring from `base` on.
    pub fn offered_from(&self, base: u16, under_way: &HashSet<usize>) -> Offered {
        let mut offered = Offered::default();
        for index in 0..self.avail.wrapping_sub(base) {
            let index = u64::from(base.wrapping_add(index)) % self.size();
            let head: u16 = self
                .memory
                .read_obj(self.at(AVAIL + 4 + 2 * index))
                .unwrap();
            let slot = self.shape.slot(u32::from(head));
            match slot.filter(|slot| under_way.contains(slot)) {
                Some(slot) if offered.under_way.insert(slot) => {}
                _ => offered.completed += 1,
            }
        }
        offered
    }
}
