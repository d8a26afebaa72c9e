//! A table of exceptions that are known beforehand.

use super::{Exception, ExceptionTable, Leaf, NARROW, NARROW_BITS, WIDE, home, key};
use crate::store::Buckets;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Exceptions that are put in together: the processor fetches the memory of all of them
/// at the same time.
const TOGETHER: usize = 64;

impl ExceptionTable {
    /// A table of `entries`, origin chunk and COW chunk, which are settled. Each region
    /// gets the leaf that it needs at once.
    pub fn of_settled<I: Iterator<Item = (u64, u64)>>(
        chunks: u64,
        entries: impl Fn() -> I,
    ) -> Self {
        let table = Self::new(chunks);
        let mut wide = false;
        // Nobody else has the table yet: a reference is the number of exceptions first.
        entries().for_each(|(chunk, cow_chunk)| {
            if let Some(region) = table.region_or_new(chunk) {
                region.store(region.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            wide |= Exception::new(cow_chunk, true).0 >> NARROW_BITS != 0;
        });
        for region in table.regions() {
            let count = usize::try_from(region.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
            if count == 0 {
                continue;
            }
            let order = match (1..WIDE).find(|order| Leaf::capacity(*order) >= count) {
                Some(NARROW) if wide => WIDE,
                order => order.unwrap_or(WIDE),
            };
            let leaf = Leaf::new(table.arena.allocate(order), order);
            region.store(leaf.0, Ordering::Relaxed);
        }
        let mut buckets = Buckets::new(chunks);
        entries().for_each(|(chunk, cow_chunk)| {
            buckets.push(chunk, (chunk, cow_chunk), |part| table.put_all(part));
        });
        buckets.finish(|part| table.put_all(part));
        table
    }

    fn put_all(&self, entries: &[(u64, u64)]) {
        for together in entries.chunks(TOGETHER) {
            let fetched = together.iter().map(|(chunk, _)| self.fetch(*chunk));
            std::hint::black_box(fetched.fold(0, |all, word| all ^ word.unwrap_or_default()));
            for (chunk, cow_chunk) in together {
                self.put_loaded(*chunk, *cow_chunk);
            }
        }
    }

    fn put_loaded(&self, chunk: u64, cow_chunk: u64) {
        if let Some(region) = self.region(chunk) {
            let leaf = Leaf(region.load(Ordering::Relaxed));
            let value = Exception::new(cow_chunk, true).0;
            if !self.put(leaf, key(chunk), value) {
                self.replace_leaf(region, leaf, key(chunk), value);
            }
        }
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

    /// The references of all regions in pages that exist.
    fn regions(&self) -> impl Iterator<Item = &AtomicU64> {
        let pages = self.pages.iter().filter_map(|page| page.get());
        pages.flat_map(|page| page.iter())
    }
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
            let loaded = ExceptionTable::of_settled(chunks, pairs);
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
