//! The exceptions of one snapshot, origin chunk → COW chunk. Every thread looks them up
//! without a lock.

use crate::mutation::{self, Mutation};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{OnceLock, TINY};

const LEAF_SHIFT: u32 = if TINY { 1 } else { 9 };
const LEAF: usize = 1 << LEAF_SHIFT;
const MIDDLE_SHIFT: u32 = if TINY { 1 } else { 10 };
const MIDDLE: usize = 1 << MIDDLE_SHIFT;

type Leaf = Box<[AtomicU64; LEAF]>;
type Middle = Box<[OnceLock<Leaf>]>;

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

/// Three levels, allocated when they are first used. Readers never wait.
#[derive(Debug)]
pub(super) struct ExceptionTable {
    top: Box<[OnceLock<Middle>]>,
}

fn split(chunk: u64) -> Option<(usize, usize, usize)> {
    let top = usize::try_from(chunk >> (LEAF_SHIFT + MIDDLE_SHIFT)).ok()?;
    let middle = usize::try_from((chunk >> LEAF_SHIFT) & (MIDDLE as u64 - 1)).ok()?;
    let leaf = usize::try_from(chunk & (LEAF as u64 - 1)).ok()?;
    Some((top, middle, leaf))
}

impl ExceptionTable {
    /// A table for origin chunks `0 .. chunks`.
    pub fn new(chunks: u64) -> Self {
        let tops = chunks.div_ceil((LEAF * MIDDLE) as u64).max(1);
        Self {
            top: (0..tops).map(|_| OnceLock::new()).collect(),
        }
    }

    fn cell(&self, chunk: u64) -> Option<&AtomicU64> {
        let (top, middle, leaf) = split(chunk)?;
        self.top.get(top)?.get()?.get(middle)?.get()?.get(leaf)
    }

    pub fn get(&self, chunk: u64) -> Exception {
        Exception(self.cell(chunk).map_or(0, |c| c.load(Ordering::Acquire)))
    }

    /// Publishes an exception. Only the engine's critical section writes.
    pub fn set(&self, chunk: u64, cow_chunk: u64, settled: bool) {
        let Some((top, middle, leaf)) = split(chunk) else {
            return;
        };
        let Some(top) = self.top.get(top) else { return };
        let middles = top.get_or_init(|| (0..MIDDLE).map(|_| OnceLock::new()).collect());
        let Some(middle) = middles.get(middle) else {
            return;
        };
        let cells = middle.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        let value = ((cow_chunk + 1) << 2) | if settled { Exception::SETTLED } else { 0 };
        if let Some(cell) = cells.get(leaf) {
            if mutation::is(Mutation::ExceptionRelaxed) {
                cell.store(value, Ordering::Relaxed);
            } else {
                cell.store(value, Ordering::Release);
            }
        }
    }

    pub fn fence(&self, chunk: u64) {
        if let Some(cell) = self.cell(chunk) {
            cell.fetch_or(Exception::FENCED, Ordering::AcqRel);
        }
    }

    pub fn unfence(&self, chunk: u64) {
        if let Some(cell) = self.cell(chunk) {
            cell.fetch_and(!Exception::FENCED, Ordering::AcqRel);
        }
    }

    pub fn clear(&self, chunk: u64) {
        if let Some(cell) = self.cell(chunk) {
            cell.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_is_found_where_it_was_put_and_nowhere_else() {
        let t = ExceptionTable::new(1 << 21);
        for (chunk, cow) in [
            (0, 0),
            (511, 7),
            (512, 8),
            ((1 << 19) - 1, 9),
            (1 << 19, 10),
            ((1 << 21) - 1, 1 << 40),
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
        assert!(!t.get(512).is_some());
    }
}
