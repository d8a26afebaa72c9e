//! Drains: waiting until requests have ended that were decided before a change.
//!
//! The change is stored and fenced before its drain is added. A drain ends when no
//! registration matches it; [`Core::run`] then goes on with the change.

use super::Core;
use super::gate::{Change, Gate};
use super::snap::StoreState;
use crate::engine::api::{PortRole, SnapshotId, ViewId};
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

fn overlaps(chunks: &[u64], shared: &SharedSnapshot, start: u64, end: u64) -> bool {
    let range = shared.chunks(start, end);
    let at = chunks.partition_point(|c| *c < range.start);
    chunks.get(at).is_some_and(|c| *c < range.end)
}

impl Core {
    /// Adds a drain whose change is stored; it may have ended already.
    pub(super) fn add_drain(&mut self, drain: Drain) {
        self.drains.push(drain);
        self.publish_drains();
        fence_change();
    }

    /// Nothing may go on in the name of a merge batch that was given up.
    pub(super) fn drop_batch_drain(&mut self, number: u64) {
        self.drains
            .retain(|d| !matches!(d, Drain::MergeWrites { batch, .. } if *batch == number));
        self.publish_drains();
    }

    /// The merge batch does not need this chunk any more.
    pub(super) fn drop_from_batch_drain(&mut self, number: u64, chunk: u64) {
        for drain in &mut self.drains {
            if let Drain::MergeWrites { batch, chunks } = drain
                && *batch == number
                && let Ok(at) = chunks.binary_search(&chunk)
            {
                chunks.remove(at);
            }
        }
    }

    /// Ports look at the number when a registration ends.
    pub(super) fn publish_drains(&self) {
        let waiting = self.drains.len();
        self.shared.drains.store(waiting, Ordering::Release);
    }

    /// Takes the next drain from `at` on that has ended.
    pub(super) fn take_ended_drain(&mut self, at: &mut usize) -> Option<Drain> {
        while let Some(drain) = self.drains.get(*at) {
            if self.has_ended(drain) {
                return Some(self.drains.swap_remove(*at));
            }
            *at += 1;
        }
        None
    }

    fn has_ended(&self, drain: &Drain) -> bool {
        if mutation::is(self.skipped_by(drain)) {
            return true;
        }
        match drain {
            Drain::SnapshotReads { snapshot, chunks } => self.old_reads_ended(*snapshot, chunks),
            Drain::InvalidReads { snapshot, .. } => {
                !self.is_view_touching(*snapshot, READ_ORIGIN, |_, _| true)
            }
            Drain::MergeWrites { chunks, .. } => self.batch_writes_ended(chunks),
            Drain::Gate => self.is_gate_clear(),
            Drain::MergeEnd => {
                let merged = self.merging();
                let merged = merged.and_then(|id| self.snaps.get(&id));
                merged.is_none_or(|snap| !snap.has_io())
                    && !self.is_touched_where(|mode| matches!(mode, ViewMode::Origin { .. }), COW)
            }
            Drain::Removal { snapshot } => {
                let snap = self.snaps.get(snapshot);
                snap.is_none_or(|s| !s.has_io() && s.state() == StoreState::Invalid)
                    && !self.is_view_touching(*snapshot, COW, |_, _| true)
            }
        }
    }

    fn old_reads_ended(&self, snapshot: SnapshotId, chunks: &[u64]) -> bool {
        let Some(snap) = self.snaps.get(&snapshot) else {
            return true;
        };
        let hit = |start, end| overlaps(chunks, &snap.shared, start, end);
        !self.is_view_touching(snapshot, READ_ORIGIN, hit)
    }

    fn batch_writes_ended(&self, chunks: &[u64]) -> bool {
        let merging = self.merging();
        let Some(snap) = merging.and_then(|id| self.snaps.get(&id)) else {
            return true;
        };
        !self
            .ports_where(|mode| matches!(mode, ViewMode::Merge { .. }))
            .any(|port| {
                port.registrations
                    .any(WRITE, |s, e| overlaps(chunks, &snap.shared, s, e))
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

    /// Whether a request of this view touches any of `mask` within a range that
    /// `hit` picks.
    fn is_view_touching(&self, view: ViewId, mask: u64, hit: impl Fn(u64, u64) -> bool) -> bool {
        let mut ports = self.ports();
        ports.any(|(_, port)| {
            port.role == PortRole::View(view) && port.registrations.any(mask, &hit)
        })
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
