//! The choice of the chunks of merge batches (step 1 of [`super::batch`]).
//!
//! What guest writes wait for becomes a batch of its own at once, first come first
//! served. In the background one batch after the other takes the tail of the log: the
//! next one begins when all of the last one is being copied, however far its removal is.

use std::collections::BTreeMap;

use super::Merge;
use super::batch::{Batch, Kind};
use crate::engine::api::*;
use crate::engine::core::waiting::Waiter;
use crate::engine::core::{Core, Snap};
use crate::mutation::{self, Mutation};
use crate::store::Entry;

/// Chunks in one batch at most.
const BATCH_CHUNKS: usize = 4096;
/// Copied background chunks that wait for their removal: no batch begins while there
/// are more.
const BACKLOG: usize = 2 * BATCH_CHUNKS;

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
        merge.port = Some(port);
        let Some(snap) = self.snaps.get(&merge.snapshot) else {
            return MergeStep::Idle;
        };
        let stopped = merge.failed.is_some() || merge.ending;
        if snap.metadata.entries().is_empty() && !merge.has_work() && !stopped {
            self.end_merge();
            return MergeStep::Idle;
        }
        let mut started = Vec::new();
        let mut chunks = 0;
        if !stopped {
            let (entries, newest_turn) = merge.take_urgent(snap, limit(snap, urgent));
            if !entries.is_empty() {
                chunks += entries.len() as u64;
                self.counts.merge.batches += 1;
                let number = merge.start_batch(port, Kind::Waited, entries);
                if let Some(batch) = merge.batches.get_mut(&number) {
                    batch.newest_turn = newest_turn;
                }
                started.push(number);
            }
            if background > 0 && merge.is_background_due(snap.metadata.entries().len()) {
                let entries = merge.take_tail(snap, limit(snap, background));
                if !entries.is_empty() {
                    chunks += entries.len() as u64;
                    self.counts.merge.batches += 1;
                    started.push(merge.start_batch(port, Kind::Background, entries));
                }
            }
        }
        let bytes = chunks.saturating_mul(snap.shared.chunk_size.bytes());
        for number in started {
            self.look_again(Waiter::Batch(number));
        }
        self.advance_merge();
        match &self.merge {
            Some(_) if bytes > 0 => MergeStep::Started { bytes },
            Some(merge) if merge.has_mergers_work() => MergeStep::Running,
            Some(_) | None => MergeStep::Idle,
        }
    }
}

impl Merge {
    fn is_background_due(&self, entries: usize) -> bool {
        let copying = |b: &Batch| b.kind == Kind::Background && !b.is_all_issued();
        !self.paused
            && self.taken.len() < entries
            && !self.batches.values().any(copying)
            && self.pipeline.backlog() < BACKLOG
    }

    /// Chunks that guest writes wait for, the oldest turn first, and the newest turn
    /// among them.
    fn take_urgent(&mut self, snap: &Snap, limit: usize) -> (Vec<Entry>, Option<u64>) {
        let (mut entries, mut newest) = (Vec::new(), None);
        while entries.len() < limit
            && let Some((turn, chunk)) = next_turn(&mut self.urgent)
        {
            let cow_chunk = snap.shared.table.get(chunk).cow_chunk();
            if let Some(new) = cow_chunk.filter(|_| !self.taken.contains(&chunk)) {
                entries.push(Entry { old: chunk, new });
                newest = newest.max(Some(turn));
            }
        }
        (entries, newest)
    }

    /// Chunks from the tail of the log, the last one first.
    fn take_tail(&self, snap: &Snap, limit: usize) -> Vec<Entry> {
        let log = snap.metadata.entries().iter().rev();
        let free = log.filter(|e| !self.taken.contains(&e.old));
        free.take(limit).collect()
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
