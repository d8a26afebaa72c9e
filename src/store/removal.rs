//! Removing entries from anywhere in the log, crash-safe at every unit.

use super::entry::Entry;
use super::metadata::{MetaWrite, Metadata};
use crate::mutation::{self, Mutation};

/// How to remove entries from anywhere in the log.
/// Order: 1 all `moves` written, then durable → 2 each of `zeroes`, durable
/// before the next → 3 `apply_removal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovalPlan {
    /// One unit each, in any order among themselves.
    pub moves: Vec<MetaWrite>,
    /// One unit each, from the end of the log backwards.
    pub zeroes: Vec<MetaWrite>,
    /// The log after it: (slot, entry) for each move, then the new length.
    pub moved: Vec<(usize, Entry)>,
    pub new_len: usize,
}

impl Metadata {
    /// Plans to remove the entries in `slots` (any order; slots that do not
    /// exist are ignored).
    ///
    /// What a crash can leave, and why it is a good store:
    /// 1. Some moves on disk: a hole holds the removed entry or a copy of a tail
    ///    entry. The copy is an identical duplicate, which changes no view.
    /// 2. Some zeroes on disk: moves are durable, so each survivor of the tail
    ///    is in its new slot; zeroing from the end keeps the log gap-free, so
    ///    nothing is ever left behind a terminator.
    ///
    /// Removed entries that such a store still holds must be harmless: their
    /// chunks are merged (COW and origin hold the same bytes) or duplicates.
    pub fn plan_removal(&self, slots: &[usize]) -> RemovalPlan {
        let len = self.entries().len();
        let mut removed: Vec<usize> = slots.iter().copied().filter(|&s| s < len).collect();
        removed.sort_unstable();
        removed.dedup();
        let new_len = len - removed.len();

        // As many holes below the new end as survivors above it.
        let (holes, gone) = removed.split_at(removed.partition_point(|&s| s < new_len));
        let survivors = (new_len..len).filter(|slot| gone.binary_search(slot).is_err());
        let moved: Vec<(usize, Entry)> = holes
            .iter()
            .zip(survivors)
            .filter_map(|(&hole, from)| Some((hole, *self.entries().get(from)?)))
            .collect();

        let with_moves = |slot: usize| match moved.binary_search_by_key(&slot, |m| m.0) {
            Ok(at) => moved.get(at).map(|m| m.1),
            Err(_) => self.entries().get(slot).copied(),
        };
        let shortened = |slot: usize| {
            if slot < new_len {
                with_moves(slot)
            } else {
                None
            }
        };

        let (mut moves, mut zeroes) = (Vec::new(), Vec::new());
        if !self.is_transient() {
            let mut units: Vec<usize> = holes
                .iter()
                .flat_map(|&slot| self.units_of(slot, slot + 1))
                .collect();
            units.dedup();
            moves = units
                .into_iter()
                .map(|unit| self.unit_write(unit, with_moves))
                .collect();
            zeroes = self
                .units_of(new_len, len)
                .rev()
                .map(|unit| self.unit_write(unit, shortened))
                .collect();
            if mutation::is(Mutation::TailZeroedForwards) {
                zeroes.reverse();
            }
            if mutation::is(Mutation::EarlierAreasNotZeroed) {
                zeroes.truncate(1);
            }
        }
        RemovalPlan {
            moves,
            zeroes,
            moved,
            new_len,
        }
    }

    /// The removal is durable in the store.
    pub fn apply_removal(&mut self, plan: &RemovalPlan) {
        self.rewrite_log(&plan.moved, plan.new_len);
        self.show_packed();
    }

    /// The log after `removal`, as it would be loaded from the device.
    pub(super) fn without(mut self, removal: &RemovalPlan) -> Self {
        self.rewrite_log(&removal.moved, removal.new_len);
        self.into_loaded()
    }
}
