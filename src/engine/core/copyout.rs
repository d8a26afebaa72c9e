//! Copy-out: saving origin chunks into every snapshot that lacks them.
//!
//! Order: 1 read origin chunk → 2 write COW data → 3 COW data durable → 4 entry
//! durable → 5 publish → 6 the origin write is issued. Steps 1–4 are shared by a
//! group ([`super::commit`] does 3–5). If 1–4 fail or space is short, the
//! snapshot is invalidated durably, and then 6 ([`super::invalidate`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use slab::Slab;

use super::Core;
use super::accounting::IoPurpose;
use super::buffers::PIECE_BYTES;
use super::snap::StoreState;
use super::unsettled::When;
use super::waiting::{Task, Waiter};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::views::SharedSnapshot;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::units::{SECTOR_SHIFT, SECTOR_SIZE, byte_count};

/// Bytes of origin that may be under copy-out at once; one job may exceed it.
const COPY_LIMIT: u64 = 16 << 20;
/// One job covers at most this much (or one chunk of the largest chunk size).
const WINDOW_SECTORS: u64 = 512;
/// Pieces of one job under way at once.
const PIECES: u32 = 4;

/// Consecutive chunks of one snapshot that get consecutive COW chunks.
#[derive(Clone, Copy, Debug)]
struct CopyRun {
    snapshot: SnapshotId,
    old: u64,
    new: u64,
    count: u64,
}

/// One reading of the origin for any number of snapshots.
#[derive(Debug)]
struct CopyJob {
    port: usize,
    runs: Vec<CopyRun>,
    /// Sectors still to be read.
    next: u64,
    end: u64,
    pieces: u32,
    bytes: u64,
}

/// Part of a job under way.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    writes: u32,
    memory: Option<Arc<OwnedBuffer>>,
}

/// A chunk that a snapshot lacks.
#[derive(Debug)]
struct Missing {
    snapshot: SnapshotId,
    chunk: u64,
}

/// Everything that is under copy-out.
#[derive(Debug, Default)]
pub(super) struct CopyOuts {
    jobs: Slab<CopyJob>,
    pieces: Slab<Piece>,
    /// Bytes of all jobs.
    bytes: u64,
    /// Waiters for room below [`COPY_LIMIT`].
    waiters: VecDeque<Waiter>,
}

impl CopyOuts {
    /// Fails if something is left, though no request and no batch is under way.
    pub(super) fn check_idle(&self) -> Result<(), String> {
        if !self.jobs.is_empty() || !self.pieces.is_empty() || self.bytes != 0 {
            let (jobs, bytes) = (self.jobs.len(), self.bytes);
            return Err(format!("idle with {jobs} copy jobs, {bytes} bytes"));
        }
        if !self.waiters.is_empty() {
            return Err("idle with waiters for copy room".into());
        }
        Ok(())
    }
}

impl Core {
    /// Makes sure that every snapshot has what `sectors` of the origin hold now.
    /// Returns 0 if the origin may be overwritten. Otherwise `waiter` got that many
    /// waits, and this must be called again when they have ended.
    pub(super) fn preserve(&mut self, sectors: Range<u64>, waiter: Waiter, port: usize) -> u32 {
        let skipped = mutation::is(Mutation::SecondSnapshotSkipped);
        let count = if skipped { 1 } else { usize::MAX };
        let preserve: Vec<_> = self.to_preserve().take(count).cloned().collect();
        let mut waits = 0;
        let sizes = preserve.iter().map(|s| s.chunk_size.sectors());
        let window = WINDOW_SECTORS.max(sizes.max().unwrap_or(1));
        let mut at = sectors.start;
        while at < sectors.end {
            let stop = ((at / window) + 1).saturating_mul(window).min(sectors.end);
            let mut missing = Vec::new();
            for shared in &preserve {
                waits += self.find_missing(shared, at..stop, waiter, &mut missing);
            }
            if !missing.is_empty() {
                if self.copy_outs.bytes >= COPY_LIMIT {
                    self.copy_outs.waiters.push_back(waiter);
                    self.add_wait(waiter);
                    return waits + 1;
                }
                if self.wait_for_zeroes(&missing, waiter) {
                    return waits + 1;
                }
                waits += self.copy_out(&missing, waiter, port);
            }
            at = stop;
        }
        waits
    }

