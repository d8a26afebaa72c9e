//! Writes that failed: each of their sectors holds what it held, or what the write brought, until
//! a read tells or another write comes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::load::Written;

#[derive(Default)]
pub struct Failed {
    /// What each sector may hold besides.
    stamps: HashMap<u64, Vec<u64>>,
    /// The first stamps of these writes.
    writes: HashSet<u64>,
}

impl Failed {
    pub fn add(&mut self, written: &Written) {
        self.writes.insert(written.stamp);
        let sectors = written.sector..written.sector + written.sectors;
        for (sector, stamp) in sectors.zip(written.stamp..) {
            self.stamps.entry(sector).or_default().push(stamp);
        }
    }

    /// Nothing is in doubt.
    pub fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }

    pub fn is_one(&self, written: &Written) -> bool {
        self.writes.contains(&written.stamp)
    }

    /// `found` was read where `known` was written last before.
    pub fn settle(&mut self, sector: u64, found: Option<u64>, known: &mut u64) {
        let may_be = self.stamps.remove(&sector).unwrap_or_default();
        if let Some(found) = found.filter(|found| may_be.contains(found)) {
            *known = found;
        }
    }

    /// A later write to these sectors has succeeded.
    pub fn overwritten(&mut self, sectors: Range<u64>) {
        if !self.is_empty() {
            sectors.for_each(|sector| drop(self.stamps.remove(&sector)));
        }
    }

    pub fn clear(&mut self) {
        self.stamps.clear();
        self.writes.clear();
    }
}
