//! A driver's ring of any size, anywhere in guest memory, with up to [`SLOTS`] requests
//! of one block each under way.

use std::ops::Range;

use vhost::VringConfigData;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::eventually;
use super::memory::Memory;

/// Guest memory of one ring: descriptors, available ring, used ring, headers, data.
pub const ROOM: u64 = 0x2_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x6000;
const HEADERS: u64 = 0xc000;
const DATA: u64 = 0x1_0000;

/// Requests that a ring has under way at most.
pub const SLOTS: u16 = 5;
/// Bytes of a request.
pub const BLOCK: usize = 4096;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub struct Ring {
    pub index: usize,
    pub size: u16,
    pub kick: EventFd,
    pub call: EventFd,
    base: u64,
    /// Added to guest addresses in descriptors, if the front end tells others.
    shift: u64,
    avail: u16,
    /// Completions that were taken.
    pub seen: u16,
}

impl Ring {
    /// An empty ring at the guest's address `base`.
    pub fn new(memory: &Memory, index: usize, size: u16, base: u64) -> Self {
        assert!(size >= 3 * SLOTS);
        memory.write(base, &[0; HEADERS as usize]);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            index,
            size,
            kick: event(),
            call: event(),
            base,
            shift: 0,
            avail: 0,
            seen: 0,
        }
    }

    /// The front end tells its own addresses as those of the guest.
    pub fn with_own_addresses(mut self, memory: &Memory) -> Self {
        self.shift = memory.host(self.base) - self.base;
        self
    }

    pub fn addresses(&self, memory: &Memory) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: memory.host(self.base),
            avail_ring_addr: memory.host(self.base + AVAIL),
            used_ring_addr: memory.host(self.base + USED),
            log_addr: None,
        }
    }

    fn header(&self, slot: u16) -> u64 {
        self.base + HEADERS + 32 * u64::from(slot)
    }

    fn data(&self, slot: u16) -> u64 {
        self.base + DATA + BLOCK as u64 * u64::from(slot)
    }

    /// Makes a request available, without a kick. A write takes `data`.
    pub fn offer(&mut self, memory: &Memory, slot: u16, kind: u32, sector: u64, data: &[u8]) {
        assert!(slot < SLOTS);
        let header = self.header(slot);
        memory.put(header, kind);
        memory.put(header + 4, 0_u32);
        memory.put(header + 8, sector);
        memory.put(header + 16, 0xff_u8);
        let head = 3 * slot;
        let descriptor = |index: u16, address: u64, len: u32, flags: u16, next: u16| {
            let at = self.base + 16 * u64::from(index);
            memory.put(at, address + self.shift);
            memory.put(at + 8, len);
            memory.put(at + 12, flags);
            memory.put(at + 14, next);
        };
        let after_header = if kind == FLUSH { head + 2 } else { head + 1 };
        descriptor(head, header, 16, NEXT, after_header);
        if kind != FLUSH {
            memory.write(self.data(slot), data);
            let flags = if kind == IN { NEXT | WRITE } else { NEXT };
            descriptor(head + 1, self.data(slot), BLOCK as u32, flags, head + 2);
        }
        descriptor(head + 2, header + 16, 1, WRITE, 0);
        let place = self.base + AVAIL + 4 + 2 * u64::from(self.avail % self.size);
        memory.put(place, head);
        self.avail = self.avail.wrapping_add(1);
        memory.store(self.base + AVAIL + 2, self.avail);
    }

    /// The driver looks at the used ring by itself.
    pub fn without_interrupts(&self, memory: &Memory) {
        memory.put(self.base + AVAIL, 1_u16);
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    pub fn used_index(&self, memory: &Memory) -> u16 {
        memory.load(self.base + USED + 2)
    }

    /// As [`Self::used_index`], for the driver's side.
    pub const fn avail_index(&self) -> u16 {
        self.avail
    }

    /// Waits for everything that was offered, and says for each slot in the order of
    /// completion whether it was done.
    pub fn wait(&mut self, memory: &Memory) -> Vec<(u16, u8)> {
        let what = format!("the requests of queue {} come back", self.index);
        eventually(&what, || self.used_index(memory) == self.avail);
        let mut done = Vec::new();
        while self.seen != self.avail {
            let place = self.base + USED + 4 + 8 * u64::from(self.seen % self.size);
            let slot = u16::try_from(memory.get::<u32>(place)).unwrap() / 3;
            done.push((slot, memory.get::<u8>(self.header(slot) + 16)));
            self.seen = self.seen.wrapping_add(1);
        }
        done
    }

    /// One request, done.
    pub fn run(&mut self, memory: &Memory, kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
        let blank = [0; BLOCK];
        let data = if data.is_empty() { &blank } else { data };
        self.offer(memory, 0, kind, sector, data);
        self.kick();
        assert_eq!(self.wait(memory), [(0, 0)], "queue {}", self.index);
        memory.read(self.data(0), BLOCK)
    }

    pub fn block(&self, memory: &Memory, slot: u16) -> Vec<u8> {
        memory.read(self.data(slot), BLOCK)
    }
}

/// The content that a block gets in a round.
pub fn stamp(round: u64, sector: u64) -> Vec<u8> {
    let word = (round << 32 | sector).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..BLOCK as u64 / 8).map(|i| word ^ i);
    words.flat_map(u64::to_le_bytes).collect()
}

/// The sector of a ring's slot: no two have the same.
pub fn sector_of(ring: usize, slot: u16) -> u64 {
    (ring as u64 * u64::from(SLOTS) + u64::from(slot)) * (BLOCK as u64 / 512)
}

/// Offers a write for each slot of each ring, and kicks.
pub fn begin(memory: &Memory, rings: &mut [Ring], round: u64) {
    begin_slots(memory, rings, round, 0..SLOTS);
}

/// As [`begin`], for some slots.
pub fn begin_slots(memory: &Memory, rings: &mut [Ring], round: u64, slots: Range<u16>) {
    for ring in rings {
        for slot in slots.clone() {
            let sector = sector_of(ring.index, slot);
            ring.offer(memory, slot, OUT, sector, &stamp(round, sector));
        }
        ring.kick();
    }
}

/// What [`begin`] began is done: every request once, and reads show it.
pub fn judge(memory: &Memory, rings: &mut [Ring], round: u64) {
    for ring in rings.iter_mut() {
        all_once(ring.wait(memory), ring.index);
    }
    // Each ring reads what another one wrote.
    let count = rings.len();
    let owners: Vec<usize> = rings.iter().map(|ring| ring.index).collect();
    for (at, ring) in rings.iter_mut().enumerate() {
        let owner = owners[(at + 1) % count];
        for slot in 0..SLOTS {
            ring.offer(memory, slot, IN, sector_of(owner, slot), &[0xdb; BLOCK]);
        }
        ring.kick();
    }
    for (at, ring) in rings.iter_mut().enumerate() {
        all_once(ring.wait(memory), ring.index);
        let owner = owners[(at + 1) % count];
        for slot in 0..SLOTS {
            let want = stamp(round, sector_of(owner, slot));
            let same = ring.block(memory, slot) == want;
            assert!(same, "queue {owner}, slot {slot}, round {round}");
        }
    }
    rings[0].run(memory, FLUSH, 0, &[]);
}

fn all_once(mut done: Vec<(u16, u8)>, ring: usize) {
    done.sort_unstable();
    let want: Vec<(u16, u8)> = (0..SLOTS).map(|slot| (slot, 0)).collect();
    assert_eq!(done, want, "queue {ring}");
}
