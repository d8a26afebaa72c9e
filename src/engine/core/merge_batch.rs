//! One merge batch.
//!
//! Order: 1 choose from the tail, waited-for chunks first, the oldest turn first → 2 fence and drain
//! writes to them; other snapshots copy out → 3 copy COW → origin → 4 flush the
//! origin → 5 remove the entries, durable: first the moved copies of entries that
//! fill holes, then the tail → 6 drop from memory, lift the fence, release waiters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::buffers::PIECE_BYTES;
use super::control::Drain;
use super::{Core, Op, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::fence_change;
use crate::engine::views::SharedSnapshot;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{Entry, MetaWrite, RemovalPlan};
use crate::units::{SECTOR_SHIFT, byte_count};

/// Pieces under way at once in one batch.
const PIECES: usize = 32;
/// Chunks in one batch at most: it ends with a durable write for each unit of
/// entries, one after the other, and guest writes may wait for all of them.
const BATCH_CHUNKS: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preserve,
    Drain,
    Copy,
    Flush,
    Move,
    Zero(usize),
}

/// Consecutive chunks on both sides.
#[derive(Clone, Copy, Debug)]
struct Run {
    old: u64,
    new: u64,
    count: u64,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) port: usize,
    number: u64,
    /// By slot of the log.
    entries: BTreeMap<usize, Entry>,
    /// Of the chunks in it that guests waited for.
    pub(super) newest_turn: Option<u64>,
    runs: Vec<Run>,
    phase: Phase,
    /// What the batch waits for before its phase can go on.
    pub(super) waits: u32,
    pub(super) queued: bool,
    /// Next to copy: run, and sector within it.
    next: (usize, u64),
    ios: usize,
    /// Something of it failed: it does nothing more, also if the merge is resumed
    /// before its last I/O has ended.
    abandoned: bool,
    plan: Option<RemovalPlan>,
}

impl Core {
    pub(in crate::engine) fn merge_step(
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
        let log = snap.metadata.entries();
        if log.is_empty() {
            self.end_merge();
            return MergeStep::Idle;
        }
        let chunk_bytes = snap.shared.chunk_size.bytes();
        let limit = |bytes: u64| {
            let chunks = usize::try_from(bytes / chunk_bytes).unwrap_or(BATCH_CHUNKS);
            chunks.clamp(1, BATCH_CHUNKS)
        };
        let mut entries = BTreeMap::new();
        let mut newest_turn = None;
        while entries.len() < limit(urgent)
            && let Some((turn, chunk)) = next_turn(&mut merge.urgent)
        {
            let slot = snap
                .shared
                .table
                .get(chunk)
                .cow_chunk()
                .and_then(|new| snap.metadata.slot_of(new));
            if let Some(slot) = slot
                && let Some(entry) = log.get(slot)
            {
                entries.insert(slot, *entry);
                newest_turn = newest_turn.max(Some(turn));
            }
        }
        if background > 0 && !merge.paused {
            for (slot, entry) in log
                .iter()
                .enumerate()
                .rev()
                .take(limit(background).saturating_sub(entries.len()))
            {
                entries.insert(slot, *entry);
            }
        }
        if entries.is_empty() {
            return MergeStep::Idle;
        }
        let bytes = (entries.len() as u64).saturating_mul(chunk_bytes);
        let runs = runs_of(&entries);
        merge.batches += 1;
        let number = merge.batches;
        merge.batch = Some(Batch {
            port,
            number,
            entries,
            newest_turn,
            runs,
            phase: Phase::Preserve,
            waits: 0,
            queued: false,
            next: (0, 0),
            ios: 0,
            abandoned: false,
            plan: None,
        });
        self.look_again(Waiter::Batch(number));
        MergeStep::Started { bytes }
    }

    /// The running batch, if it is that one.
    pub(super) fn batch_of(&mut self, number: u64) -> Option<&mut Batch> {
        self.batch().filter(|b| b.number == number)
    }

    fn batch(&mut self) -> Option<&mut Batch> {
        self.merge.as_mut()?.batch.as_mut()
    }

