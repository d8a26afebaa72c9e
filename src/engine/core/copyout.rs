//! Copy-out: saving origin chunks into every snapshot that lacks them.
//!
//! Order: 1 read origin chunk → 2 write COW data → 3 COW data durable → 4 entry
//! durable → 5 publish → 6 the origin write is issued. Steps 1–4 are shared by a
//! group ([`super::commit`] does 3–5). If 1–4 fail or space is short, the
//! snapshot is invalidated durably, and then 6 ([`super::invalidate`]).

use std::ops::Range;
use std::sync::Arc;

use super::accounting::IoPurpose;
use super::buffers::PIECE_BYTES;
use super::waiting::{Task, Waiter};
use super::{Core, StoreState, When};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::Buffer;
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
pub(super) struct CopyJob {
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
pub(super) struct Piece {
    start: u64,
    end: u64,
    writes: u32,
    memory: Option<Arc<crate::io::OwnedBuffer>>,
}

/// One snapshot's share of a window.
#[derive(Debug)]
struct Missing {
    snapshot: SnapshotId,
    chunk: u64,
}

impl Core {
    /// Makes sure that every snapshot has what `sectors` of the origin hold now.
    /// Returns 0 if the origin may be overwritten; else `waiter` got that many
    /// waits, and is to ask again when they have ended.
    pub(super) fn preserve(&mut self, sectors: Range<u64>, waiter: Waiter, port: usize) -> u32 {
        let preserve: Vec<_> = self.preserve_list();
        let mut waits = 0;
        let largest = preserve
            .iter()
            .map(|s| s.chunk_size.sectors())
            .max()
            .unwrap_or(1);
        let window = WINDOW_SECTORS.max(largest);
        let mut at = sectors.start;
        while at < sectors.end {
            let stop = ((at / window) + 1).saturating_mul(window).min(sectors.end);
            let mut missing = Vec::new();
            for shared in &preserve {
                let id = shared.id;
                for chunk in shared.chunks(at, stop) {
                    if shared.table.get(chunk).is_settled() {
                        continue;
                    }
                    let Some(snap) = self.snaps.get_mut(&id) else {
                        continue;
                    };
                    if snap.is_invalidating() {
                        snap.on_invalid.push(waiter);
                        self.add_wait(waiter);
                        waits += 1;
                        break;
                    }
                    if !snap.is_usable() {
                        break;
                    }
                    if let Some(pending) = snap.pending.get(&chunk) {
                        if pending.published && mutation::is(Mutation::PresentIsEnough)
                            || snap.newest_ready() == Some(chunk)
                                && mutation::is(Mutation::OriginWriteBeforeEntry)
                        {
                            continue;
                        }
                        // Present is not enough: a snapshot's own write may still
                        // be volatile, and then power loss would bring back this chunk.
                        snap.demand(chunk);
                        snap.wait(chunk, When::Settled, waiter);
                        self.add_wait(waiter);
                        waits += 1;
                        self.tasks.push_back(Task::Commit(id));
                    } else {
                        missing.push(Missing {
                            snapshot: id,
                            chunk,
                        });
                    }
                }
            }
            if !missing.is_empty() {
                if self.copy_bytes >= COPY_LIMIT {
                    self.copy_waiters.push_back(waiter);
                    self.add_wait(waiter);
                    return waits + 1;
                }
                waits += self.copy_out(&missing, waiter, port);
            }
            at = stop;
        }
        waits
    }

    fn preserve_list(&self) -> Vec<Arc<crate::engine::views::SharedSnapshot>> {
        let skipped = mutation::is(Mutation::SecondSnapshotSkipped);
        let count = if skipped { 1 } else { usize::MAX };
        self.to_preserve().take(count).cloned().collect()
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
                if snap.is_invalidating() {
                    snap.on_invalid.push(waiter);
                    self.add_wait(waiter);
                    waits += 1;
                }
                continue;
            }
            let Some(new) = snap.allocate(m.chunk) else {
                if snap.keep_on_overflow && mutation::is(Mutation::OverflowKeptOnCopyOut) {
                    continue;
                }
                self.invalidate(m.snapshot, InvalidReason::Full);
                if let Some(snap) = self.snaps.get_mut(&m.snapshot)
                    && snap.is_invalidating()
                {
                    snap.on_invalid.push(waiter);
                    self.add_wait(waiter);
                }
                waits += 1; // even if it is over already: what is settled has changed
                continue;
            };
            snap.demand(m.chunk);
            snap.wait(m.chunk, When::Settled, waiter);
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
        if !runs.is_empty() {
            self.start_job(runs, port);
        }
        waits
    }

    /// Copies one chunk that a snapshot write has allocated.
    pub(super) fn copy_one(&mut self, snapshot: SnapshotId, old: u64, new: u64, port: usize) {
        self.start_job(
            vec![CopyRun {
                snapshot,
                old,
                new,
                count: 1,
            }],
            port,
        );
    }

    fn sectors_of(&self, run: &CopyRun) -> Range<u64> {
        let Some(snap) = self.snaps.get(&run.snapshot) else {
            return 0..0;
        };
        let cs = snap.shared.chunk_size;
        cs.first_sector(run.old)
            ..cs.first_sector(run.old + run.count)
                .min(self.origin_sectors())
    }

