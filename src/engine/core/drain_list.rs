//! The drains that have not ended, and which of them has to be looked at when.
//!
//! A drain stays at one registration at a time. So the end of a registration costs a look at
//! the drains that stay there, however many there are, and a drain costs little memory,
//! however many requests it waits for.

use std::collections::{BTreeMap, BTreeSet};

use super::drains::Drain;

/// A registration: the port, and the slot there. Drains go from place to place in this
/// order.
pub(super) type Place = (usize, usize);

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) drain: Drain,
    /// What is before this place does not hold it up.
    pub(super) place: Place,
}

#[derive(Debug, Default)]
pub(super) struct DrainList {
    /// By the number of the change.
    waiting: BTreeMap<u64, Waiting>,
    /// Who stays where. Some may be gone since.
    staying: BTreeSet<(Place, u64)>,
    /// To be looked at.
    due: BTreeSet<u64>,
    /// Those that registrations do not hold up any more, but something else: to be looked at
    /// after every event. At most one for each snapshot, and one at the gate.
    others: BTreeSet<u64>,
    /// The drains of merge batches, by batch.
    batches: BTreeMap<u64, u64>,
}

impl DrainList {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Waiting> {
        self.waiting.get(&number)
    }

    pub(super) fn add(&mut self, number: u64, drain: Drain) {
        if let Drain::MergeWrites { batch, .. } = drain {
            self.batches.insert(batch, number);
        }
        let place = (0, 0);
        self.waiting.insert(number, Waiting { drain, place });
        self.due.insert(number);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Drain> {
        self.due.remove(&number);
        self.others.remove(&number);
        let drain = self.waiting.remove(&number)?.drain;
        if let Drain::MergeWrites { batch, .. } = drain {
            self.batches.remove(&batch);
        }
        Some(drain)
    }

    /// The numbers of those that may have ended, the oldest first.
    pub(super) fn take_due(&mut self) -> BTreeSet<u64> {
        let mut due = std::mem::take(&mut self.due);
        due.extend(&self.others);
        due
    }

    /// The registration in this place holds the drain up.
    pub(super) fn stay(&mut self, number: u64, place: Place) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.place = place;
            self.staying.insert((place, number));
        }
    }

    /// No registration holds the drain up, but something else.
    pub(super) fn look_always(&mut self, number: u64) {
        self.others.insert(number);
    }

    /// A registration has ended.
    pub(super) fn ended(&mut self, place: Place) {
        self.wake((place, 0)..=(place, u64::MAX));
    }

    /// A port is gone, with its registrations.
    pub(super) fn closed(&mut self, port: usize) {
        self.wake(((port, 0), 0)..=((port, usize::MAX), u64::MAX));
    }

    fn wake(&mut self, places: std::ops::RangeInclusive<(Place, u64)>) {
        while let Some(first) = self.staying.range(places.clone()).next().copied() {
            self.staying.remove(&first);
            self.due.insert(first.1);
        }
    }

    /// The number of a merge batch's drain.
    pub(super) fn of_batch(&self, batch: u64) -> Option<u64> {
        self.batches.get(&batch).copied()
    }

    /// A merge batch does not need this chunk any more.
    pub(super) fn drop_chunk(&mut self, batch: u64, chunk: u64) {
        if let Some(number) = self.of_batch(batch)
            && let Some(Waiting { drain, .. }) = self.waiting.get_mut(&number)
            && let Drain::MergeWrites { chunks, .. } = drain
            && let Ok(at) = chunks.binary_search(&chunk)
        {
            chunks.remove(at);
            self.due.insert(number);
        }
    }
}
