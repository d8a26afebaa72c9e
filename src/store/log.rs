//! The entries of a log in memory, packed in blocks.
//!
//! A store that was filled in the order of its chunks has copies that ascend with the
//! slots, and a guest that writes in order has originals that do. A column of a block
//! therefore holds how far each value is from such a row, in as few bytes as the block
//! needs: none for a row, 4 for chunks at random on 1 TiB.

use super::entry::Entry;

/// Entries in a packed block.
const BLOCK: usize = 256;

type Values = [u64; BLOCK];

/// One of the two numbers of each entry in a block.
#[derive(Debug)]
struct Column {
    base: u64,
    /// Bytes of each value, 0 ..= 8.
    width: usize,
    packed: Box<[u8]>,
}

/// What the value at `index` has to be lowered by for a row to become a constant; the
/// first is raised instead, so that nothing of a row is negative.
const fn ahead(index: usize) -> u64 {
    (BLOCK - 1 - index) as u64
}

impl Column {
    fn new(values: &Values) -> Self {
        let levels = || {
            values
                .iter()
                .enumerate()
                .map(|(index, value)| value.wrapping_add(ahead(index)))
        };
        let base = levels().min().unwrap_or_default();
        let most = levels().max().unwrap_or_default() - base;
        let width = most.checked_ilog2().map_or(0, |log| log / 8 + 1);
        let width = usize::try_from(width).unwrap_or(8);
        let mut packed = Vec::with_capacity(BLOCK * width);
        for level in levels() {
            packed.extend(level.wrapping_sub(base).to_le_bytes().iter().take(width));
        }
        Self {
            base,
            width,
            packed: packed.into_boxed_slice(),
        }
    }

    fn value(&self, index: usize, above: u64) -> u64 {
        let level = self.base.wrapping_add(above);
        level.wrapping_sub(ahead(index))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let start = index * self.width;
        self.packed.get(start..start + self.width)
    }

    fn get(&self, index: usize) -> u64 {
        let mut above = [0; 8];
        for (byte, packed) in above.iter_mut().zip(self.bytes(index).unwrap_or_default()) {
            *byte = *packed;
        }
        self.value(index, u64::from_le_bytes(above))
    }

    fn set(&mut self, index: usize, value: u64) {
        let start = index * self.width;
        let above = value
            .wrapping_add(ahead(index))
            .wrapping_sub(self.base)
            .to_le_bytes();
        let (low, high) = above.split_at(self.width);
        if high.iter().all(|byte| *byte == 0)
            && let Some(place) = self.packed.get_mut(start..start + self.width)
        {
            place.copy_from_slice(low);
            return;
        }
        let mut values = [0; BLOCK];
        self.unpack(|index, value| {
            if let Some(place) = values.get_mut(index) {
                *place = value;
            }
        });
        if let Some(place) = values.get_mut(index) {
            *place = value;
        }
        *self = Self::new(&values);
    }

    fn unpack(&self, each: impl FnMut(usize, u64)) {
        match self.width {
            0 => (0..BLOCK)
                .map(|index| (index, self.value(index, 0)))
                .for_each(pair(each)),
            1 => self.unpack_as::<1>(each),
            2 => self.unpack_as::<2>(each),
            3 => self.unpack_as::<3>(each),
            4 => self.unpack_as::<4>(each),
            5 => self.unpack_as::<5>(each),
            6 => self.unpack_as::<6>(each),
            7 => self.unpack_as::<7>(each),
            _ => self.unpack_as::<8>(each),
        }
    }

    fn unpack_as<const WIDTH: usize>(&self, each: impl FnMut(usize, u64)) {
        let values = self.packed.as_chunks::<WIDTH>().0.iter().enumerate();
        values
            .map(|(index, packed)| {
                let mut above = [0; 8];
                if let Some(low) = above.first_chunk_mut::<WIDTH>() {
                    *low = *packed;
                }
                (index, self.value(index, u64::from_le_bytes(above)))
            })
            .for_each(pair(each));
    }
}