    /// Adds the chunks in `sectors` that a snapshot has no COW chunk for to `missing`.
    /// For those that are pending, and for an invalidation under way, `waiter` gets
    /// waits; returns how many.
    fn find_missing(
        &mut self,
        shared: &SharedSnapshot,
        sectors: Range<u64>,
        waiter: Waiter,
        missing: &mut Vec<Missing>,
    ) -> u32 {
        let id = shared.id;
        let mut waits = 0;
        for chunk in shared.chunks(sectors.start, sectors.end) {
            if shared.table.get(chunk).is_settled() {
                continue;
            }
            let Some(snap) = self.snaps.get_mut(&id) else {
                return waits;
            };
            if snap.is_invalidating() {
                snap.wait_for_invalid(waiter);
                self.add_wait(waiter);
                return waits + 1;
            }
            if !snap.is_usable() {
                return waits;
            }
            if !snap.unsettled.contains(chunk) {
                missing.push(Missing {
                    snapshot: id,
                    chunk,
                });
                continue;
            }
            if mutation::is(Mutation::PresentIsEnough) && snap.unsettled.is_published(chunk)
                || mutation::is(Mutation::OriginWriteBeforeEntry)
                    && snap.unsettled.newest_ready() == Some(chunk)
            {
                continue;
            }
            // Present is not enough: a snapshot's own write may still be volatile,
            // and then power loss would bring back this chunk.
            snap.unsettled.demand(chunk);
            snap.unsettled.wait(chunk, When::Settled, waiter);
            self.add_wait(waiter);
            waits += 1;
            self.tasks.push_back(Task::Commit(id));
        }
        waits
    }

    /// Gives `waiter` a wait if chunks for `missing` are being zeroed; true if it did.
    fn wait_for_zeroes(&mut self, missing: &[Missing], waiter: Waiter) -> bool {
        let snaps = missing.iter().map(|m| m.snapshot);
        let waits = snaps.into_iter().any(|id| {
            let snap = self.snaps.get_mut(&id);
            snap.is_some_and(|s| s.wait_for_zeroes(missing.len(), waiter))
        });
        if waits {
            self.add_wait(waiter);
        }
        waits
    }

    /// Allocates and starts one job for `missing`; returns the waits given to `waiter`.
    fn copy_out(&mut self, missing: &[Missing], waiter: Waiter, port: usize) -> u32 {
        let mut waits = 0;
        let mut runs: Vec<CopyRun> = Vec::new();
        for m in missing {
            let Some(snap) = self.snaps.get_mut(&m.snapshot) else {
                continue;
            };
            if !snap.is_usable() {
                waits += self.wait_if_invalidating(m.snapshot, waiter);
                continue;
            }
            let Some(new) = snap.allocate(m.chunk) else {
                if mutation::is(Mutation::OverflowKeptOnCopyOut) && snap.keeps_on_overflow() {
                    continue;
                }
                self.invalidate(m.snapshot, InvalidReason::Full);
                self.wait_if_invalidating(m.snapshot, waiter);
                waits += 1; // also if it has ended already, because what is settled has changed
                continue;
            };
            snap.unsettled.demand(m.chunk);
            snap.unsettled.wait(m.chunk, When::Settled, waiter);
            self.add_wait(waiter);
            waits += 1;
            match runs.last_mut() {
                Some(r)
                    if r.snapshot == m.snapshot
                        && r.old + r.count == m.chunk
                        && r.new + r.count == new =>
                {
                    r.count += 1;
                }
                _ => runs.push(CopyRun {
                    snapshot: m.snapshot,
                    old: m.chunk,
                    new,
                    count: 1,
                }),
            }
        }
        runs.retain(|r| self.snaps.get(&r.snapshot).is_some_and(|s| s.is_usable()));
        for run in &runs {
            self.zero_ahead(run.snapshot, port);
        }
        if !runs.is_empty() {
            self.start_job(runs, port);
        }
        waits
    }

