//! A table of exceptions that are known beforehand.

use std::ops::Range;

use super::{Exception, ExceptionTable, Leaf, NARROW, NARROW_BITS, WIDE, home, key};
use crate::sync::atomic::Ordering;

/// Parts of the origin. The leaves of one should fit into a cache of the processor.
const PARTS: usize = 512;
/// Exceptions that are sorted by their parts at a time, so that memory is bounded; more if
/// otherwise too many times were needed.
const SORTED_AT_ONCE: usize = 2 << 20;
const TIMES: usize = 8;
/// Exceptions that are put in together: the processor fetches the memory of all of them
/// at the same time.
const TOGETHER: usize = 64;

/// The numbers of exceptions in each part.
struct Parts {
    shift: u32,
    counts: Vec<usize>,
}

impl Parts {
    fn new(chunks: u64) -> Self {
        let bits = u64::BITS - chunks.leading_zeros();
        Self {
            shift: bits.saturating_sub(PARTS.ilog2()),
            counts: vec![0; PARTS],
        }
    }

    fn of(&self, chunk: u64) -> usize {
        let part = usize::try_from(chunk >> self.shift).unwrap_or(PARTS);
        part.min(PARTS - 1)
    }

    fn add(&mut self, chunk: u64) {
        let part = self.of(chunk);
        if let Some(count) = self.counts.get_mut(part) {
            *count += 1;
        }
    }

    fn count(&self, parts: Range<usize>) -> usize {
        self.counts.get(parts).unwrap_or_default().iter().sum()
    }

    /// The parts from `first` on that have no more than `most` exceptions, but at least one
    /// part.
    fn group(&self, first: usize, most: usize) -> Range<usize> {
        let mut end = first + 1;
        while end < PARTS && self.count(first..end + 1) <= most {
            end += 1;
        }
        first..end
    }
}

impl ExceptionTable {
    /// A table of `entries`, origin chunk and COW chunk, which are settled. Each region
    /// gets the leaf that it needs at once. Exceptions that are far apart are put in part by
    /// part of the origin, because each would otherwise wait for memory.
    pub fn of_settled<I: Iterator<Item = (u64, u64)>>(
        chunks: u64,
        entries: impl Fn() -> I,
    ) -> Self {
        Self::loaded(chunks, entries, SORTED_AT_ONCE)
    }

    fn loaded<I: Iterator<Item = (u64, u64)>>(
        chunks: u64,
        entries: impl Fn() -> I,
        sorted_at_once: usize,
    ) -> Self {
        let table = Self::new(chunks);
        let mut parts = Parts::new(chunks);
        let mut wide = false;
        // Nobody else has the table yet: a reference is the number of exceptions first.
        entries().for_each(|(chunk, cow_chunk)| {
            if let Some(region) = table.region_or_new(chunk) {
                let one_more = Leaf(region.load(Ordering::Relaxed)).start() + 1;
                region.store(Leaf::new(one_more, 0).0, Ordering::Relaxed);
            }
            parts.add(chunk);
            wide |= Exception::new(cow_chunk, true).0 >> NARROW_BITS != 0;
        });
        let most = sorted_at_once.max(parts.count(0..PARTS) / TIMES);
        let mut sorted = Vec::new();
        let mut first = 0;
        while first < PARTS {
            let group = parts.group(first, most);
            first = group.end;
            match parts.count(group.clone()) {
                0 => {}
                count if count <= most => {
                    let starts = sort(entries(), &parts, group, &mut sorted);
                    for ends in starts.windows(2) {
                        if let [start, end] = *ends {
                            table.put_all(sorted.get(start..end).unwrap_or_default(), wide);
                        }
                    }
                }
                // One part of a very large origin: there is nothing to sort.
                _ => {
                    let of_part = entries().filter(|(chunk, _)| group.contains(&parts.of(*chunk)));
                    sorted.clear();
                    of_part.for_each(|entry| {
                        sorted.push(entry);
                        if sorted.len() == most {
                            table.put_all(&sorted, wide);
                            sorted.clear();
                        }
                    });
                    table.put_all(&sorted, wide);
                }
            }
        }
        table
    }

