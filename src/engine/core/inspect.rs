//! Reading the state: status for users, invariants for tests.

use super::Core;
use super::snap::StoreState;
use crate::engine::api::*;
use crate::sync::atomic::Ordering;

impl Core {
    pub(in crate::engine) fn status(&self) -> EngineStatus {
        let snapshots = self
            .snaps
            .values()
            .map(|s| SnapshotStatus {
                snapshot: s.shared.id,
                state: match self.merge.as_ref().filter(|m| m.snapshot() == s.shared.id) {
                    Some(m) if m.has_failed() => SnapshotState::MergeFailed,
                    Some(m) if m.is_paused() => SnapshotState::MergePaused,
                    Some(_) => SnapshotState::Merging,
                    None => match s.state() {
                        StoreState::Valid => SnapshotState::Active,
                        StoreState::Overflow => SnapshotState::Overflow,
                        StoreState::Invalidating(_) | StoreState::Invalid => SnapshotState::Invalid,
                    },
                },
                chunk_sectors: s.shared.chunk_size.sectors(),
                usage: s.metadata.usage(),
                transient: s.metadata.is_transient(),
                exceptions: s.metadata.entries().len() as u64,
                counts: s.counts,
            })
            .collect();
        let merge = self.merge.as_ref().map(|m| MergeStatus {
            snapshot: m.snapshot().0,
            chunks_done: m.chunks_done(),
            chunks_left: self
                .snaps
                .get(&m.snapshot())
                .map_or(0, |s| s.metadata.entries().len() as u64),
            stopped: self.merge_stopped(),
        });
        EngineStatus {
            snapshots,
            merge,
            counts: self.counts,
        }
    }

    /// Walks the invariants that hold between events.
    pub(in crate::engine) fn check(&self) -> Result<(), String> {
        for (index, port) in self.ports() {
            let ios = port.ios.load(Ordering::Acquire);
            if port.role == PortRole::Control && ios > 0 && !self.is_driven(index) {
                return Err(format!("{ios} I/O on a control port that no thread serves"));
            }
        }
        if let Some(merge) = &self.merge {
            merge.check()?;
        }
        for (id, snap) in &self.snaps {
            if let Some(ahead) = &snap.zero_ahead {
                ahead.check()?;
            }
            if !snap.is_usable() {
                continue;
            }
            let table = &snap.shared.table;
            let unsettled = snap.unsettled.check(table);
            unsettled.map_err(|error| format!("{id:?}: {error}"))?;
            for e in snap.metadata.entries() {
                if table.get(e.old).cow_chunk() != Some(e.new) {
                    return Err(format!(
                        "{id:?}: entry {e:?} is committed and not in the table"
                    ));
                }
            }
        }
        let idle = self.requests.is_empty() && self.merge.as_ref().is_none_or(|m| !m.has_work());
        if idle && self.accounts.is_empty() && self.tasks.is_empty() {
            self.copy_outs.check_idle()?;
        }
        Ok(())
    }
}
