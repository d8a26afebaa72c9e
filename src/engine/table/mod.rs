//! The exceptions of one snapshot, origin chunk → COW chunk. Every thread looks them up
//! without a lock; only the engine's critical section changes them.
//!
//! A *region* of 512 chunks has a *leaf* that fits the number of its exceptions: a hash
//! table of 2, 4 … 128 words, or a cell of 4 or 8 bytes for each chunk. The leaves are
//! blocks of an [`Arena`], and a region has a reference to its leaf. A leaf that is too
//! small is replaced, and its block may become the leaf of another region while somebody
//! still looks into it. Both sides follow one rule:
//!
//! - the writer **fills the new leaf, publishes the reference, then gives the old block
//!   away**, each with a store that releases;
//! - a reader **takes the reference, looks into the leaf, then takes the reference
//!   again**; if it has changed, the look-up is repeated.
//!
//! A reader that saw anything of the next owner therefore sees the new reference as well.
//! Leaves of a region only become larger, so no reference returns, and a look-up is
//! repeated at most once for each size.

mod arena;
mod load;
#[cfg(all(test, feature = "loom"))]
mod loom_tests;

use arena::{Arena, LARGEST, Segment};

use crate::mutation::{self, Mutation};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{OnceLock, TINY};

/// Chunks of a region.
const REGION_SHIFT: u32 = LARGEST;
/// References in a page.
const PAGE_SHIFT: u32 = if TINY { 1 } else { 10 };

/// Chunks of a region that have cells of 8 bytes.
const WIDE: u32 = LARGEST;
/// The same with cells of 4 bytes, for COW chunks below 2^30.
const NARROW: u32 = LARGEST - 1;
const NARROW_BITS: u32 = 32;
/// In the words of a hash table, the chunk's number in its region is above the value.
const KEY_SHIFT: u32 = u64::BITS - REGION_SHIFT;

type Page = Box<[AtomicU64; 1 << PAGE_SHIFT]>;

/// The table's element for one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception(u64);

impl Exception {
    pub const NONE: Self = Self(0);
    const SETTLED: u64 = 1;
    const FENCED: u64 = 2;

    /// The COW chunk that holds the data, if there is an exception.
    pub fn cow_chunk(self) -> Option<u64> {
        (self.0 >> 2).checked_sub(1)
    }

    pub fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Where an exception was cleared, bits without a COW chunk are left.
    const fn of(value: u64) -> Self {
        if value >> 2 == 0 {
            Self::NONE
        } else {
            Self(value)
        }
    }

    const fn new(cow_chunk: u64, settled: bool) -> Self {
        let settled = if settled { Self::SETTLED } else { 0 };
        Self(cow_chunk.saturating_add(1) << 2 | settled)
    }

    /// The entry is durable and no read of the old origin chunk is under way:
    /// the origin chunk may be overwritten.
    pub fn is_settled(self) -> bool {
        self.0 & Self::SETTLED != 0
    }

    /// In the running merge batch: no write may start.
    pub fn is_fenced(self) -> bool {
        self.0 & Self::FENCED != 0
    }
}

/// A reference to a leaf; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaf(u64);

impl Leaf {
    const NONE: Self = Self(0);
    const ORDER_BITS: u32 = 4;

    const fn new(start: u64, order: u32) -> Self {
        Self(start << Self::ORDER_BITS | order as u64)
    }

    const fn start(self) -> u64 {
        self.0 >> Self::ORDER_BITS
    }

    const fn words(self) -> u64 {
        1 << (self.0 & ((1 << Self::ORDER_BITS) - 1))
    }

    fn order(self) -> u32 {
        u32::try_from(self.0 & ((1 << Self::ORDER_BITS) - 1)).unwrap_or_default()
    }

    /// Exceptions that leaves of this order can have. Where a hash table is almost full,
    /// look-ups are long.
    fn capacity(order: u32) -> usize {
        let words = 1 << order;
        match order {
            0 => 0,
            NARROW | WIDE => 1 << REGION_SHIFT,
            _ => words - words * 3 / 16,
        }
    }

    fn holds(order: u32, value: u64) -> bool {
        match order {
            WIDE => true,
            NARROW => value >> NARROW_BITS == 0,
            _ => value >> KEY_SHIFT == 0,
        }
    }
}