fn pair(mut each: impl FnMut(usize, u64)) -> impl FnMut((usize, u64)) {
    move |(index, value)| each(index, value)
}

#[derive(Debug)]
struct Block {
    olds: Column,
    news: Column,
}

impl Block {
    fn new(entries: &[Entry]) -> Self {
        let column = |key: fn(&Entry) -> u64| {
            let mut values = [0; BLOCK];
            for (value, entry) in values.iter_mut().zip(entries) {
                *value = key(entry);
            }
            Column::new(&values)
        };
        Self {
            olds: column(|e| e.old),
            news: column(|e| e.new),
        }
    }

    fn get(&self, index: usize) -> Entry {
        Entry {
            old: self.olds.get(index),
            new: self.news.get(index),
        }
    }

    fn unpack(&self, entries: &mut [Entry]) {
        self.olds.unpack(|index, old| {
            if let Some(entry) = entries.get_mut(index) {
                entry.old = old;
            }
        });
        self.news.unpack(|index, new| {
            if let Some(entry) = entries.get_mut(index) {
                entry.new = new;
            }
        });
    }
}

/// A list of entries, by slot.
#[derive(Debug, Default)]
pub struct Log {
    /// Full ones.
    blocks: Vec<Block>,
    /// The entries after them, fewer than a block.
    tail: Vec<Entry>,
}

impl Log {
    pub fn len(&self) -> usize {
        self.blocks.len() * BLOCK + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, slot: usize) -> Option<Entry> {
        match self.blocks.get(slot / BLOCK) {
            Some(block) => Some(block.get(slot % BLOCK)),
            None => self
                .tail
                .get(slot.checked_sub(self.blocks.len() * BLOCK)?)
                .copied(),
        }
    }

    pub fn push(&mut self, entry: Entry) {
        self.tail.push(entry);
        if self.tail.len() == BLOCK {
            self.blocks.push(Block::new(&self.tail));
            self.tail.clear();
        }
    }

    /// Does nothing if there is no such slot.
    pub(super) fn replace(&mut self, slot: usize, entry: Entry) {
        if let Some(block) = self.blocks.get_mut(slot / BLOCK) {
            block.olds.set(slot % BLOCK, entry.old);
            block.news.set(slot % BLOCK, entry.new);
        } else if let Some(index) = slot.checked_sub(self.blocks.len() * BLOCK)
            && let Some(place) = self.tail.get_mut(index)
        {
            *place = entry;
        }
    }

    /// Keeps the first `len` entries.
    pub(super) fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        if let Some(block) = self.blocks.get(len / BLOCK) {
            self.tail.resize(BLOCK, NOTHING);
            block.unpack(&mut self.tail);
            self.blocks.truncate(len / BLOCK);
            // Blocks come and go in large numbers during a merge.
            if self.blocks.capacity() > 4 * self.blocks.len() {
                self.blocks.shrink_to(2 * self.blocks.len());
            }
        }
        self.tail.truncate(len % BLOCK);
    }

    /// From either end.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            log: self,
            start: 0,
            end: self.len(),
            block: usize::MAX,
            entries: Vec::new(),
        }
    }

    pub fn to_vec(&self) -> Vec<Entry> {
        self.iter().collect()
    }
}

const NOTHING: Entry = Entry { old: 0, new: 0 };

impl<'a> IntoIterator for &'a Log {
    type Item = Entry;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<Entry> for Log {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        let mut log = Self::default();
        entries.into_iter().for_each(|entry| log.push(entry));
        log
    }
}

/// Unpacks a block at a time.
#[derive(Debug)]
pub struct Iter<'a> {
    log: &'a Log,
    start: usize,
    end: usize,
    /// The number of the block in `entries`.
    block: usize,
    entries: Vec<Entry>,
}

impl Iter<'_> {
    fn at(&mut self, slot: usize) -> Option<Entry> {
        let block = slot / BLOCK;
        let Some(packed) = self.log.blocks.get(block) else {
            return self.log.tail.get(slot % BLOCK).copied();
        };
        if block != self.block {
            self.entries.resize(BLOCK, NOTHING);
            packed.unpack(&mut self.entries);
            self.block = block;
        }
        self.entries.get(slot % BLOCK).copied()
    }
}

