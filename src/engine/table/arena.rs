//! Memory for the leaves of a table: blocks of 2, 4, 8 … words, which are given back and
//! used again, but stay words of the arena. A reader that looks into a block that is no
//! longer what it was finds other numbers there, and nothing worse.

use std::collections::BTreeSet;
// Not that of a model. Where a block is, a thread knows from the reference of a leaf; a
// model that finds the segment whatever was synchronized before still fails if the
// reference did not bring the block's words with it.
use std::sync::{OnceLock, PoisonError};

use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, MutexGuard, TINY};

/// Blocks have `1 << order` words, of 1 ..= `LARGEST`.
pub(super) const LARGEST: u32 = if TINY { 3 } else { 9 };
const SEGMENT_SHIFT: u32 = if TINY { 3 } else { 13 };
const SEGMENT: usize = 1 << SEGMENT_SHIFT;
/// The first segments, 256 MiB, are found without looking for their level.
const FIRST: usize = if TINY { 2 } else { 4096 };
const LEVELS: usize = 48;

/// Words that are allocated together: a number of largest blocks.
type Words = Box<[AtomicU64; SEGMENT]>;

/// Made where they stay: they are too many for a stack.
fn words() -> Words {
    let words: Box<[AtomicU64]> = (0..SEGMENT).map(|_| AtomicU64::new(0)).collect();
    words.try_into().expect("SEGMENT words were made")
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a>(&'a [AtomicU64; SEGMENT]);

impl<'a> Segment<'a> {
    /// Word `index` of the block that begins at `start`.
    pub fn word(self, start: u64, index: u64) -> Option<&'a AtomicU64> {
        // A block is aligned to its size.
        let place = (start | index) & (SEGMENT as u64 - 1);
        self.0.get(usize::try_from(place).ok()?)
    }
}

type Level = Box<[OnceLock<Words>]>;

/// The words, and which of them are free.
#[derive(Debug)]
pub(super) struct Arena {
    first: Level,
    /// Those after them. Level `n` has `1 << n` segments, so that an array never has to move.
    levels: [OnceLock<Level>; LEVELS],
    free: Mutex<Free>,
}

/// The free blocks, by order and by their first word. Two halves of a block are joined
/// again, so that the blocks that small leaves leave serve for large ones.
#[derive(Debug, Default)]
struct Free {
    blocks: [BTreeSet<u64>; LARGEST as usize + 1],
    segments: u64,
}

impl Arena {
    pub fn new() -> Self {
        Self {
            first: empty(FIRST),
            levels: std::array::from_fn(|_| OnceLock::new()),
            free: Mutex::default(),
        }
    }

    /// Where the words are of a block that begins at `start`.
    pub fn segment(&self, start: u64) -> Option<Segment<'_>> {
        let number = usize::try_from(start >> SEGMENT_SHIFT).ok()?;
        let segment = match self.first.get(number) {
            Some(segment) => segment,
            None => {
                let (level, index) = place(number);
                self.levels.get(level)?.get()?.get(index)?
            }
        };
        segment.get().map(|words| Segment(words))
    }

    /// A free block: its first word. The words of one that was never used are 0.
    pub fn allocate(&self, order: u32) -> u64 {
        let mut free = self.free();
        loop {
            if let Some(start) = free.take(order) {
                return start;
            }
            let segment = free.segments;
            free.segments += 1;
            self.add_segment(segment);
            let words = segment << SEGMENT_SHIFT..(segment + 1) << SEGMENT_SHIFT;
            for start in words.step_by(1 << LARGEST) {
                free.release(start, LARGEST);
            }
        }
    }

    /// A block that nothing leads to any more.
    pub fn release(&self, start: u64, order: u32) {
        self.free().release(start, order);
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // A panic aborts the daemon.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_segment(&self, number: u64) {
        let Ok(number) = usize::try_from(number) else {
            return;
        };
        let (level, index) = place(number);
        let segment = self.first.get(number).or_else(|| {
            let segments = self.levels.get(level)?;
            segments.get_or_init(|| empty(1 << level)).get(index)
        });
        if let Some(segment) = segment {
            segment.get_or_init(words);
        }
    }
}

fn empty(segments: usize) -> Level {
    (0..segments).map(|_| OnceLock::new()).collect()
}

/// The level and the index in it of a segment after the first ones.
fn place(number: usize) -> (usize, usize) {
    let place = number.saturating_sub(FIRST) + 1;
    let level = usize::try_from(place.ilog2()).unwrap_or_default();
    (level, place - (1 << level))
}

impl Free {
    /// Takes the first of the smallest blocks that are large enough; what is left of it
    /// stays free.
    fn take(&mut self, order: u32) -> Option<u64> {
        let mut found = order;
        let start = loop {
            if let Some(start) = self.of(found)?.pop_first() {
                break start;
            }
            found += 1;
        };
        for half in (order..found).rev() {
            self.of(half)?.insert(start + (1 << half));
        }
        Some(start)
    }

    fn release(&mut self, mut start: u64, mut order: u32) {
        while order < LARGEST
            && let other = start ^ (1 << order)
            && self.of(order).is_some_and(|blocks| blocks.remove(&other))
        {
            start = start.min(other);
            order += 1;
        }
        if let Some(blocks) = self.of(order) {
            blocks.insert(start);
        }
    }

    fn of(&mut self, order: u32) -> Option<&mut BTreeSet<u64>> {
        self.blocks.get_mut(usize::try_from(order).ok()?)
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn blocks_never_overlap_and_what_is_given_back_is_joined(
            steps in prop::collection::vec((1..=LARGEST, any::<prop::sample::Index>(), any::<bool>()), 1..300),
        ) {
            let arena = Arena::new();
            let mut used: Vec<(u64, u32)> = Vec::new();
            let mut most = 0;
            for (order, which, gives_back) in steps {
                if gives_back && !used.is_empty() {
                    let (start, order) = used.swap_remove(which.index(used.len()));
                    arena.release(start, order);
                } else {
                    let start = arena.allocate(order);
                    prop_assert_eq!(start % (1 << order), 0);
                    prop_assert!(arena.segment(start).is_some());
                    used.push((start, order));
                }
                most = most.max(used.iter().map(|(_, order)| 1_u64 << order).sum::<u64>());
                let mut ranges: Vec<_> = used.iter().map(|(s, o)| (*s, s + (1 << o))).collect();
                ranges.sort_unstable();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            }
            for (start, order) in used {
                arena.release(start, order);
            }
            let free = arena.free();
            let joined = free.blocks[LARGEST as usize].len() as u64;
            prop_assert_eq!(joined << LARGEST, free.segments << SEGMENT_SHIFT);
            prop_assert!(free.blocks[..LARGEST as usize].iter().all(BTreeSet::is_empty));
        }
    }
}
