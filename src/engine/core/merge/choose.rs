//! The choice of the chunks of a merge batch (step 1 of [`super::batch`]).

use std::collections::BTreeMap;

use super::Merge;
use super::batch::Batch;
use crate::engine::api::*;
use crate::engine::core::waiting::Waiter;
use crate::engine::core::{Core, Snap};
use crate::mutation::{self, Mutation};
use crate::store::Entry;

/// Chunks in one batch at most: it ends with a durable write for each unit of
/// entries, one after the other, and guest writes may wait for all of them.
const BATCH_CHUNKS: usize = 2048;

/// The entries of a batch, by their slot in the log.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) entries: BTreeMap<usize, Entry>,
    /// The newest turn among the chunks that guest writes waited for.
    pub(super) newest_turn: Option<u64>,
}

impl Core {
    pub(in crate::engine::core) fn merge_step(
        &mut self,
        port: usize,
        background: u64,
        urgent: u64,
    ) -> MergeStep {
        let Some(merge) = &mut self.merge else {
            return MergeStep::Idle;
        };
        if merge.batch.is_some() {
            return MergeStep::Running;
        }
        let Some(snap) = self.snaps.get(&merge.snapshot) else {
            return MergeStep::Idle;
        };
        if merge.failed.is_some() || merge.ending {
            return MergeStep::Idle;
        }
        if snap.metadata.entries().is_empty() {
            self.end_merge();
            return MergeStep::Idle;
        }
        let mut choice = Choice::default();
        choice.take_urgent(snap, &mut merge.urgent, limit(snap, urgent));
        if background > 0 && !merge.paused {
            choice.take_tail(snap, limit(snap, background));
        }
        if choice.entries.is_empty() {
            return MergeStep::Idle;
        }
        let chunks = choice.entries.len() as u64;
        let bytes = chunks.saturating_mul(snap.shared.chunk_size.bytes());
        let number = merge.start_batch(port, choice);
        self.look_again(Waiter::Batch(number));
        MergeStep::Started { bytes }
    }
}

impl Merge {
    fn start_batch(&mut self, port: usize, choice: Choice) -> u64 {
        self.batches += 1;
        self.batch = Some(Batch::new(port, self.batches, choice));
        self.batches
    }
}

impl Choice {
    /// Chunks that guest writes wait for, the oldest turn first.
    fn take_urgent(&mut self, snap: &Snap, urgent: &mut BTreeMap<u64, u64>, limit: usize) {
        while self.entries.len() < limit
            && let Some((turn, chunk)) = next_turn(urgent)
        {
            let cow_chunk = snap.shared.table.get(chunk).cow_chunk();
            let slot = cow_chunk.and_then(|new| snap.metadata.slot_of(new));
            if let Some(slot) = slot
                && let Some(entry) = snap.metadata.entries().get(slot)
            {
                self.entries.insert(slot, entry);
                self.newest_turn = self.newest_turn.max(Some(turn));
            }
        }
    }

    /// Chunks from the tail of the log.
    fn take_tail(&mut self, snap: &Snap, limit: usize) {
        let count = limit.saturating_sub(self.entries.len());
        let log = snap.metadata.entries().iter().enumerate();
        for (slot, entry) in log.rev().take(count) {
            self.entries.insert(slot, entry);
        }
    }
}

/// Chunks in `bytes`, within the limits of a batch.
fn limit(snap: &Snap, bytes: u64) -> usize {
    let chunks = usize::try_from(bytes / snap.shared.chunk_size.bytes()).unwrap_or(BATCH_CHUNKS);
    chunks.clamp(1, BATCH_CHUNKS)
}

/// Takes out the chunk that is waited for longest.
fn next_turn(urgent: &mut BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    if mutation::is(Mutation::LowestChunkFirst) {
        let turn = *urgent.iter().min_by_key(|(_, chunk)| **chunk)?.0;
        return urgent.remove_entry(&turn);
    }
    urgent.pop_first()
}
