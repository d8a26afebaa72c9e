//! One merge batch.
//!
//! Order: 1 choose from the tail of the log, chunks that are waited for first, the
//! oldest turn first ([`super::choose`]) → 2 other snapshots copy out; fence the
//! chunks and drain the writes to them → 3 copy COW → origin → 4 flush the origin →
//! 5 remove the entries, durable: first the moved copies of entries that fill holes,
//! then the tail → 6 drop from memory, which lifts the fence, and release waiters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::choose::Choice;
use crate::engine::api::*;
use crate::engine::core::Core;
use crate::engine::core::accounting::IoPurpose;
use crate::engine::core::buffers::PIECE_BYTES;
use crate::engine::core::drains::Drain;
use crate::engine::core::waiting::{Waiter, Waits};
use crate::engine::failure::Failure;
use crate::engine::registrations::fence_change;
use crate::engine::views::SharedSnapshot;
use crate::io::{Buffer, DeviceId, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{Entry, MetaWrite, RemovalPlan};
use crate::units::{SECTOR_SHIFT, byte_count};

/// Pieces under way at once in one batch.
const PIECES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preserve,
    Drain,
    Copy,
    Flush,
    Move,
    Zero(usize),
}

/// Chunks that are consecutive on both sides.
#[derive(Clone, Copy, Debug)]
struct MergeRun {
    old: u64,
    new: u64,
    count: u64,
}

#[derive(Debug)]
pub(super) struct Batch {
    port: usize,
    number: u64,
    /// By slot of the log.
    entries: BTreeMap<usize, Entry>,
    newest_turn: Option<u64>,
    runs: Vec<MergeRun>,
    phase: Phase,
    /// What must end before its phase can go on.
    waits: Waits,
    /// Next to copy: run, and sector within it.
    next: (usize, u64),
    ios: usize,
    /// Something of it failed: it does nothing more, also if the merge is resumed
    /// before its last I/O has ended.
    abandoned: bool,
    plan: Option<RemovalPlan>,
}

impl Batch {
    pub(super) fn new(port: usize, number: u64, choice: Choice) -> Self {
        let runs = runs_of(&choice.entries);
        Self {
            port,
            number,
            entries: choice.entries,
            newest_turn: choice.newest_turn,
            runs,
            phase: Phase::Preserve,
            waits: Waits::default(),
            next: (0, 0),
            ios: 0,
            abandoned: false,
            plan: None,
        }
    }

    /// The newest turn among its chunks that guest writes waited for.
    pub(super) const fn newest_turn(&self) -> Option<u64> {
        self.newest_turn
    }

    pub(super) const fn port(&self) -> usize {
        self.port
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn waits(&mut self) -> &mut Waits {
        &mut self.waits
    }
}

fn runs_of(entries: &BTreeMap<usize, Entry>) -> Vec<MergeRun> {
    let mut sorted: Vec<Entry> = entries.values().copied().collect();
    sorted.sort_unstable_by_key(|e| e.old);
    let mut runs: Vec<MergeRun> = Vec::new();
    for e in sorted {
        match runs.last_mut() {
            Some(r) if r.old + r.count == e.old && r.new + r.count == e.new => r.count += 1,
            _ => runs.push(MergeRun {
                old: e.old,
                new: e.new,
                count: 1,
            }),
        }
    }
    runs
}

impl MergeRun {
    /// The sectors of the origin that it is copied to: none behind the snapshot's
    /// end, where the origin has what the snapshot never had.
    fn target(&self, shared: &SharedSnapshot, origin_end: u64) -> Range<u64> {
        let all = mutation::is(Mutation::MergeBehindSnapshot);
        let limit = if all { origin_end } else { shared.sectors };
        let cs = shared.chunk_size;
        let first = cs.first_sector(self.old);
        let end = cs.first_sector(self.old + self.count).min(limit);
        first..end.max(first)
    }
}

impl Core {
    fn batch(&mut self) -> Option<&mut Batch> {
        self.merge.as_mut()?.batch.as_mut()
    }

    fn merged_store(&self) -> Option<&Arc<SharedSnapshot>> {
        let snap = self.snaps.get(&self.merging()?)?;
        Some(&snap.shared)
    }

    /// Step 2. Its task is taken from the queue: the other snapshots may have what
    /// they need.
    pub(in crate::engine::core) fn batch_ready(&mut self) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let origin_end = self.origin_sectors();
        let Some(batch) = self.batch() else { return };
        if !batch.waits.take_turn() || batch.phase != Phase::Preserve {
            return;
        }
        let (runs, port, number) = (batch.runs.clone(), batch.port, batch.number);
        let mut waits = 0;
        for run in runs {
            let sectors = run.target(&shared, origin_end);
            if !mutation::is(Mutation::MergeSkipsCopyOut) {
                waits += self.preserve(sectors, Waiter::Batch(number), port);
            }
        }
        if waits > 0 {
            return self.look_again(Waiter::Batch(number));
        }
        let chunks = self.fence_batch();
        if let Some(batch) = self.batch() {
            batch.phase = Phase::Drain;
        }
        self.add_drain(Drain::MergeWrites { chunks });
    }

