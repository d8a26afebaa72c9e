//! A new snapshot, which is a cut between the writes of the guests.
//!
//! Order: 1 new writes to the origin wait → 2 older ones have ended → 3 the origin
//! is flushed, or power loss would take from the snapshot what it shows → 4 the
//! snapshot is there → 5 the writes go on.

use std::sync::Arc;

use super::accounting::IoPurpose;
use super::drains::Drain;
use super::gate::Change;
use super::ports::ControlCall;
use super::{Core, Snap, StoreState};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::table::ExceptionTable;
use crate::engine::views::SharedSnapshot;

impl Core {
    /// Steps 1 and 2.
    pub(super) fn add_snapshot(
        &mut self,
        call: ControlCall,
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    ) -> Result<(), ControlError> {
        if self.gate.is_some() || self.snaps.contains_key(&snapshot) || snapshot == ViewId::ORIGIN {
            return Err(ControlError::Busy);
        }
        if self.merge.is_some() {
            // It would see the raw origin, which is neither the old nor the new image.
            return Err(ControlError::MergeRunning);
        }
        self.close_gate(call, Change::Cut { snapshot, store });
        self.add_drain(Drain::Gate);
        Ok(())
    }

    /// Step 3.
    pub(super) fn flush_cut(&mut self, port: usize) {
        let device = self.origin_device();
        self.issue(port, IoPurpose::CutFlush, |tag| Command::Flush {
            tag,
            device,
        });
    }

    pub(super) fn cut_flushed(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // A flush before this one failed: what that covered may be lost.
        let flushed = self.flush_lost(None).map_or(Ok(()), Err);
        self.finish_change(flushed);
    }

    /// Step 4.
    pub(super) fn install(&mut self, id: SnapshotId, store: SnapshotStore) {
        let chunk_size = store.metadata.layout().chunk_size;
        // For the whole origin: Linux may have left entries behind the snapshot's end.
        let table = ExceptionTable::new(chunk_size.chunks_covering(self.origin_sectors()));
        for e in store.metadata.entries() {
            // Entries that were loaded are durable, and nothing reads the origin for them.
            table.set(e.old, e.new, true);
        }
        let shared = Arc::new(SharedSnapshot {
            id,
            device: store.device,
            chunk_size,
            sectors: store.sectors.min(self.origin_sectors()),
            table,
            defer_commits: store.defer_commits,
            discards: store.discards,
            flush_failed: false.into(),
        });
        let snap = Snap {
            shared,
            metadata: store.metadata,
            keep_on_overflow: store.keep_on_overflow,
            defer_commits: store.defer_commits,
            state: if store.valid {
                StoreState::Valid
            } else {
                StoreState::Invalid
            },
            pending: Default::default(),
            queue: Default::default(),
            queue_base: 0,
            demand: 0,
            goal: None,
            commit: None,
            on_invalid: Vec::new(),
            ios: 0,
            usage_told: 0,
            marked: store.marked,
            removal: None,
        };
        self.snaps.insert(id, snap);
        self.notify(Notice::Added { snapshot: id });
        self.watch_usage(id);
    }
}