    fn merging(&self) -> Option<&Arc<SharedSnapshot>> {
        let snap = self.snaps.get(&self.merge.as_ref()?.snapshot)?;
        Some(&snap.shared)
    }

    /// The sectors of the origin that a run is copied to: none behind the
    /// snapshot's end, where the origin has what the snapshot never had.
    fn target(shared: &SharedSnapshot, run: &Run, origin_end: u64) -> Range<u64> {
        let limit = if mutation::is(Mutation::MergeBehindSnapshot) {
            origin_end
        } else {
            shared.sectors
        };
        let cs = shared.chunk_size;
        let first = cs.first_sector(run.old);
        let end = cs.first_sector(run.old + run.count).min(limit);
        first..end.max(first)
    }

    /// The batch waits for nothing: the other snapshots may have what they need.
    pub(super) fn batch_ready(&mut self) {
        let Some(shared) = self.merging().cloned() else {
            return;
        };
        let origin_end = self.origin_sectors();
        let Some(batch) = self.batch() else { return };
        batch.queued = false;
        if batch.waits > 0 || batch.phase != Phase::Preserve {
            return;
        }
        let (runs, port, number) = (batch.runs.clone(), batch.port, batch.number);
        let mut waits = 0;
        for run in &runs {
            let sectors = Self::target(&shared, run, origin_end);
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

    pub(super) fn batch_drained(&mut self) {
        let Some(batch) = self.batch() else { return };
        if batch.phase == Phase::Drain {
            batch.phase = Phase::Copy;
            self.pump_merge();
        }
    }

    fn pump_merge(&mut self) {
        let Some(shared) = self.merging().cloned() else {
            return;
        };
        let (device, cs) = (shared.device, shared.chunk_size);
        let origin_end = self.origin_sectors();
        let origin = self.origin_device();
        while let Some(batch) = self.batch() {
            let (index, done) = batch.next;
            let port = batch.port;
            let Some(run) = batch.runs.get(index).copied() else {
                if batch.ios == 0 && batch.phase == Phase::Copy {
                    batch.phase = Phase::Flush;
                    batch.ios = 1;
                    let tag = self.tag(Op::MergeFlush);
                    self.emit(
                        port,
                        Command::Flush {
                            tag,
                            device: origin,
                        },
                    );
                }
                return;
            };
            if batch.ios >= PIECES {
                return;
            }
            let target = Self::target(&shared, &run, origin_end);
            let first = target.start;
            let piece = (target.end - first)
                .saturating_sub(done)
                .min(PIECE_BYTES >> SECTOR_SHIFT);
            if piece == 0 {
                batch.next = (index + 1, 0);
                continue;
            }
            batch.next = (index, done + piece);
            batch.ios += 1;
            let buffer = Buffer::Owned(self.buffers.take(byte_count(piece)));
            let offset = (cs.first_sector(run.new) + done) << SECTOR_SHIFT;
            let tag = self.tag(Op::MergeRead {
                origin_sector: first + done,
            });
            self.emit(
                port,
                Command::Read {
                    tag,
                    device,
                    offset,
                    buffer,
                },
            );
        }
    }

    pub(super) fn merge_read_done(
        &mut self,
        origin_sector: u64,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        let origin = self.origin_device();
        if self.stopped() || result.is_err() {
            self.buffers.put_back(buffer);
            return self.merge_io_ended(result);
        }
        let (Some(batch), Some(buffer)) = (self.batch(), buffer) else {
            return;
        };
        let port = batch.port;
        let offset = origin_sector << SECTOR_SHIFT;
        let tag = self.tag(Op::MergeWrite);
        self.emit(
            port,
            Command::Write {
                tag,
                device: origin,
                offset,
                buffer,
                durable: false,
                patch: None,
            },
        );
    }

    pub(super) fn merge_write_done(&mut self, result: Result<(), Failure>) {
        self.merge_io_ended(result);
    }

    pub(super) fn merge_flush_done(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // A guest's flush that failed may be the one that heard of this batch's
        // lost writes: after it, no flush of the origin is believed.
        let result = result.and(self.flush_lost(None).map_or(Ok(()), Err));
        if !self.merge_io_ok(result) {
            return;
        }
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
            return self.next_zero();
        }
        for write in &moves {
            self.write_metadata(Op::MergeMove, port, device, write);
        }
    }

    fn write_metadata(
        &mut self,
        op: Op,
        port: usize,
        device: crate::io::DeviceId,
        write: &MetaWrite,
    ) {
        let mut buffer = OwnedBuffer::zeroed(write.data.len());
        buffer.as_mut_slice().copy_from_slice(&write.data);
        let tag = self.tag(op);
        let (offset, buffer) = (write.offset, Buffer::Owned(buffer));
        self.emit(
            port,
            Command::Write {
                tag,
                device,
                offset,
                buffer,
                durable: true,
                patch: None,
            },
        );
    }

    pub(super) fn merge_move_done(&mut self, result: Result<(), Failure>) {
        if !self.merge_io_ok(result) {
            return;
        }
        if self.batch().is_some_and(|b| b.ios == 0) {
            self.next_zero();
        }
    }

    fn next_zero(&mut self) {
        let Some(device) = self.merging().map(|s| s.device) else {
            return;
        };
        let Some(batch) = self.batch() else { return };
        let at = match batch.phase {
            Phase::Zero(at) => at + 1,
            _ => 0,
        };
        batch.phase = Phase::Zero(at);
        let Some(write) = batch.plan.as_ref().and_then(|p| p.zeroes.get(at)).cloned() else {
            return self.batch_removed();
        };
        batch.ios = 1;
        let port = batch.port;
        self.write_metadata(Op::MergeZero, port, device, &write);
    }

    pub(super) fn merge_zero_done(&mut self, result: Result<(), Failure>) {
        if self.merge_io_ok(result) {
            self.next_zero();
        }
    }

    /// The removal is durable: the chunks belong to the origin.
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
        merge.bytes_copied +=
            (batch.entries.len() as u64).saturating_mul(snap.shared.chunk_size.bytes());
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

    fn stopped(&self) -> bool {
        let batch = self.merge.as_ref().and_then(|m| m.batch.as_ref());
        batch.is_none_or(|b| b.abandoned)
    }

    fn merge_io_ended(&mut self, result: Result<(), Failure>) {
        if self.merge_io_ok(result) {
            self.pump_merge();
        }
    }

    /// Accounts for one I/O; false if the batch does not go on.
    fn merge_io_ok(&mut self, result: Result<(), Failure>) -> bool {
        let Some(batch) = self.batch() else {
            return false;
        };
        batch.ios = batch.ios.saturating_sub(1);
        if let Err(failure) = result {
            self.fail_merge(failure);
        }
        if !self.stopped() {
            return true;
        }
        self.abandon_batch();
        false
    }

    /// Drops the batch once its I/O has ended; the entries stay. After a failed
    /// metadata write nobody knows which of them are on disk: they stay fenced.
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
        // Nothing may set off a later batch in this one's name.
        self.drains
            .retain(|d| !matches!(d, Drain::MergeWrites { .. }));
        self.tell_drains();
        self.release_merge_waiters();
        if resumed {
            self.notify(Notice::MergeWork { snapshot });
        }
    }
}

/// Takes out the chunk that is waited for longest.
fn next_turn(urgent: &mut BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    if mutation::is(Mutation::LowestChunkFirst) {
        let turn = *urgent.iter().min_by_key(|(_, chunk)| **chunk)?.0;
        return urgent.remove_entry(&turn);
    }
    urgent.pop_first()
}

fn runs_of(entries: &BTreeMap<usize, Entry>) -> Vec<Run> {
    let mut sorted: Vec<Entry> = entries.values().copied().collect();
    sorted.sort_unstable_by_key(|e| e.old);
    let mut runs: Vec<Run> = Vec::new();
    for e in sorted {
        match runs.last_mut() {
            Some(r) if r.old + r.count == e.old && r.new + r.count == e.new => r.count += 1,
            _ => runs.push(Run {
                old: e.old,
                new: e.new,
                count: 1,
            }),
        }
    }
    runs
}