    fn start_job(&mut self, runs: Vec<CopyRun>, port: usize) {
        let next = runs
            .iter()
            .map(|r| self.sectors_of(r).start)
            .min()
            .unwrap_or(0);
        let end = runs
            .iter()
            .map(|r| self.sectors_of(r).end)
            .max()
            .unwrap_or(0);
        let bytes = end.saturating_sub(next).saturating_mul(SECTOR_SIZE);
        self.copy_bytes += bytes;
        let job = self.jobs.insert(CopyJob {
            port,
            runs,
            next,
            end,
            pieces: 0,
            bytes,
        });
        self.pump(job);
    }

    /// Starts as many pieces as a job may have under way; ends it when all are done.
    fn pump(&mut self, id: usize) {
        while let Some(job) = self.jobs.get(id) {
            if job.next >= job.end {
                if job.pieces == 0 {
                    self.end_job(id);
                }
                return;
            }
            if job.pieces >= PIECES {
                return;
            }
            let at = job.next;
            // Skip what no snapshot needs (or needs any more, after an invalidation).
            let live: Vec<Range<u64>> = job
                .runs
                .iter()
                .filter(|r| self.snaps.get(&r.snapshot).is_some_and(|s| s.is_usable()))
                .map(|r| self.sectors_of(r))
                .collect();
            let start = live
                .iter()
                .filter(|r| r.end > at)
                .map(|r| r.start.max(at))
                .min();
            let Some(start) = start else {
                if let Some(job) = self.jobs.get_mut(id) {
                    job.next = job.end;
                }
                continue;
            };
            let stop = live
                .iter()
                .filter(|r| r.end > start)
                .map(|r| r.end)
                .max()
                .unwrap_or(start);
            let end = stop.min(start + (PIECE_BYTES >> SECTOR_SHIFT));
            let (port, device) = (job.port, self.origin_device());
            let memory = self.buffers.take(byte_count(end - start));
            let piece = self.pieces.insert(Piece {
                start,
                end,
                writes: 0,
                memory: None,
            });
            let purpose = IoPurpose::CopyRead { job: id, piece };
            self.issue(port, purpose, |tag| Command::Read {
                tag,
                device,
                offset: start << SECTOR_SHIFT,
                buffer: Buffer::Owned(memory),
            });
            if let Some(job) = self.jobs.get_mut(id) {
                job.next = end;
                job.pieces += 1;
            }
        }
    }

    pub(super) fn copy_read_done(
        &mut self,
        job: usize,
        piece: usize,
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        if let Err(failure) = result {
            self.buffers.put_back(buffer);
            let failed: Vec<SnapshotId> = self
                .jobs
                .get(job)
                .map(|j| j.runs.iter().map(|r| r.snapshot).collect())
                .unwrap_or_default();
            for snapshot in failed {
                self.invalidate(snapshot, InvalidReason::Io(failure));
            }
            self.end_piece(job, piece);
            return;
        }
        let Some(Buffer::Owned(memory)) = buffer else {
            return self.end_piece(job, piece);
        };
        let memory = Arc::new(memory);
        let (Some(j), Some(p)) = (self.jobs.get(job), self.pieces.get(piece)) else {
            return;
        };
        let (port, start, end) = (j.port, p.start, p.end);
        let mut writes = 0;
        for run in j.runs.clone() {
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
            let purpose = IoPurpose::CopyWrite {
                job,
                piece,
                snapshot: run.snapshot,
            };
            let buffer = Buffer::Shared {
                memory: memory.clone(),
                offset: byte_count(from - start),
                len: byte_count(to - from),
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
        if let Some(p) = self.pieces.get_mut(piece) {
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
        if let Some(p) = self.pieces.get_mut(piece) {
            p.writes = p.writes.saturating_sub(1);
            if p.writes == 0 {
                self.end_piece(job, piece);
            }
        }
    }

    fn end_piece(&mut self, job: usize, piece: usize) {
        if let Some(memory) = self
            .pieces
            .try_remove(piece)
            .and_then(|p| p.memory)
            .and_then(Arc::into_inner)
        {
            self.buffers.put(memory);
        }
        if let Some(j) = self.jobs.get_mut(job) {
            j.pieces = j.pieces.saturating_sub(1);
        }
        self.pump(job);
    }

    fn end_job(&mut self, id: usize) {
        let Some(job) = self.jobs.try_remove(id) else {
            return;
        };
        self.copy_bytes = self.copy_bytes.saturating_sub(job.bytes);
        for run in &job.runs {
            for chunk in run.old..run.old + run.count {
                // A snapshot that became invalid meanwhile has nothing pending.
                if self
                    .snaps
                    .get(&run.snapshot)
                    .is_some_and(|s| s.state != StoreState::Invalid)
                {
                    self.mark_ready(run.snapshot, chunk);
                }
            }
        }
        if !self.copy_waiters.is_empty() {
            self.tasks.push_back(Task::CopyRoom);
        }
    }

    pub(super) fn copy_room(&mut self) {
        for waiter in std::mem::take(&mut self.copy_waiters) {
            self.wake(waiter);
        }
    }
}
