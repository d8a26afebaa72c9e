//! Drains: waiting until requests have ended that were decided before a change.
//!
//! The change is stored before its drain is added, and numbered and fenced then
//! (`registrations.rs`). A drain goes through the registrations once, and stays at each that
//! matches and is older until that has ended. So it waits for the requests that were under
//! way, and for none that came later; behind the last, [`Core::run`] goes on with the change.

use super::Core;
use super::drain_list::Place;
use super::gate::{Change, Gate};
use super::snap::StoreState;
use crate::engine::api::{PortRole, Slot, SnapshotId, ViewId};
use crate::engine::registrations::{COW, PASSDOWN, READ_ORIGIN, WRITE, fence_change};
use crate::engine::views::{SharedSnapshot, ViewMode};
use crate::mutation::{self, Mutation};
use crate::sync::atomic::Ordering;

#[derive(Debug)]
pub(super) enum Drain {
    /// Reads of these (sorted) origin chunks through a snapshot's view.
    SnapshotReads {
        snapshot: SnapshotId,
        chunks: Vec<u64>,
    },
    /// Writes to the (sorted) chunks of a merge batch.
    MergeWrites { batch: u64, chunks: Vec<u64> },
    /// What the change at the gate must come after.
    Gate,
    /// Reads of the origin through the view of a snapshot that was given up.
    InvalidReads { snapshot: SnapshotId, notify: bool },
    /// Uses of the merged store's COW device.
    MergeEnd,
    /// Whatever uses a snapshot that is being removed.
    Removal { snapshot: SnapshotId },
}

/// The registrations that a drain has still to go through.
#[derive(Clone, Copy)]
struct Before {
    /// Of requests before the change of this number.
    number: u64,
    from: Place,
}

fn overlaps(chunks: &[u64], shared: &SharedSnapshot, start: u64, end: u64) -> bool {
    let range = shared.chunks(start, end);
    let at = chunks.partition_point(|c| *c < range.start);
    chunks.get(at).is_some_and(|c| *c < range.end)
}

impl Core {
    /// Adds a drain whose change is stored; it may have ended already.
    pub(super) fn add_drain(&mut self, drain: Drain) {
        let number = self.shared.changes.number();
        self.drains.add(number, drain);
        self.publish_drains();
        fence_change();
    }

    /// Nothing may go on in the name of a merge batch that was given up.
    pub(super) fn drop_batch_drain(&mut self, batch: u64) {
        if let Some(number) = self.drains.of_batch(batch) {
            self.drains.remove(number);
            self.publish_drains();
        }
    }

    /// Ports look at the number when a registration ends.
    pub(super) fn publish_drains(&self) {
        let waiting = self.drains.len();
        self.shared.drains.store(waiting, Ordering::Release);
    }

    /// Ends the registration of a request of the critical section.
    pub(super) fn end_registration(&mut self, port: usize, slot: Slot) {
        if let Some(port) = self.port(port) {
            port.registrations.clear(slot);
        }
        self.registration_ended(port, slot);
    }

    /// Drains may have stayed at it.
    pub(super) fn registration_ended(&mut self, port: usize, slot: Slot) {
        self.drains.ended((port, usize::from(slot)));
    }

    /// Takes the drain of this change out if it has ended.
    pub(super) fn take_if_ended(&mut self, number: u64) -> Option<Drain> {
        let waiting = self.drains.get(number)?;
        let drain = &waiting.drain;
        if !mutation::is(self.skipped_by(drain)) {
            if let Some(place) = self.obstacle(drain, number, waiting.place) {
                self.drains.stay(number, place);
                return None;
            }
            if !self.is_all_else_done(drain) {
                self.drains.look_always(number);
                return None;
            }
        }
        self.drains.remove(number)
    }

    /// The first registration, from a place on, that a drain waits for.
    fn obstacle(&self, drain: &Drain, number: u64, from: Place) -> Option<Place> {
        let before = Before { number, from };
        match drain {
            Drain::SnapshotReads { snapshot, chunks } => {
                let shared = &self.snaps.get(snapshot)?.shared;
                let hit = |start, end| overlaps(chunks, shared, start, end);
                self.first(before, READ_ORIGIN, |view| view == *snapshot, hit)
            }
            Drain::InvalidReads { snapshot, .. } => {
                self.first(before, READ_ORIGIN, |view| view == *snapshot, |_, _| true)
            }
            Drain::MergeWrites { chunks, .. } => {
                let shared = &self.snaps.get(&self.merging()?)?.shared;
                let merges = |mode: &ViewMode| matches!(mode, ViewMode::Merge { .. });
                let shows = |view| merges(self.config.mode(view));
                let hit = |start, end| overlaps(chunks, shared, start, end);
                self.first(before, WRITE, shows, hit)
            }
            Drain::MergeEnd => {
                let origin = |mode: &ViewMode| matches!(mode, ViewMode::Origin { .. });
                let shows = |view| origin(self.config.mode(view));
                self.first(before, COW, shows, |_, _| true)
            }
            Drain::Removal { snapshot } => {
                self.first(before, COW, |view| view == *snapshot, |_, _| true)
            }
            Drain::Gate => None,
        }
    }

