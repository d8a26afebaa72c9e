//! A COW file and its origin, made from a fuzzer's bytes: a store as it should be, with some
//! damage, or any bytes.

use super::input::Input;

/// Bytes of a store at most, without holes.
const STORE_MAX: usize = 96 << 10;
/// Bytes of an entry of the log.
const ENTRY: usize = 16;

/// What an input describes.
pub struct Image {
    pub cow: Vec<u8>,
    pub origin: Vec<u8>,
    /// The accepted store is merged as well.
    pub merges: bool,
}

struct Store {
    bytes: Vec<u8>,
    chunk: usize,
    origin_chunks: usize,
}

impl Image {
    pub fn read(bytes: &[u8]) -> Self {
        let input = &mut Input(bytes);
        let chunk = 512 * input.choose(&[8, 1, 2, 16]);
        let chunks = (12 + usize::from(input.byte() % 64)).min(STORE_MAX / chunk);
        let origin_chunks = 8 + usize::from(input.byte() % 32);
        let cut = 512 * (usize::from(input.byte()) % (chunk / 512));
        let flags = input.byte();
        let origin = (0..origin_chunks * chunk - cut)
            .map(|at| (at / 512 * 7 + at) as u8)
            .collect();
        let mut store = Store {
            bytes: vec![0; chunks * chunk],
            chunk,
            origin_chunks,
        };
        if flags & 2 == 0 {
            store.begin(input);
            store.fill(input);
            while !input.is_empty() {
                store.damage(input);
            }
        } else {
            store.bytes = input.take(STORE_MAX).to_vec();
            // Whole sectors, in the ordinary case.
            if flags & 4 == 0 {
                store
                    .bytes
                    .resize(store.bytes.len().next_multiple_of(512).max(512), 0);
            }
        }
        Self {
            cow: store.bytes,
            origin,
            merges: flags & 1 == 1,
        }
    }
}

impl Store {
    fn begin(&mut self, input: &mut Input<'_>) {
        self.bytes[..4].copy_from_slice(b"SnAp");
        self.bytes[4] = 1;
        self.bytes[8] = 1;
        self.bytes[12] = (self.chunk / 512) as u8;
        if input.flag() {
            self.bytes[4] = 0;
        }
    }

    /// Entries as they should be, each with its chunk.
    fn fill(&mut self, input: &mut Input<'_>) {
        let area = self.chunk / ENTRY;
        let first = usize::from(input.byte());
        let wanted = usize::from(input.byte()).min(self.origin_chunks);
        for slot in 0..wanted {
            let new = 2 + slot + slot / area;
            if (new + 1) * self.chunk > self.bytes.len() {
                return;
            }
            let old = (first + slot * 3) % self.origin_chunks;
            // A step of 3 meets a place twice where 3 divides their number.
            let old = match self.origin_chunks.is_multiple_of(3) {
                true => (first + slot) % self.origin_chunks,
                false => old,
            };
            self.put(slot, old as u64, new as u64);
            let fill = if slot % 5 == 4 { 0 } else { slot as u8 | 0x80 };
            self.bytes[new * self.chunk..(new + 1) * self.chunk].fill(fill);
        }
    }

    /// Where a slot of the log is; may be beyond the end.
    fn place(&self, slot: usize) -> usize {
        let area = self.chunk / ENTRY;
        (1 + slot / area * (area + 1)) * self.chunk + slot % area * ENTRY
    }

    fn put(&mut self, slot: usize, old: u64, new: u64) {
        let at = self.place(slot);
        if let Some(entry) = self.bytes.get_mut(at..at + ENTRY) {
            entry[..8].copy_from_slice(&old.to_le_bytes());
            entry[8..].copy_from_slice(&new.to_le_bytes());
        }
    }

    fn number(&self, input: &mut Input<'_>) -> u64 {
        let chunks = (self.bytes.len() / self.chunk) as u64;
        let edges = [
            0,
            1,
            2,
            3,
            self.origin_chunks as u64 - 1,
            self.origin_chunks as u64,
            chunks.saturating_sub(1),
            chunks,
            u64::MAX,
            1 << 55,
        ];
        match input.byte() {
            choice @ 0..200 => edges[usize::from(choice) % edges.len()],
            200..230 => u64::from(input.byte()),
            _ => input.u64(),
        }
    }

    /// One thing that is wrong.
    fn damage(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            0 => {
                let (at, value) = (usize::from(input.byte() % 16), input.byte());
                self.set(at, value);
            }
            1 => {
                let slot = usize::from(input.byte());
                let (old, new) = (self.number(input), self.number(input));
                self.put(slot, old, new);
            }
            2 => {
                let (at, value) = (self.place(usize::from(input.byte())), input.byte());
                self.set(at + usize::from(value % 16), input.byte());
            }
            3 => {
                let (from, to) = (usize::from(input.byte()), usize::from(input.byte()));
                let from = self.place(from);
                if let Some(entry) = self.bytes.get(from..from + ENTRY) {
                    let (old, new) = entry.split_at(8);
                    let word = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap());
                    let (old, new) = (word(old), word(new));
                    self.put(to, old, new);
                }
            }
            4 => {
                let len = usize::from(input.u16()) * input.choose(&[512, 1, 16]);
                self.bytes.truncate(len.max(1));
            }
            5 => {
                let start = self.place(usize::from(input.byte())).min(self.bytes.len());
                let end = (start + usize::from(input.u16())).min(self.bytes.len());
                self.bytes[start..end].fill(0);
            }
            6 => {
                let more = 512 * usize::from(input.byte());
                self.bytes.resize(self.bytes.len() + more, 0);
                self.bytes.truncate(2 * STORE_MAX);
            }
            _ => {
                let at = usize::from(input.u16());
                let count = usize::from(input.byte() % 32);
                for (place, byte) in (at..).zip(input.take(count).to_vec()) {
                    self.set(place, byte);
                }
            }
        }
    }

    fn set(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.bytes.get_mut(at) {
            *byte = value;
        }
    }
}