    /// Gives `waiter` a wait if this snapshot's invalidation is not durable yet;
    /// returns how many.
    fn wait_if_invalidating(&mut self, id: SnapshotId, waiter: Waiter) -> u32 {
        match self.snaps.get_mut(&id) {
            Some(snap) if snap.is_invalidating() => {
                snap.wait_for_invalid(waiter);
                self.add_wait(waiter);
                1
            }
            Some(_) | None => 0,
        }
    }

    /// Copies one chunk that a snapshot write has allocated.
    pub(super) fn copy_one(&mut self, snapshot: SnapshotId, old: u64, new: u64, port: usize) {
        let run = CopyRun {
            snapshot,
            old,
            new,
            count: 1,
        };
        self.start_job(vec![run], port);
    }

    fn sectors_of(&self, run: &CopyRun) -> Range<u64> {
        let Some(snap) = self.snaps.get(&run.snapshot) else {
            return 0..0;
        };
        let cs = snap.shared.chunk_size;
        let end = cs.first_sector(run.old + run.count);
        cs.first_sector(run.old)..end.min(snap.shared.covers)
    }

    fn start_job(&mut self, runs: Vec<CopyRun>, port: usize) {
        let sectors = runs.iter().map(|r| self.sectors_of(r));
        let next = sectors.clone().map(|s| s.start).min().unwrap_or(0);
        let end = sectors.map(|s| s.end).max().unwrap_or(0);
        let bytes = end.saturating_sub(next).saturating_mul(SECTOR_SIZE);
        self.copy_outs.bytes += bytes;
        let job = self.copy_outs.jobs.insert(CopyJob {
            port,
            runs,
            next,
            end,
            pieces: 0,
            bytes,
        });
        self.advance_job(job);
    }

    /// Starts as many pieces as a job may have under way; ends it when all are done.
    fn advance_job(&mut self, id: usize) {
        while let Some(job) = self.copy_outs.jobs.get(id) {
            let (port, pieces) = (job.port, job.pieces);
            let Some(sectors) = self.next_piece(job) else {
                if pieces == 0 {
                    self.end_job(id);
                }
                return;
            };
            if pieces >= PIECES {
                return;
            }
            if let Some(job) = self.copy_outs.jobs.get_mut(id) {
                job.next = sectors.end;
                job.pieces += 1;
            }
            self.read_piece(id, port, sectors);
        }
    }

    /// The sectors that a job reads next, without those that no snapshot needs, or
    /// needs any more after an invalidation.
    fn next_piece(&self, job: &CopyJob) -> Option<Range<u64>> {
        if job.next >= job.end {
            return None;
        }
        let usable = |r: &&CopyRun| self.snaps.get(&r.snapshot).is_some_and(|s| s.is_usable());
        let live = job.runs.iter().filter(usable).map(|r| self.sectors_of(r));
        let (mut start, mut stop) = (None, 0);
        for sectors in live.filter(|s| s.end > job.next) {
            let first = sectors.start.max(job.next);
            start = Some(start.map_or(first, |start: u64| start.min(first)));
            stop = sectors.end.max(stop);
        }
        let start = start?;
        Some(start..stop.min(start + (PIECE_BYTES >> SECTOR_SHIFT)))
    }

    /// Step 1.
    fn read_piece(&mut self, job: usize, port: usize, sectors: Range<u64>) {
        let device = self.origin_device();
        let Range { start, end } = sectors;
        let memory = self.buffers.take(byte_count(end - start));
        let piece = self.copy_outs.pieces.insert(Piece {
            start,
            end,
            writes: 0,
            memory: None,
        });
        self.issue(port, IoPurpose::CopyRead { job, piece }, |tag| {
            Command::Read {
                tag,
                device,
                offset: start << SECTOR_SHIFT,
                buffer: Buffer::Owned(memory),
            }
        });
    }

