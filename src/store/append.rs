//! Appending entries to the log, in two durable steps however many they are.

use super::entry::Entry;
use super::layout::ENTRY_BYTES;
use super::metadata::{MetaWrite, Metadata, WRITE_MAX};
use crate::mutation::{self, Mutation};

/// How to append entries.
/// Order: 1 `zero_next_area` and `padding` written → 2 flush (covers them and the data
/// chunks) → 3 `write`, durable → 4 `apply_append`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendPlan {
    /// Byte offset and length to zero first, when this append fills an area.
    pub zero_next_area: Option<(u64, u64)>,
    /// What the units before the last one hold until `write` is durable.
    pub padding: Option<MetaWrite>,
    /// All units that get entries; `None` for a transient store.
    pub write: Option<MetaWrite>,
    /// How many of the offered entries are included; the others need another plan.
    pub taken: usize,
}

impl Metadata {
    /// Plans to append a prefix of `entries`, up to the end of the current area.
    /// For a transient store all entries are taken and nothing is written.
    ///
    /// Units before the last one are first padded with copies of an entry of the log. What a
    /// crash can leave, and why it is a good store:
    /// 1. Some units of the padding: the log goes on with copies, which change no view, or
    ///    copies are behind its terminator. If Linux appends up to them, they are harmless as
    ///    well, because the entry itself is in the log.
    /// 2. Some units of `write`: the padding is durable, so there is no gap, whichever they
    ///    are. The data of every new entry is durable.
    pub fn plan_append(&self, entries: &[Entry]) -> AppendPlan {
        let Some(unit) = self.unit() else {
            return AppendPlan {
                zero_next_area: None,
                padding: None,
                write: None,
                taken: entries.len(),
            };
        };
        let layout = self.layout();
        let start = self.entries().len();
        let area_len = layout.area_len();
        let pad = self.padding(|_| true);
        let taken = if mutation::is(Mutation::GroupCrossesAreas) {
            entries.len()
        } else {
            // One write, which is a single unit if there is nothing to pad with.
            let bytes = if pad.is_some() { WRITE_MAX } else { unit };
            let room = bytes.saturating_sub(unit) / ENTRY_BYTES;
            let in_unit = unit / ENTRY_BYTES - start % area_len % (unit / ENTRY_BYTES);
            entries
                .len()
                .min(area_len - start % area_len)
                .min(in_unit.saturating_add(room))
        };
        let end = start + taken;
        let new = |slot: usize| entries.get(slot.checked_sub(start)?).copied();
        let log = |slot: usize| match self.entries().get(slot) {
            None if slot < end => new(slot),
            old => old,
        };
        let pad = if mutation::is(Mutation::PaddedWithNewEntry) {
            new(start)
        } else {
            pad
        };
        let padded = |slot: usize| self.entries().get(slot).or(pad);

        let units = self.units_of(start, end);
        let mut before_last = units.start..units.end.saturating_sub(1);
        if mutation::is(Mutation::LastUnitPadded) {
            before_last = units.clone();
        }
        let fills_area = taken > 0 && end.is_multiple_of(area_len);
        AppendPlan {
            zero_next_area: fills_area.then(|| {
                let next = layout.area_chunk(layout.area_of(end));
                (layout.chunk_offset(next), layout.chunk_size.bytes())
            }),
            padding: self.joined_units(before_last, padded).into_iter().next(),
            write: self.joined_units(units, log).into_iter().next(),
            taken,
        }
    }

    /// The entries are durable in the store.
    pub fn apply_append(&mut self, entries: &[Entry]) {
        self.extend_log(entries);
    }
}
