//! Work on memory that is larger than the caches, and than what the processor can translate
//! at a time, done part by part.

/// Parts.
const BUCKETS: usize = 512;
/// Items that a part waits for.
const HELD: usize = 2048;

/// Items by the part of the memory that they are for.
#[derive(Debug)]
pub(super) struct Buckets<T> {
    buckets: Vec<Vec<T>>,
    shift: u32,
}

impl<T> Buckets<T> {
    /// For places `0 .. count`.
    pub(super) fn new(count: u64) -> Self {
        let bits = u64::BITS - count.leading_zeros();
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            shift: bits.saturating_sub(BUCKETS.ilog2()),
        }
    }

    /// Keeps an item for `place` until enough for its part have come, and then gives them
    /// to `work`.
    pub(super) fn push(&mut self, place: u64, item: T, mut work: impl FnMut(&[T])) {
        let index = usize::try_from(place >> self.shift).unwrap_or(usize::MAX);
        if let Some(bucket) = self.buckets.get_mut(index.min(BUCKETS - 1)) {
            bucket.push(item);
            if bucket.len() == HELD {
                work(bucket);
                bucket.clear();
            }
        }
    }

    /// Gives away what is left.
    pub(super) fn finish(self, work: impl FnMut(&[T])) {
        self.buckets.iter().map(Vec::as_slice).for_each(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_comes_out_once_and_with_its_neighbours() {
        for count in [0, 1, 511, 512, 1 << 20, u64::MAX] {
            let mut buckets = Buckets::new(count);
            let mut out: Vec<u64> = Vec::new();
            let place = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count.max(1);
            let part = |place: u64| place / (count / 512).max(1).next_power_of_two();
            for n in 0..300_000 {
                buckets.push(place(n), n, |items| {
                    let first = part(place(items[0]));
                    assert!(items.iter().all(|n| part(place(*n)).abs_diff(first) <= 1));
                    out.extend(items);
                });
            }
            buckets.finish(|items| out.extend(items));
            out.sort_unstable();
            assert!(out.iter().copied().eq(0..300_000), "{count}");
        }
    }
}