    /// From here on no write to these chunks starts. Returns them sorted.
    fn fence_batch(&mut self) -> Vec<u64> {
        let Some(merge) = &self.merge else {
            return Vec::new();
        };
        let (Some(snap), Some(batch)) = (self.snaps.get(&merge.snapshot), &merge.batch) else {
            return Vec::new();
        };
        let mut chunks: Vec<u64> = batch.entries.values().map(|e| e.old).collect();
        chunks.sort_unstable();
        for chunk in &chunks {
            if !mutation::is(Mutation::FenceSkipped) {
                snap.shared.table.fence(*chunk);
            }
        }
        fence_change();
        chunks
    }

    /// Step 3.
    pub(in crate::engine::core) fn batch_drained(&mut self) {
        let Some(batch) = self.batch() else { return };
        if batch.phase == Phase::Drain {
            batch.phase = Phase::Copy;
            self.copy_batch();
        }
    }

    /// Starts as many pieces as may be under way; all copied, the origin is flushed.
    fn copy_batch(&mut self) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let cs = shared.chunk_size;
        let origin_end = self.origin_sectors();
        while let Some(batch) = self.batch() {
            let (index, done) = batch.next;
            let port = batch.port;
            let Some(run) = batch.runs.get(index).copied() else {
                if batch.ios == 0 && batch.phase == Phase::Copy {
                    self.flush_batch();
                }
                return;
            };
            if batch.ios >= PIECES {
                return;
            }
            let target = run.target(&shared, origin_end);
            let left = (target.end - target.start).saturating_sub(done);
            let piece = left.min(PIECE_BYTES >> SECTOR_SHIFT);
            if piece == 0 {
                batch.next = (index + 1, 0);
                continue;
            }
            batch.next = (index, done + piece);
            batch.ios += 1;
            let buffer = Buffer::Owned(self.buffers.take(byte_count(piece)));
            let origin_sector = target.start + done;
            let purpose = IoPurpose::MergeRead { origin_sector };
            self.issue(port, purpose, |tag| Command::Read {
                tag,
                device: shared.device,
                offset: (cs.first_sector(run.new) + done) << SECTOR_SHIFT,
                buffer,
            });
        }
    }

    pub(in crate::engine::core) fn merge_read_done(
        &mut self,
        origin_sector: u64,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        let device = self.origin_device();
        if self.is_batch_stopped() || result.is_err() {
            self.buffers.put_back(buffer);
            return self.merge_copy_ended(result);
        }
        let (Some(batch), Some(buffer)) = (self.batch(), buffer) else {
            return;
        };
        let port = batch.port;
        self.issue(port, IoPurpose::MergeWrite, |tag| Command::Write {
            tag,
            device,
            offset: origin_sector << SECTOR_SHIFT,
            buffer,
            durable: false,
            patch: None,
        });
    }

    pub(in crate::engine::core) fn merge_write_done(&mut self, result: Result<(), Failure>) {
        self.merge_copy_ended(result);
    }

    fn merge_copy_ended(&mut self, result: Result<(), Failure>) {
        if self.batch_io_ended(result) {
            self.copy_batch();
        }
    }

    /// Step 4.
    fn flush_batch(&mut self) {
        let device = self.origin_device();
        let Some(batch) = self.batch() else { return };
        batch.phase = Phase::Flush;
        batch.ios = 1;
        let port = batch.port;
        self.issue(port, IoPurpose::MergeFlush, |tag| Command::Flush {
            tag,
            device,
        });
    }

    pub(in crate::engine::core) fn merge_flush_done(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // This batch's lost writes may have been reported to a guest's flush: after
        // it, no flush of the origin is believed.
        let result = result.and(self.flush_lost(None).map_or(Ok(()), Err));
        if self.batch_io_ended(result) {
            self.start_removal();
        }
    }

    /// Step 5, the copies of entries that fill holes.
    fn start_removal(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        let (Some(snap), Some(batch)) = (self.snaps.get(&merge.snapshot), &mut merge.batch) else {
            return;
        };
        let slots: Vec<usize> = batch.entries.keys().copied().collect();
        let plan = snap.metadata.plan_removal(&slots);
        let (port, device, moves) = (batch.port, snap.shared.device, plan.moves.clone());
        batch.plan = Some(plan);
        batch.phase = Phase::Move;
        batch.ios = moves.len();
        if moves.is_empty() {
            return self.zero_next();
        }
        for write in &moves {
            self.write_log(IoPurpose::MergeMove, port, device, write);
        }
    }

    pub(in crate::engine::core) fn merge_move_done(&mut self, result: Result<(), Failure>) {
        if self.batch_io_ended(result) && self.batch().is_some_and(|b| b.ios == 0) {
            self.zero_next();
        }
    }

    /// Step 5, the tail, one step of the plan after the other.
    fn zero_next(&mut self) {
        let Some(device) = self.merged_store().map(|s| s.device) else {
            return;
        };
        let Some(batch) = self.batch() else { return };
        let at = match batch.phase {
            Phase::Zero(at) => at + 1,
            Phase::Preserve | Phase::Drain | Phase::Copy | Phase::Flush | Phase::Move => 0,
        };
        batch.phase = Phase::Zero(at);
        let Some(step) = batch.plan.as_ref().and_then(|p| p.tail.get(at)).cloned() else {
            return self.batch_removed();
        };
        batch.ios = step.len();
        let port = batch.port;
        for write in &step {
            self.write_log(IoPurpose::MergeZero, port, device, write);
        }
    }

    pub(in crate::engine::core) fn merge_zero_done(&mut self, result: Result<(), Failure>) {
        if self.batch_io_ended(result) && self.batch().is_some_and(|b| b.ios == 0) {
            self.zero_next();
        }
    }

    fn write_log(&mut self, purpose: IoPurpose, port: usize, device: DeviceId, write: &MetaWrite) {
        let mut buffer = OwnedBuffer::zeroed(write.data.len());
        buffer.as_mut_slice().copy_from_slice(&write.data);
        self.issue(port, purpose, |tag| Command::Write {
            tag,
            device,
            offset: write.offset,
            buffer: Buffer::Owned(buffer),
            durable: true,
            patch: None,
        });
    }

    /// Step 6: the removal is durable, the chunks belong to the origin.
    fn batch_removed(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        let Some(batch) = merge.batch.take() else {
            return;
        };
        let Some(snap) = self.snaps.get_mut(&merge.snapshot) else {
            return;
        };
        if let Some(plan) = &batch.plan {
            snap.metadata.apply_removal(plan);
        }
        merge.chunks_done += batch.entries.len() as u64;
        let mut waiting = Vec::new();
        for entry in batch.entries.values() {
            snap.shared.table.clear(entry.old);
            waiting.extend(merge.waiting.remove(&entry.old).unwrap_or_default());
        }
        let (snapshot, empty) = (merge.snapshot, snap.metadata.entries().is_empty());
        if mutation::is(Mutation::MergeWaiterForgotten) {
            waiting.clear();
        }
        for id in waiting {
            self.wake(Waiter::Request(id));
        }
        if empty {
            self.end_merge();
        }
        self.notify(Notice::MergeWork { snapshot });
    }

    // ---- failure

    fn is_batch_stopped(&self) -> bool {
        let batch = self.merge.as_ref().and_then(|m| m.batch.as_ref());
        batch.is_none_or(|b| b.abandoned)
    }

    /// Accounts for one I/O; false if the batch does not go on.
    fn batch_io_ended(&mut self, result: Result<(), Failure>) -> bool {
        let Some(batch) = self.batch() else {
            return false;
        };
        batch.ios = batch.ios.saturating_sub(1);
        if let Err(failure) = result {
            self.fail_merge(failure);
        }
        if !self.is_batch_stopped() {
            return true;
        }
        self.abandon_batch();
        false
    }

    /// Drops the batch once its I/O has ended; the entries stay. After a failed
    /// metadata write it is unknown which of them are on disk: they stay fenced.
    pub(super) fn abandon_batch(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        let Some(snap) = self.snaps.get(&merge.snapshot) else {
            return;
        };
        let Some(batch) = &mut merge.batch else {
            return;
        };
        batch.abandoned = true;
        let limbo = matches!(batch.phase, Phase::Move | Phase::Zero(_))
            && !mutation::is(Mutation::FailedRemovalForgotten);
        if limbo {
            merge.limbo.extend(batch.entries.values().map(|e| e.old));
        }
        if batch.ios > 0 {
            return;
        }
        if !limbo {
            for entry in batch.entries.values() {
                snap.shared.table.unfence(entry.old);
            }
        }
        merge.batch = None;
        let (snapshot, resumed) = (merge.snapshot, merge.failed.is_none());
        self.drop_batch_drain();
        self.release_merge_waiters();
        if resumed {
            self.notify(Notice::MergeWork { snapshot });
        }
    }
}