impl Iterator for Iter<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let slot = self.start;
        if slot >= self.end {
            return None;
        }
        self.start += 1;
        self.at(slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end - self.start;
        (left, Some(left))
    }

    /// Without looking at every entry where it comes from.
    fn fold<B, F: FnMut(B, Entry) -> B>(mut self, init: B, mut f: F) -> B {
        let mut result = init;
        while self.start < self.end {
            let first = self.start - self.start % BLOCK;
            let range = self.start - first..(self.end - first).min(BLOCK);
            self.at(self.start);
            let entries = match self.block == first / BLOCK {
                true => &self.entries,
                false => &self.log.tail,
            };
            for entry in entries.get(range).unwrap_or_default() {
                result = f(result, *entry);
            }
            self.start = first + BLOCK;
        }
        result
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Entry> {
        if self.start >= self.end {
            return None;
        }
        self.end -= 1;
        self.at(self.end)
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of the packed blocks.
    fn packed(log: &Log) -> usize {
        let bytes = |column: &Column| column.packed.len();
        log.blocks
            .iter()
            .map(|block| bytes(&block.olds) + bytes(&block.news))
            .sum()
    }

    fn pattern(kind: u64, n: u64) -> Entry {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match kind {
            0 => Entry { old: n, new: n + 2 },
            1 => Entry {
                old: mixed >> 36,
                new: n + 2,
            },
            2 => Entry {
                old: u64::MAX - n % 7,
                new: mixed,
            },
            _ => Entry {
                old: 1000 - n % 1000,
                new: (n ^ 5) << (n % 60),
            },
        }
    }

    fn check(log: &Log, model: &[Entry]) {
        assert_eq!(log.len(), model.len());
        assert_eq!(log.to_vec(), model);
        let backwards: Vec<Entry> = log.iter().rev().collect();
        assert!(backwards.iter().eq(model.iter().rev()));
        let mut taken = log.iter();
        let some = model.len().min(300);
        assert!(
            taken
                .by_ref()
                .take(some)
                .eq(model.iter().take(some).copied())
        );
        assert_eq!(
            taken.next_back(),
            model.get(some..).and_then(|m| m.last().copied())
        );
        let mut folded = Vec::new();
        taken.for_each(|entry| folded.push(entry));
        let rest = model.get(some..model.len().saturating_sub(1).max(some));
        assert_eq!(folded, rest.unwrap_or_default());
        for slot in 0..=model.len() {
            assert_eq!(log.get(slot), model.get(slot).copied());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_log_is_a_list_of_entries(
            steps in prop::collection::vec((0..3u8, 0..4u64, 0..900usize), 1..12),
        ) {
            let (mut log, mut model) = (Log::default(), Vec::new());
            for (step, kind, size) in steps {
                match step {
                    0 => for n in 0..size as u64 {
                        log.push(pattern(kind, n));
                        model.push(pattern(kind, n));
                    },
                    1 => for n in 0..5 {
                        let entry = pattern(kind, (size + n) as u64);
                        let slot = size * (n + 1) % 900;
                        log.replace(slot, entry);
                        if let Some(place) = model.get_mut(slot) {
                            *place = entry;
                        }
                    },
                    _ => {
                        log.truncate(size);
                        model.truncate(size);
                    }
                }
                check(&log, &model);
            }
        }
    }

    #[test]
    fn rows_take_no_space_and_chunks_at_random_what_their_range_needs() {
        let log = |entries: u64, entry: fn(u64) -> Entry| (0..entries).map(entry).collect::<Log>();
        assert_eq!(packed(&log(2560, |n| pattern(0, n))), 0);
        // 2^28 chunks: 1 TiB of 4 KiB.
        assert_eq!(packed(&log(2560, |n| pattern(1, n))), 4 * 2560);
        let near = log(2560, |n| Entry {
            old: (n ^ 3) + (1 << 40),
            new: n + n / 256,
        });
        assert_eq!(packed(&near), 2560);
    }
}