    pub(super) fn copy_read_done(
        &mut self,
        job: usize,
        piece: usize,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        let runs = self.copy_outs.jobs.get(job).map(|j| j.runs.clone());
        let runs = runs.unwrap_or_default();
        if let Err(failure) = result {
            self.buffers.put_back(buffer);
            for run in runs {
                self.invalidate(run.snapshot, InvalidReason::Io(failure));
            }
            return self.end_piece(job, piece);
        }
        if let Some(Buffer::Owned(memory)) = buffer {
            self.write_piece(job, piece, runs, Arc::new(memory));
        } else {
            self.end_piece(job, piece);
        }
    }

    /// Step 2, for every snapshot that still needs it.
    fn write_piece(
        &mut self,
        job: usize,
        piece: usize,
        runs: Vec<CopyRun>,
        memory: Arc<OwnedBuffer>,
    ) {
        let outs = &self.copy_outs;
        let (Some(j), Some(p)) = (outs.jobs.get(job), outs.pieces.get(piece)) else {
            return;
        };
        let (port, start, end) = (j.port, p.start, p.end);
        let mut writes = 0;
        for run in runs {
            let Some(snap) = self.snaps.get(&run.snapshot).filter(|s| s.is_usable()) else {
                continue;
            };
            let (device, cs) = (snap.shared.device, snap.shared.chunk_size);
            let range = self.sectors_of(&run);
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from >= to {
                continue;
            }
            let sector = cs.first_sector(run.new) + (from - range.start);
            let buffer = Buffer::Shared {
                memory: memory.clone(),
                offset: byte_count(from - start),
                len: byte_count(to - from),
            };
            let purpose = IoPurpose::CopyWrite {
                job,
                piece,
                snapshot: run.snapshot,
            };
            self.issue(port, purpose, |tag| Command::Write {
                tag,
                device,
                offset: sector << SECTOR_SHIFT,
                buffer,
                durable: false,
                patch: None,
            });
            writes += 1;
        }
        if let Some(p) = self.copy_outs.pieces.get_mut(piece) {
            p.writes = writes;
            p.memory = Some(memory);
        }
        if writes == 0 {
            self.end_piece(job, piece);
        }
    }

    pub(super) fn copy_write_done(
        &mut self,
        job: usize,
        piece: usize,
        snapshot: SnapshotId,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            self.invalidate(snapshot, InvalidReason::Io(failure));
        }
        if let Some(p) = self.copy_outs.pieces.get_mut(piece) {
            p.writes = p.writes.saturating_sub(1);
            if p.writes == 0 {
                self.end_piece(job, piece);
            }
        }
    }

    fn end_piece(&mut self, job: usize, piece: usize) {
        let piece = self.copy_outs.pieces.try_remove(piece);
        if let Some(memory) = piece.and_then(|p| p.memory).and_then(Arc::into_inner) {
            self.buffers.put(memory);
        }
        if let Some(j) = self.copy_outs.jobs.get_mut(job) {
            j.pieces = j.pieces.saturating_sub(1);
        }
        self.advance_job(job);
    }

    fn end_job(&mut self, id: usize) {
        let Some(job) = self.copy_outs.jobs.try_remove(id) else {
            return;
        };
        self.copy_outs.bytes = self.copy_outs.bytes.saturating_sub(job.bytes);
        for run in &job.runs {
            // A snapshot that became invalid meanwhile has nothing pending.
            let snap = self.snaps.get_mut(&run.snapshot);
            if let Some(snap) = snap.filter(|s| s.state() != StoreState::Invalid) {
                snap.counts.copied_chunks += run.count;
                for chunk in run.old..run.old + run.count {
                    self.mark_ready(run.snapshot, chunk);
                }
            }
        }
        if !self.copy_outs.waiters.is_empty() {
            self.tasks.push_back(Task::CopyRoom);
        }
    }

    /// There is room for copy-outs again.
    pub(super) fn copy_room(&mut self) {
        for waiter in std::mem::take(&mut self.copy_outs.waiters) {
            self.wake(waiter);
        }
    }
}
