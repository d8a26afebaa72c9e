//! A guest's driver that does what a fuzzer's bytes say: it offers requests that are valid
//! unless the bytes ask for a flaw, and writes anywhere into its memory.

use super::input::Input;
use super::memory::{END, Memory};

/// Where the parts of a ring are, for at most 64 entries. In the ordinary case they are
/// apart from each other; the others overlap, or lie at an end of memory.
const PLACES: [Ring; 6] = [
    Ring::at(0, 0x800, 0xc00),
    Ring::at(0x7000, 0xbf00, 0x1_3d00),
    Ring::at(0, 0x800, 0x880),
    Ring::at(0x7e00, 0x7ffa, 0x8000),
    Ring::at(0, 0x200, 0x100),
    Ring::at(0x1_0000, 0x1_0000, 0x1_0000),
];

/// Memory for requests in the ordinary case.
const BUFFERS: u64 = 0x1000;
const BUFFERS_END: u64 = 0x7000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The places and the size of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub size: u16,
}

impl Ring {
    const fn at(descriptors: u64, available: u64, used: u64) -> Self {
        Self {
            descriptors,
            available,
            used,
            size: 0,
        }
    }

    pub fn choose(input: &mut Input<'_>) -> Self {
        let mut ring = input.choose(&PLACES);
        ring.size = input.choose(&[16, 1, 2, 4, 8, 32, 64]);
        ring
    }

    /// No part lies in another one.
    pub fn is_disjoint(&self) -> bool {
        let size = u64::from(self.size);
        let mut parts = [
            (self.descriptors, 16 * size),
            (self.available, 6 + 2 * size),
            self.used_piece(),
        ];
        parts.sort_unstable();
        parts.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0)
    }

    /// What the device writes: the used ring with the event index.
    pub const fn used_piece(&self) -> (u64, u64) {
        (self.used, 6 + 8 * self.size as u64)
    }
}

/// A descriptor: address, length, flags.
type Descriptor = (u64, u32, u16);

/// The driver. Its view of the ring may be as wrong as the bytes make it.
pub struct Driver {
    pub ring: Ring,
    available: u16,
    next_descriptor: u16,
    next_buffer: u64,
}

impl Driver {
    pub fn new(ring: Ring, base: u16, memory: &Memory) -> Self {
        for index in [ring.available, ring.used] {
            memory.write(index + 2, &base.to_le_bytes());
        }
        Self {
            ring,
            available: base,
            next_descriptor: 0,
            next_buffer: BUFFERS,
        }
    }