    fn put_all(&self, entries: &[(u64, u64)], wide: bool) {
        for together in entries.chunks(TOGETHER) {
            let fetched = together.iter().map(|(chunk, _)| self.fetch(*chunk));
            std::hint::black_box(fetched.fold(0, |all, word| all ^ word.unwrap_or_default()));
            for (chunk, cow_chunk) in together {
                self.put_loaded(*chunk, *cow_chunk, wide);
            }
        }
    }

    fn put_loaded(&self, chunk: u64, cow_chunk: u64, wide: bool) {
        if let Some(region) = self.region(chunk) {
            let mut leaf = Leaf(region.load(Ordering::Relaxed));
            if leaf.order() == 0 {
                leaf = self.first_leaf(leaf.start(), wide);
                region.store(leaf.0, Ordering::Relaxed);
            }
            let value = Exception::new(cow_chunk, true).0;
            if !self.put(leaf, key(chunk), value) {
                self.replace_leaf(region, leaf, key(chunk), value);
            }
        }
    }

    /// A leaf for that many exceptions.
    fn first_leaf(&self, count: u64, wide: bool) -> Leaf {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let order = match (1..WIDE).find(|order| Leaf::capacity(*order) >= count) {
            Some(NARROW) if wide => WIDE,
            order => order.unwrap_or(WIDE),
        };
        Leaf::new(self.arena.allocate(order), order)
    }

    /// Reads where the exception of a chunk probably comes.
    fn fetch(&self, chunk: u64) -> Option<u64> {
        let leaf = Leaf(self.region(chunk)?.load(Ordering::Relaxed));
        let index = match leaf.order() {
            0 => return None,
            WIDE => key(chunk),
            NARROW => key(chunk) / 2,
            order => home(key(chunk), order),
        };
        let word = self.arena.segment(leaf.start())?.word(leaf.start(), index);
        Some(word?.load(Ordering::Relaxed))
    }
}

/// Sorts the entries of a group of parts by their parts. Returns where each begins, and
/// the end.
fn sort(
    entries: impl Iterator<Item = (u64, u64)>,
    parts: &Parts,
    group: Range<usize>,
    sorted: &mut Vec<(u64, u64)>,
) -> Vec<usize> {
    let first = group.start;
    let ends = group.clone().map(|part| parts.count(first..part + 1));
    let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let mut next = starts.clone();
    sorted.resize(parts.count(group.clone()), (0, 0));
    entries.for_each(|entry| {
        let part = parts.of(entry.0);
        if group.contains(&part)
            && let Some(next) = next.get_mut(part - first)
            && let Some(place) = sorted.get_mut(*next)
        {
            *place = entry;
            *next += 1;
        }
    });
    starts
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_table_that_is_loaded_is_the_one_that_is_filled(
            regions in prop::collection::vec((0..2000u64, 0..600usize, 1..40u64, 0..4u64), 1..8),
            all_at_once in any::<bool>(),
        ) {
            let mut entries = BTreeMap::new();
            for (region, count, stride, size) in regions {
                // Copies that fit into any leaf, not into narrow cells, only into wide ones.
                let first = [0, 5_000_000, 1 << 30, 1 << 53][usize::try_from(size).unwrap()];
                let chunks = (0..512).step_by(usize::try_from(stride).unwrap()).take(count);
                entries.extend(chunks.map(|n| (region * 512 + n, first + n)));
            }
            let chunks = 2000 * 512;
            let pairs = || entries.iter().map(|(old, new)| (*old, *new));
            let loaded = match all_at_once {
                true => ExceptionTable::of_settled(chunks, pairs),
                false => ExceptionTable::loaded(chunks, pairs, 1),
            };
            let filled = ExceptionTable::new(chunks);
            pairs().for_each(|(old, new)| filled.set(old, new, true));
            for chunk in 0..chunks {
                prop_assert_eq!(loaded.get(chunk), filled.get(chunk), "chunk {}", chunk);
                let expected = entries.get(&chunk).copied();
                prop_assert_eq!(loaded.get(chunk).cow_chunk(), expected);
            }
        }
    }
}