    /// Whether everything has ended that a drain waits for beside requests.
    fn is_all_else_done(&self, drain: &Drain) -> bool {
        match drain {
            Drain::SnapshotReads { .. }
            | Drain::InvalidReads { .. }
            | Drain::MergeWrites { .. } => true,
            Drain::Gate => self.is_gate_clear(),
            Drain::MergeEnd => {
                let merged = self.merging();
                let merged = merged.and_then(|id| self.snaps.get(&id));
                merged.is_none_or(|snap| !snap.has_io())
            }
            Drain::Removal { snapshot } => {
                let snap = self.snaps.get(snapshot);
                snap.is_none_or(|s| !s.has_io() && s.state() == StoreState::Invalid)
            }
        }
    }

    /// The first registration of a view that `shows` picks which touches any of `mask`
    /// within a range that `hit` picks.
    fn first(
        &self,
        before: Before,
        mask: u64,
        shows: impl Fn(ViewId) -> bool,
        hit: impl Fn(u64, u64) -> bool,
    ) -> Option<Place> {
        let Before { number, from } = before;
        let mut ports = self.ports().filter(|(index, _)| *index >= from.0);
        ports.find_map(|(index, port)| {
            let PortRole::View(view) = port.role else {
                return None;
            };
            let first = if index == from.0 { from.1 } else { 0 };
            let of_port = || port.registrations.first_before(number, first, mask, &hit);
            let slot = shows(view).then(of_port)??;
            Some((index, slot))
        })
    }

    /// Whether everything has ended that the change at the gate must come after.
    fn is_gate_clear(&self) -> bool {
        // A snapshot's own view may write the origin, too.
        if self.is_passing_down() {
            return false;
        }
        match self.gate.as_ref().map(Gate::change) {
            None => true,
            Some(Change::Cut { .. }) => {
                let origin = |mode: &ViewMode| matches!(mode, ViewMode::Origin { .. });
                !self.is_touched_where(origin, WRITE) && !self.is_unfinished_where(origin)
            }
            Some(Change::Handover { snapshot, .. }) => {
                let snap = self.snaps.get(snapshot).filter(|s| s.is_usable());
                let gated = |mode: &ViewMode| matches!(mode, ViewMode::Gated);
                snap.is_none_or(|s| s.unsettled.is_empty() && s.commit.is_none())
                    && !self.is_touched_where(gated, u64::MAX)
                    && !self.is_unfinished_where(gated)
            }
        }
    }

    fn is_passing_down(&self) -> bool {
        let mut ports = self.ports();
        ports.any(|(_, port)| port.registrations.any(PASSDOWN, |_, _| true))
            && !mutation::is(Mutation::PassdownNotDrained)
    }

    /// Whether a request of a view that `which` picks touches any of `mask`.
    fn is_touched_where(&self, which: impl Fn(&ViewMode) -> bool, mask: u64) -> bool {
        let mut ports = self.ports_where(which);
        ports.any(|port| port.registrations.any(mask, |_, _| true))
    }

    /// Whether a write in a view that `which` picks has a part that follows.
    fn is_unfinished_where(&self, which: impl Fn(&ViewMode) -> bool) -> bool {
        let mut ports = self.ports_where(which);
        ports.any(|port| port.registrations.any_unfinished())
            && !mutation::is(Mutation::PartsNotDrained)
    }

    /// The seeded bug that does not wait for this drain.
    fn skipped_by(&self, drain: &Drain) -> Mutation {
        match drain {
            Drain::SnapshotReads { .. } => Mutation::SnapshotReadsNotDrained,
            Drain::InvalidReads { .. } => Mutation::InvalidReadsNotDrained,
            Drain::MergeWrites { .. } => Mutation::MergeWritesNotDrained,
            Drain::Gate if self.gate.as_ref().is_some_and(Gate::is_cut) => Mutation::CutNotDrained,
            Drain::Gate => Mutation::HandoverNotDrained,
            Drain::MergeEnd => Mutation::MergeEndNotDrained,
            Drain::Removal { .. } => Mutation::RemovalNotDrained,
        }
    }
}
