//! What every view shows, built from the state and published to the fast paths.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Core;
use super::gate::{Change, Gate};
use super::snap::{Snap, StoreState};
use crate::engine::api::{SnapshotId, ViewId};
use crate::engine::views::{Config, PreserveList, SharedSnapshot, ViewMode};
use crate::mutation::{self, Mutation};

impl Core {
    /// Builds and publishes what every view shows. A scan of the registrations
    /// after this finds every request that was decided before.
    pub(super) fn publish_views(&mut self) {
        let preserve: PreserveList = Arc::new(self.to_preserve().cloned().collect());
        let origin = Arc::new(self.origin_mode(&preserve));
        let mut views = BTreeMap::new();
        for (id, snap) in &self.snaps {
            let mode = match self.merge.as_ref().filter(|m| m.snapshot() == *id) {
                Some(merge) if merge.is_followed() => origin.clone(),
                Some(_) => Arc::new(ViewMode::Failed),
                None => Arc::new(self.snapshot_mode(*id, snap, &preserve)),
            };
            views.insert(*id, mode);
        }
        for id in self.origin_views() {
            views.insert(id, origin.clone());
        }
        if let Some(Change::Handover { snapshot, .. }) = self.gate.as_ref().map(Gate::change) {
            for id in self.origin_views().chain([*snapshot]) {
                views.insert(id, Arc::new(ViewMode::Gated));
            }
        }
        self.config = Arc::new(Config::new(self.config.epoch + 1, views));
        self.shared.publish(self.config.clone());
    }

    /// The snapshots that must have a chunk before the origin's is overwritten.
    pub(super) fn to_preserve(&self) -> impl Iterator<Item = &Arc<SharedSnapshot>> {
        let merging = self.merging();
        self.snaps
            .iter()
            .filter(move |(id, _)| Some(**id) != merging)
            .filter(|(_, snap)| snap.is_usable() || snap.is_invalidating())
            .map(|(_, snap)| &snap.shared)
    }

    /// The origin view, and the views of merged snapshots that went on as such.
    fn origin_views(&self) -> impl Iterator<Item = ViewId> {
        self.followers.iter().copied().chain([ViewId::ORIGIN])
    }

    /// What a view shows that waits at the gate, as if the gate were open: for a write of which
    /// a part is done.
    pub(super) fn mode_before_gate(&self, view: ViewId) -> Option<ViewMode> {
        let preserve: PreserveList = Arc::new(self.to_preserve().cloned().collect());
        if self.origin_views().any(|id| id == view) {
            return Some(match self.origin_mode(&preserve) {
                ViewMode::Origin { preserve, .. } => ViewMode::Origin {
                    preserve,
                    write_gate: false,
                },
                other => other,
            });
        }
        let snap = self.snaps.get(&view)?;
        Some(self.snapshot_mode(view, snap, &preserve))
    }

    fn origin_mode(&self, preserve: &PreserveList) -> ViewMode {
        let preserve = preserve.clone();
        if let Some(merge) = self.merge.as_ref().filter(|m| !m.is_ending())
            && let Some(snap) = self.snaps.get(&merge.snapshot())
        {
            return ViewMode::Merge {
                snapshot: snap.shared.clone(),
                preserve,
                writes: merge.writes(),
            };
        }
        ViewMode::Origin {
            preserve,
            write_gate: self.gate.as_ref().is_some_and(Gate::is_cut),
        }
    }

    fn snapshot_mode(&self, id: SnapshotId, snap: &Snap, preserve: &PreserveList) -> ViewMode {
        if snap.removal.is_some() || !snap.is_usable() {
            return ViewMode::Failed;
        }
        ViewMode::Snapshot {
            snapshot: snap.shared.clone(),
            overflow: snap.state() == StoreState::Overflow,
            passdown: self.passdown(id, snap, preserve),
        }
    }

    /// The snapshots that a discard of the origin through this snapshot's view must
    /// spare. `None` during a control operation or a merge: a discard is a hint, and
    /// nothing waits for it.
    fn passdown(
        &self,
        id: SnapshotId,
        snap: &Snap,
        preserve: &PreserveList,
    ) -> Option<PreserveList> {
        let passes = snap.shared.discards.passdown_origin;
        if !passes || self.gate.is_some() || self.merge.is_some() {
            return None;
        }
        let others = preserve
            .iter()
            .filter(|s| s.id != id && !mutation::is(Mutation::PassdownSparesNobody));
        Some(Arc::new(others.cloned().collect()))
    }
}
