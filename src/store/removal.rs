//! Removing entries from anywhere in the log, in a constant number of durable steps.

use std::ops::Range;

use super::entry::Entry;
use super::metadata::{MetaWrite, Metadata};
use crate::mutation::{self, Mutation};

/// How to remove entries from anywhere in the log.
/// Order: 1 all `moves`, durable → 2 each step of `tail`, durable before the next →
/// 3 `apply_removal`. The writes of one step may happen in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovalPlan {
    /// Units with holes, which get entries from the end of the log.
    pub moves: Vec<MetaWrite>,
    /// The steps that make the log shorter.
    pub tail: Vec<Vec<MetaWrite>>,
    /// The log after it: (slot, entry) for each move, then the new length.
    pub moved: Vec<(usize, Entry)>,
    pub new_len: usize,
}

/// Up to this many units are cut off the log one after the other.
const CUT_SINGLY: usize = 2;

impl Metadata {
    /// Plans to remove the entries in `slots` (any order; slots that do not
    /// exist are ignored).
    ///
    /// What a crash can leave, and why it is a good store:
    /// 1. Some moves on disk: a hole holds the removed entry or a copy of a tail
    ///    entry. The copy is an identical duplicate, which changes no view.
    /// 2. Some steps of the tail: moves are durable, so each survivor of the tail is in
    ///    its new slot; see [`Self::cut_tail`].
    ///
    /// Removed entries that such a store still holds must be harmless: they are duplicates,
    /// or their chunks are merged, so that COW and origin hold the same bytes, or the origin
    /// holds those of a guest's write that is not acknowledged yet.
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
            .filter_map(|(&hole, from)| Some((hole, self.entries().get(from)?)))
            .collect();

        let with_moves = |slot: usize| match moved.binary_search_by_key(&slot, |m| m.0) {
            Ok(at) => moved.get(at).map(|m| m.1),
            Err(_) => self.entries().get(slot),
        };
        let (mut moves, mut tail) = (Vec::new(), Vec::new());
        if !self.is_transient() {
            let mut units: Vec<usize> = holes
                .iter()
                .flat_map(|&slot| self.units_of(slot, slot + 1))
                .collect();
            units.dedup();
            moves = self.joined_units(units, with_moves);
            let stays = |entry: Entry| {
                let slot = self.slot_of(entry.new);
                slot.is_some_and(|slot| removed.binary_search(&slot).is_err())
            };
            let pad = if new_len == 0 {
                let first = self.entries().get(0);
                first.filter(|first| self.begins_run(*first))
            } else {
                self.padding(stays)
            };
            tail = self.cut_tail(new_len, len, pad, with_moves);
        }
        RemovalPlan {
            moves,
            tail,
            moved,
            new_len,
        }
    }

    /// The steps that cut the log off at `new_len`; `log` is the log with what has moved.
    ///
    /// A few units are zeroed one after the other, from the end of the log. Of more units,
    /// all but the first are padded with copies of an entry that stays, and then all are
    /// zeroed at once. What a crash can leave:
    /// 1. Some units of the padding: copies in place of entries that go or have moved.
    /// 2. Some units of the zeroes: the log ends at any of them, or in the first unit. What
    ///    is left behind its end, and may become part of it if Linux appends up to there,
    ///    are copies of an entry that is still in the log.
    ///
    /// If no entry stays, the first one of the log does until the others have gone.
    fn cut_tail(
        &self,
        new_len: usize,
        len: usize,
        pad: Option<Entry>,
        log: impl Fn(usize) -> Option<Entry>,
    ) -> Vec<Vec<MetaWrite>> {
        let units = self.units_of(new_len, len);
        let cut_to = |end: usize, units: Range<usize>| {
            let shorter = |slot: usize| if slot < end { log(slot) } else { None };
            self.joined_units(units, shorter)
        };
        let stays = new_len.max(1);
        let last_alone = usize::from(stays > new_len);
        let mut steps = Vec::new();
        if units.len() <= CUT_SINGLY + last_alone || pad.is_none() {
            steps.extend(units.rev().map(|unit| cut_to(new_len, unit..unit + 1)));
            if mutation::is(Mutation::TailZeroedForwards) {
                steps.reverse();
            }
        } else {
            let goes = mutation::is(Mutation::TailPaddedWithGoing);
            let pad = if goes { log(len - 1) } else { pad };
            let padded = |slot: usize| if slot < len { pad } else { None };
            if !mutation::is(Mutation::TailUnpadded) {
                steps.push(self.joined_units(units.start + 1..units.end, padded));
            }
            let together = mutation::is(Mutation::LastEntryNotAlone);
            steps.push(cut_to(
                if together { new_len } else { stays },
                units.clone(),
            ));
            if last_alone > 0 {
                steps.push(cut_to(new_len, units.start..units.start + 1));
            }
        }
        if mutation::is(Mutation::EarlierAreasNotZeroed) {
            steps.truncate(1);
        }
        steps
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

#[cfg(test)]
mod tests {
    use crate::store::{Entry, Layout, Metadata};
    use crate::units::ChunkSize;

    // Where the log was one run and its first entries went before those behind them, there
    // was nothing to pad with, and each unit was a durable step.
    #[test]
    fn a_run_that_loses_its_beginning_first_is_removed_in_few_steps() {
        let layout = Layout::new(ChunkSize::new(8).unwrap());
        let mut metadata = Metadata::fresh(layout, 1 << 20, 512);
        for old in 0..1000 {
            let new = metadata.allocate().unwrap();
            metadata.apply_append(&[Entry { old, new }]);
        }
        for kept in [300..700, 256..1000, 400..600] {
            let slots: Vec<usize> = (0..1000).filter(|slot| !kept.contains(slot)).collect();
            let tail = metadata.plan_removal(&slots).tail;
            assert!(tail.len() <= 2, "{} steps, {kept:?} stays", tail.len());
        }
    }
}