/// Where the value of a chunk is.
struct Cell<'a> {
    word: &'a AtomicU64,
    shift: u32,
    mask: u64,
    /// Above the value, in a hash table.
    key: u64,
    /// What it becomes if it is cleared. In a hash table, a word that is 0 would end the
    /// search for others.
    cleared: u64,
}

impl Cell<'_> {
    fn get(&self) -> u64 {
        (self.word.load(Ordering::Relaxed) >> self.shift) & self.mask
    }

    fn set(&self, value: u64) {
        let others = self.word.load(Ordering::Relaxed) & !(self.mask << self.shift);
        publish(self.word, others | self.key | (value << self.shift));
    }
}

fn publish(word: &AtomicU64, value: u64) {
    if mutation::is(Mutation::ExceptionRelaxed) {
        word.store(value, Ordering::Relaxed);
    } else {
        word.store(value, Ordering::Release);
    }
}

/// The start of the search for a key in a hash table (Fibonacci hashing).
const fn home(key: u64, order: u32) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - order)
}

/// A key's word in a hash table, or the empty word where it would be, and what is there.
fn search(segment: Segment<'_>, leaf: Leaf, key: u64) -> Option<(&AtomicU64, u64)> {
    let first = home(key, leaf.order());
    let mut index = first;
    loop {
        let place = segment.word(leaf.start(), index)?;
        let word = place.load(Ordering::Acquire);
        if word == 0 || word >> KEY_SHIFT == key {
            return Some((place, word));
        }
        index = (index + 1) & (leaf.words() - 1);
        if index == first {
            return None;
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct ExceptionTable {
    pages: Box<[OnceLock<Page>]>,
    arena: Arena,
}

const fn narrow_shift(key: u64) -> u32 {
    if key % 2 == 1 { NARROW_BITS } else { 0 }
}

const fn key(chunk: u64) -> u64 {
    chunk & ((1 << REGION_SHIFT) - 1)
}

impl ExceptionTable {
    /// A table for origin chunks `0 .. chunks`.
    pub fn new(chunks: u64) -> Self {
        let pages = chunks.div_ceil(1 << (REGION_SHIFT + PAGE_SHIFT)).max(1);
        Self {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            arena: Arena::new(),
        }
    }

    fn page(&self, chunk: u64) -> Option<&OnceLock<Page>> {
        let page = chunk >> (REGION_SHIFT + PAGE_SHIFT);
        self.pages.get(usize::try_from(page).ok()?)
    }

    /// The reference of the chunk's region.
    fn region(&self, chunk: u64) -> Option<&AtomicU64> {
        let region = (chunk >> REGION_SHIFT) & ((1 << PAGE_SHIFT) - 1);
        let page = self.page(chunk)?.get()?;
        page.get(usize::try_from(region).ok()?)
    }

    fn region_or_new(&self, chunk: u64) -> Option<&AtomicU64> {
        let page = self.page(chunk)?;
        page.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        self.region(chunk)
    }

    pub fn get(&self, chunk: u64) -> Exception {
        let Some(region) = self.region(chunk) else {
            return Exception::NONE;
        };
        let mut leaf = Leaf(region.load(Ordering::Acquire));
        while leaf != Leaf::NONE {
            let value = self.look_up(leaf, key(chunk)).unwrap_or_default();
            let now = Leaf(region.load(Ordering::Acquire));
            if now == leaf || mutation::is(Mutation::LeafNotRechecked) {
                return Exception(value);
            }
            leaf = now;
        }
        Exception::NONE
    }

    /// What a leaf has for a key, if it still is the leaf of the region.
    fn look_up(&self, leaf: Leaf, key: u64) -> Option<u64> {
        let segment = self.arena.segment(leaf.start())?;
        let word = |index| Some(segment.word(leaf.start(), index)?.load(Ordering::Acquire));
        match leaf.order() {
            WIDE => word(key),
            NARROW => {
                let both = word(key / 2)?;
                Some((both >> narrow_shift(key)) & ((1 << NARROW_BITS) - 1))
            }
            _ => {
                let found = search(segment, leaf, key)?.1 & ((1 << KEY_SHIFT) - 1);
                Some(Exception::of(found).0)
            }
        }
    }

    /// The cell of a chunk, for the only writer; in a hash table it may still be empty.
    fn cell(&self, leaf: Leaf, key: u64) -> Option<Cell<'_>> {
        let segment = self.arena.segment(leaf.start())?;
        let dense = |index, shift, mask| {
            Some(Cell {
                word: segment.word(leaf.start(), index)?,
                shift,
                mask,
                key: 0,
                cleared: 0,
            })
        };
        match leaf.order() {
            0 => None,
            WIDE => dense(key, 0, u64::MAX),
            NARROW => dense(key / 2, narrow_shift(key), (1 << NARROW_BITS) - 1),
            _ => Some(Cell {
                word: search(segment, leaf, key)?.0,
                shift: 0,
                mask: (1 << KEY_SHIFT) - 1,
                key: key << KEY_SHIFT,
                cleared: Exception::FENCED,
            }),
        }
    }

    /// The words of a leaf, for the only writer.
    fn words(&self, leaf: Leaf) -> impl Iterator<Item = &AtomicU64> {
        let count = if leaf == Leaf::NONE { 0 } else { leaf.words() };
        let segment = self.arena.segment(leaf.start());
        (0..count).filter_map(move |index| segment?.word(leaf.start(), index))
    }

    /// Publishes an exception. Only the engine's critical section writes.
    pub fn set(&self, chunk: u64, cow_chunk: u64, settled: bool) {
        let Some(region) = self.region_or_new(chunk) else {
            return;
        };
        let leaf = Leaf(region.load(Ordering::Relaxed));
        let value = Exception::new(cow_chunk, settled).0;
        if !self.has_room(leaf, key(chunk)) || !self.put(leaf, key(chunk), value) {
            self.replace_leaf(region, leaf, key(chunk), value);
        }
    }

    /// Whether a leaf has a cell for the chunk, or may get one more.
    fn has_room(&self, leaf: Leaf, key: u64) -> bool {
        let order = leaf.order();
        if leaf == Leaf::NONE || order == NARROW || order == WIDE {
            return leaf != Leaf::NONE;
        }
        let used = self.words(leaf);
        let used = used.filter(|word| word.load(Ordering::Relaxed) != 0);
        used.count() < Leaf::capacity(order)
            || self
                .arena
                .segment(leaf.start())
                .and_then(|segment| search(segment, leaf, key))
                .is_some_and(|(_, found)| found != 0)
    }

    /// Puts a value into a leaf that has room; false if it is too large for it.
    fn put(&self, leaf: Leaf, key: u64, value: u64) -> bool {
        let cell = Leaf::holds(leaf.order(), value).then(|| self.cell(leaf, key));
        cell.flatten().map(|cell| cell.set(value)).is_some()
    }

    /// Gives a region a larger leaf, with one more value.
    fn replace_leaf(&self, region: &AtomicU64, old: Leaf, key: u64, value: u64) {
        let mut values = self.values(old);
        values.retain(|(other, _)| *other != key);
        values.push((key, value));
        let fits = |order: &u32| {
            Leaf::capacity(*order) >= values.len()
                && values.iter().all(|(_, value)| Leaf::holds(*order, *value))
        };
        let order = (old.order() + 1..WIDE).find(fits).unwrap_or(WIDE);
        let leaf = Leaf::new(self.arena.allocate(order), order);
        for word in self.words(leaf) {
            if mutation::is(Mutation::LeafReusedRelaxed) {
                word.store(0, Ordering::Relaxed);
            } else {
                word.store(0, Ordering::Release);
            }
        }
        for (key, value) in values {
            self.put(leaf, key, value);
        }
        if mutation::is(Mutation::LeafPublishedRelaxed) {
            region.store(leaf.0, Ordering::Relaxed);
        } else {
            region.store(leaf.0, Ordering::Release);
        }
        if old != Leaf::NONE {
            self.arena.release(old.start(), old.order());
        }
    }

    /// All exceptions of a leaf, for the only writer.
    fn values(&self, leaf: Leaf) -> Vec<(u64, u64)> {
        let words = self.words(leaf).map(|word| word.load(Ordering::Relaxed));
        let mask = (1 << KEY_SHIFT) - 1;
        let half = (1 << NARROW_BITS) - 1;
        let mut values: Vec<(u64, u64)> = match leaf.order() {
            WIDE => (0..).zip(words).collect(),
            NARROW => (0..)
                .zip(words.flat_map(|both| [both & half, both >> NARROW_BITS]))
                .collect(),
            _ => words.map(|word| (word >> KEY_SHIFT, word & mask)).collect(),
        };
        values.retain(|(_, value)| Exception::of(*value).is_some());
        values
    }

    /// Changes an exception, if there is one.
    fn change(&self, chunk: u64, new: impl FnOnce(&Cell<'_>) -> u64) {
        if let Some(region) = self.region(chunk)
            && let Some(cell) = self.cell(Leaf(region.load(Ordering::Relaxed)), key(chunk))
            && Exception::of(cell.get()).is_some()
        {
            cell.set(new(&cell));
        }
    }

    pub fn fence(&self, chunk: u64) {
        self.change(chunk, |cell| cell.get() | Exception::FENCED);
    }

    pub fn unfence(&self, chunk: u64) {
        self.change(chunk, |cell| cell.get() & !Exception::FENCED);
    }

    pub fn clear(&self, chunk: u64) {
        self.change(chunk, |cell| cell.cleared);
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_exception_is_found_where_it_was_put_and_nowhere_else() {
        let t = ExceptionTable::new(1 << 29);
        for (chunk, cow) in [
            (0, 0),
            (511, 7),
            (512, 8),
            ((1 << 18) - 1, 9),
            (1 << 18, 10),
            ((1 << 28) - 1, 11),
            (1 << 28, 12),
            ((1 << 29) - 1, 1 << 40),
        ] {
            t.set(chunk, cow, false);
            assert_eq!(t.get(chunk).cow_chunk(), Some(cow));
            assert!(!t.get(chunk).is_settled());
        }
        assert_eq!(t.get(1).cow_chunk(), None);
        assert_eq!(t.get(1 << 30).cow_chunk(), None);
        t.fence(512);
        assert!(t.get(512).is_fenced());
        t.unfence(512);
        t.set(512, 8, true);
        assert!(t.get(512).is_settled() && !t.get(512).is_fenced());
        t.clear(512);
        assert_eq!(t.get(512).cow_chunk(), None);
        assert!(!t.get(512).is_some());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Set(u64, u64, bool),
        Fence(u64),
        Unfence(u64),
        Clear(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Three regions; few chunks, many, and all of them.
        let chunk = prop_oneof![0..8u64, 500..540u64, 0..1536u64];
        let cow = prop_oneof![
            4 => 0..100_000u64,
            1 => (1 << 30) - 3..(1u64 << 30) + 3,
            1 => (1 << 53) - 3..(1u64 << 53) + 3,
        ];
        let step = prop_oneof![
            8 => (chunk.clone(), cow, any::<bool>()).prop_map(|(c, to, s)| Step::Set(c, to, s)),
            1 => chunk.clone().prop_map(Step::Fence),
            1 => chunk.clone().prop_map(Step::Unfence),
            1 => chunk.prop_map(Step::Clear),
        ];
        prop::collection::vec(step, 1..1200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_table_is_a_map_whatever_its_leaves_are(steps in steps()) {
            let table = ExceptionTable::new(1 << 20);
            let mut model: BTreeMap<u64, (u64, bool, bool)> = BTreeMap::new();
            for step in steps {
                let entry = |c| model.get(&c).copied();
                match step {
                    Step::Set(c, to, settled) => {
                        table.set(c, to, settled);
                        model.insert(c, (to, settled, false));
                    }
                    Step::Fence(c) => {
                        table.fence(c);
                        if let Some((to, settled, _)) = entry(c) {
                            model.insert(c, (to, settled, true));
                        }
                    }
                    Step::Unfence(c) => {
                        table.unfence(c);
                        if let Some((to, settled, _)) = entry(c) {
                            model.insert(c, (to, settled, false));
                        }
                    }
                    Step::Clear(c) => {
                        table.clear(c);
                        model.remove(&c);
                    }
                }
            }
            for chunk in 0..1600 {
                let seen = table.get(chunk);
                let expected = model.get(&chunk).copied();
                prop_assert_eq!(seen.cow_chunk(), expected.map(|e| e.0), "chunk {}", chunk);
                prop_assert_eq!(seen.is_some(), expected.is_some());
                if let Some((_, settled, fenced)) = expected {
                    prop_assert_eq!((seen.is_settled(), seen.is_fenced()), (settled, fenced));
                }
            }
        }
    }
}