    fn allocate(&mut self, len: u64) -> u64 {
        if self.next_buffer + len > BUFFERS_END {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer = at + len;
        at
    }

    fn put_descriptor(memory: &Memory, table: u64, place: u16, descriptor: Descriptor, next: u16) {
        let (address, len, flags) = descriptor;
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        memory.write(table.wrapping_add(16 * u64::from(place)), &raw);
    }

    /// Puts a head on the available ring, without saying so.
    fn put_head(&mut self, memory: &Memory, head: u16) {
        let place = u64::from(self.available % self.ring.size);
        let at = self.ring.available + 4 + 2 * place;
        memory.write(at, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
    }

    fn tell(&self, memory: &Memory) {
        let at = self.ring.available + 2;
        memory.write(at, &self.available.to_le_bytes());
    }

    /// Offers a request.
    pub fn request(&mut self, memory: &Memory, input: &mut Input<'_>) {
        let mut parts = self.parts(memory, input);
        let (layout, flaw) = (input.byte(), input.byte());
        spoil(&mut parts, flaw, input);
        let size = self.ring.size;
        let indirect = layout & 1 == 1;
        let direct = match (indirect, layout & 2 == 2) {
            (true, true) => 1.min(parts.len()),
            (true, false) => 0,
            (false, _) => parts.len(),
        };
        let mut rest = parts.split_off(direct);
        if indirect {
            let table = self.allocate(16 * rest.len() as u64);
            let count = rest.len() as u16;
            for (place, mut part) in (0_u16..).zip(rest.drain(..)) {
                let next = place + 1;
                if next < count {
                    part.2 |= NEXT;
                }
                Self::put_descriptor(memory, table, place, part, next);
            }
            let odd = if layout & 4 == 4 {
                u32::from(input.byte())
            } else {
                0
            };
            let flags = if layout & 8 == 8 {
                INDIRECT | WRITE
            } else {
                INDIRECT
            };
            // More entries than can be told apart.
            let more = if layout & 16 == 16 { 16 << 16 } else { 0 };
            parts.push((table, 16 * u32::from(count) + odd + more, flags));
        }
        let head = self.next_descriptor;
        let last = parts.len().saturating_sub(1);
        for (place, mut part) in parts.into_iter().enumerate() {
            let here = self.next_descriptor;
            self.next_descriptor = (here + 1) % size;
            if place < last {
                part.2 |= NEXT;
            }
            let next = if flaw == 7 {
                head
            } else {
                self.next_descriptor
            };
            Self::put_descriptor(memory, self.ring.descriptors, here, part, next);
        }
        self.put_head(memory, head);
        self.tell(memory);
    }

    /// Header, data and status of a valid request.
    fn parts(&mut self, memory: &Memory, input: &mut Input<'_>) -> Vec<Descriptor> {
        let kind = input.choose(&[1_u32, 0, 4, 8, 11, 13, 14, 24, 99, 0x8000_0001]);
        let sector = u64::from(input.byte());
        let header = self.allocate(16);
        memory.write(header, &kind.to_le_bytes());
        memory.write(header + 4, &[0; 4]);
        let in_header = if matches!(kind, 0 | 1) { sector } else { 0 };
        memory.write(header + 8, &in_header.to_le_bytes());
        let mut parts = vec![(header, 16, 0)];
        let flags = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        match kind {
            11 | 13 => {
                let ranges = ranges(sector, input);
                let len = ranges.len() as u32;
                let at = self.allocate(len.into());
                memory.write(at, &ranges);
                parts.push((at, len, 0));
            }
            0 | 1 | 8 => {
                let count = input.byte() % 6;
                for _ in 0..=count {
                    parts.push(self.data(memory, input, flags));
                }
            }
            _ => {}
        }
        let status = self.allocate(1);
        memory.write(status, &[0xff]);
        parts.push((status, 1, WRITE));
        parts
    }

    fn data(&mut self, memory: &Memory, input: &mut Input<'_>, flags: u16) -> Descriptor {
        let len = match input.byte() {
            code @ 0..200 => 512 * (1 + u32::from(code) % 9),
            code => {
                let odd = [0, 1, 15, 20, 21, 256, 511, 513, 4095, 8192];
                odd[usize::from(code) % odd.len()]
            }
        };
        let at = self.allocate(u64::from(len));
        let pattern = (len as u8) ^ (at >> 4) as u8 ^ self.available as u8;
        memory.write(at, &vec![pattern; len as usize]);
        (at, len, flags)
    }

    /// Something else that a driver can do.
    pub fn mischief(&mut self, memory: &Memory, input: &mut Input<'_>) {
        match input.byte() % 6 {
            0 => {
                let head = input.u16();
                self.put_head(memory, head);
                self.tell(memory);
            }
            1 => {
                self.available = self
                    .available
                    .wrapping_add_signed(i16::from(input.byte() as i8));
                self.tell(memory);
            }
            2 => {
                let at = self.ring.available + 2 * u64::from(input.byte() % 2);
                memory.write(at, &input.u16().to_le_bytes());
            }
            3 => {
                // The driver's event index.
                let at = self.ring.available + 4 + 2 * u64::from(self.ring.size);
                memory.write(at, &input.u16().to_le_bytes());
            }
            4 => {
                let at = u64::from(input.u16()) + 0x4000 * u64::from(input.byte() % 2);
                let len = usize::from(input.byte() % 32);
                memory.write(at, input.take(len));
            }
            _ => {
                let place = input.byte() % 64;
                let (address, len) = (address(input), input.u32());
                let (flags, next) = (input.u16() & 7, input.u16());
                let table = self.ring.descriptors;
                Self::put_descriptor(memory, table, place.into(), (address, len, flags), next);
            }
        }
    }
}

/// The ranges of a discard or a write of zeroes: 1 to 64, which follow one another in the
/// ordinary case.
fn ranges(mut sector: u64, input: &mut Input<'_>) -> Vec<u8> {
    let mut sectors = input.byte();
    let code = input.byte();
    let (mut flags, further) = (code & 3, code >> 2);
    let mut ranges = Vec::new();
    for number in 0..=further {
        if number > 0 {
            sector += u64::from(sectors);
            if input.byte() != 0 {
                sector = input.byte().into();
                (sectors, flags) = (input.byte(), input.byte() & 3);
            }
        }
        ranges.extend(sector.to_le_bytes());
        ranges.extend(u32::from(sectors).to_le_bytes());
        ranges.extend(u32::from(flags).to_le_bytes());
    }
    ranges
}

/// An address that is worth a try.
fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() % 12 {
        0 => input.u16().into(),
        1 => 0,
        2 => 0x7fff,
        3 => 0xbfff,
        4 => 0xc000,
        5 => 0xffff,
        6 => END - 1,
        7 => END,
        8 => u64::MAX,
        9 => u64::MAX - 511,
        10 => 1 << 32,
        _ => input.u64(),
    }
}

/// Makes a request wrong in one way; 0: in none.
fn spoil(parts: &mut Vec<Descriptor>, flaw: u8, input: &mut Input<'_>) {
    let at = usize::from(input.byte()) % parts.len();
    let last = parts.len() - 1;
    match flaw {
        1 => drop(parts.pop()),
        2 => parts[0].1 = u32::from(input.byte() % 20),
        3 => parts[at].2 ^= WRITE,
        4 => parts[at].0 = address(input),
        5 => parts[at].1 = input.u32(),
        6 => parts[at].2 |= NEXT,
        // 7: a loop.
        8 => parts[at].2 |= INDIRECT,
        9 => parts.swap(at, last),
        10 => parts.insert(at, (address(input), 0, input.u16() & WRITE)),
        11 => parts[last].1 = 1 + u32::from(input.byte()),
        12 => {
            // The header in two parts.
            let (address, len, flags) = parts[0];
            let cut = 1 + u32::from(input.byte() % 15);
            if len == 16 {
                parts[0].1 = cut;
                parts.insert(1, (address + u64::from(cut), len - cut, flags));
            }
        }
        13 => parts[at].2 |= 0xfff8,
        14 => {
            // Any part in two.
            let (address, len, flags) = parts[at];
            let cut = 1 + u32::from(input.byte());
            if cut < len {
                parts.insert(at, (address, cut, flags));
                parts[at + 1] = (address.wrapping_add(cut.into()), len - cut, flags);
            }
        }
        15 => {
            // About as many as a chain may have, empty ones or like another one.
            let count = 960 + usize::from(input.byte());
            let mut part = parts[at];
            if !input.flag() {
                part.1 = 0;
            }
            parts.splice(at..at, std::iter::repeat_n(part, count));
        }
        _ => {}
    }
}
