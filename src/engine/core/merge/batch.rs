//! One batch of a merge: chunks that are brought to the origin together.
//!
//! Order: 1 chosen ([`super::choose`]) → 2 other snapshots copy out; fence the chunks
//! and drain the writes to them → 3 the chunks are copied COW → origin ([`super::copy`]),
//! or a guest's write that replaces all of them goes to the origin ([`super::direct`]) →
//! 4 flush the origin → 5 remove the entries, durable → 6 drop from memory, which lifts
//! the fence, and release waiters ([`super::removal`]).
//!
//! Any number of batches are under way at once, and no chunk is in two of them. From
//! step 4 on their chunks go together.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::engine::api::Notice;
use crate::engine::core::Core;
use crate::engine::core::drains::Drain;
use crate::engine::core::waiting::{RequestId, Waiter, Waits};
use crate::engine::registrations::fence_change;
use crate::engine::views::SharedSnapshot;
use crate::mutation::{self, Mutation};
use crate::store::Entry;
use crate::units::ChunkSize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Preserve,
    Drain,
    Copy,
}

/// Why a batch was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Background,
    /// Guest writes wait for its chunks.
    Waited,
    /// This guest write replaces its chunks.
    Direct(RequestId),
}

/// Chunks that are consecutive on both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct MergeRun {
    old: u64,
    new: u64,
    count: u64,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) port: usize,
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// In the order in which they were chosen.
    pub(super) entries: Vec<Entry>,
    /// The newest turn among its chunks that guest writes waited for.
    pub(super) newest_turn: Option<u64>,
    pub(super) phase: Phase,
    /// What must end before its phase can go on.
    pub(super) waits: Waits,
    runs: Vec<MergeRun>,
    /// Next to copy: run, and sector within it.
    next: (usize, u64),
    pub(super) ios: usize,
    /// Sectors of the pieces in flight.
    pub(super) in_flight: u64,
    /// The merger was notified that it may start the next one.
    pub(super) told: bool,
    /// Chunks that were taken out of it after their copy had begun: in no other batch
    /// until the copies have ended, which may still write the origin.
    pub(super) withdrawn: Vec<u64>,
    /// Something failed: it does nothing more, also if the merge is resumed before its
    /// last I/O has ended.
    pub(super) abandoned: bool,
}

/// A part of a run to be copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Sector of the COW device.
    pub(super) from: u64,
    /// Sector of the origin.
    pub(super) to: u64,
    pub(super) sectors: u64,
}

impl Batch {
    pub(super) fn new(port: usize, number: u64, kind: Kind, entries: Vec<Entry>) -> Self {
        Self {
            port,
            number,
            kind,
            entries,
            newest_turn: None,
            phase: Phase::Preserve,
            waits: Waits::default(),
            runs: Vec::new(),
            next: (0, 0),
            ios: 0,
            in_flight: 0,
            told: false,
            withdrawn: Vec::new(),
            abandoned: false,
        }
    }

    /// Its chunks, and those that it still copies.
    pub(super) fn chunks(&self) -> impl Iterator<Item = u64> {
        let withdrawn = self.withdrawn.iter().copied();
        self.entries.iter().map(|e| e.old).chain(withdrawn)
    }

    pub(super) fn holds(&self, chunk: u64) -> bool {
        self.entries.iter().any(|e| e.old == chunk)
    }

    /// Its chunks in the order of the origin, if they are to be copied.
    pub(super) fn start_copying(&mut self) {
        self.phase = Phase::Copy;
        if !matches!(self.kind, Kind::Direct(_)) {
            self.runs = runs_of(&self.entries);
        }
    }

    /// The next piece of at most `most` sectors; `None` if all are taken.
    pub(super) fn next_piece(
        &mut self,
        shared: &SharedSnapshot,
        origin_end: u64,
        most: u64,
    ) -> Option<Piece> {
        loop {
            let (index, done) = self.next;
            let run = self.runs.get(index)?;
            let target = run.target(shared, origin_end);
            let left = (target.end - target.start).saturating_sub(done);
            if left == 0 {
                self.next = (index + 1, 0);
                continue;
            }
            let sectors = left.min(most);
            self.next = (index, done + sectors);
            return Some(Piece {
                from: shared.chunk_size.first_sector(run.new) + done,
                to: target.start + done,
                sectors,
            });
        }
    }

    /// Whether every piece of it is copied or being copied.
    pub(super) fn is_all_issued(&self) -> bool {
        self.phase == Phase::Copy && self.next.0 >= self.runs.len()
    }

    /// Whether all of it is in the origin.
    pub(super) fn is_copied(&self) -> bool {
        self.is_all_issued() && self.ios == 0
    }

    /// How many chunks of the present run are copied or being copied.
    fn begun(&self, cs: ChunkSize) -> u64 {
        self.next.1.div_ceil(cs.sectors())
    }

    /// Takes a chunk out whose copy has not begun. False if it has.
    pub(super) fn forget(&mut self, chunk: u64, cs: ChunkSize) -> bool {
        if self.phase == Phase::Copy {
            let begun = self.begun(cs);
            let first = self.next.0;
            let holds = |run: &MergeRun| (run.old..run.old + run.count).contains(&chunk);
            let Some(at) =
                (first..self.runs.len()).find(|at| self.runs.get(*at).is_some_and(holds))
            else {
                return false;
            };
            let Some(run) = self.runs.get_mut(at) else {
                return false;
            };
            let before = chunk - run.old;
            if at == first && before < begun {
                return false;
            }
            let rest = run.part(before + 1);
            run.count = before;
            // An empty run has nothing to copy.
            self.runs.insert(at + 1, rest);
        }
        self.entries.retain(|e| e.old != chunk);
        true
    }

    /// Ends it with what is copied or being copied; returns the other chunks.
    pub(super) fn cut(&mut self, cs: ChunkSize) -> Vec<u64> {
        if self.phase != Phase::Copy || self.kind != Kind::Background {
            return Vec::new();
        }
        let begun = self.begun(cs);
        let (first, mut cut) = (self.next.0, Vec::new());
        if let Some(run) = self.runs.get_mut(first) {
            let kept = begun.min(run.count);
            cut.push(run.part(kept));
            run.count = kept;
            cut.extend(self.runs.drain(first + 1..));
        }
        let cut: std::collections::BTreeSet<u64> = cut
            .iter()
            .flat_map(|run| run.old..run.old + run.count)
            .collect();
        self.entries.retain(|e| !cut.contains(&e.old));
        cut.into_iter().collect()
    }
}

fn runs_of(entries: &[Entry]) -> Vec<MergeRun> {
    let mut sorted = entries.to_vec();
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
    /// Its chunks from the `skip`-th on.
    const fn part(&self, skip: u64) -> Self {
        Self {
            old: self.old + skip,
            new: self.new + skip,
            count: self.count.saturating_sub(skip),
        }
    }

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

/// The batches under way, by number.
pub(super) type Batches = BTreeMap<u64, Batch>;

impl Core {
    pub(super) fn batch(&mut self, number: u64) -> Option<&mut Batch> {
        self.merge.as_mut()?.batches.get_mut(&number)
    }

    /// The port that carries out the copy-outs and copies of a batch.
    pub(in crate::engine::core) fn port_of_batch(&self, number: u64) -> Option<usize> {
        Some(self.merge.as_ref()?.batches.get(&number)?.port)
    }

    /// Step 2. Its task is taken from the queue: the other snapshots may have what
    /// they need.
    pub(in crate::engine::core) fn batch_ready(&mut self, number: u64) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let origin_end = self.origin_sectors();
        let Some(batch) = self.batch(number) else {
            return;
        };
        if !batch.waits.take_turn() || batch.phase != Phase::Preserve || batch.abandoned {
            return;
        }
        let (kind, port) = (batch.kind, batch.port);
        let runs = runs_of(&batch.entries);
        let mut targets: Vec<Range<u64>> =
            runs.iter().map(|r| r.target(&shared, origin_end)).collect();
        if let Kind::Direct(id) = kind
            && let Some(request) = self.requests.get(id)
        {
            // It may also write chunks that are merged already.
            targets.clear();
            targets.push(request.start()..request.end());
        }
        let mut waits = 0;
        for sectors in targets {
            if !mutation::is(Mutation::MergeSkipsCopyOut) {
                waits += self.preserve(sectors, Waiter::Batch(number), port);
            }
        }
        if waits > 0 {
            return self.look_again(Waiter::Batch(number));
        }
        let chunks = self.fence_batch(number);
        if let Some(batch) = self.batch(number) {
            batch.phase = Phase::Drain;
        }
        self.add_drain(Drain::MergeWrites {
            batch: number,
            chunks,
        });
    }

    /// From here on no write to these chunks starts. Returns them sorted.
    fn fence_batch(&mut self, number: u64) -> Vec<u64> {
        let Some(shared) = self.merged_store().cloned() else {
            return Vec::new();
        };
        let Some(batch) = self.batch(number) else {
            return Vec::new();
        };
        let mut chunks: Vec<u64> = batch.entries.iter().map(|e| e.old).collect();
        chunks.sort_unstable();
        for chunk in &chunks {
            if !mutation::is(Mutation::FenceSkipped) {
                shared.table.fence(*chunk);
            }
        }
        fence_change();
        chunks
    }

    /// Step 3.
    pub(in crate::engine::core) fn batch_drained(&mut self, number: u64) {
        let Some(batch) = self.batch(number) else {
            return;
        };
        if batch.phase != Phase::Drain {
            return;
        }
        batch.start_copying();
        match batch.kind {
            Kind::Direct(id) => self.write_direct(number, id),
            Kind::Background | Kind::Waited => self.copy_batch(number),
        }
    }

    /// Takes a background chunk out of its batch, if its copy has not begun. If it
    /// has, the batch ends with what has begun. True if the chunk is in no batch now.
    pub(super) fn hurry(&mut self, chunk: u64) -> bool {
        let Some(shared) = self.merged_store().cloned() else {
            return false;
        };
        let Some(merge) = &mut self.merge else {
            return false;
        };
        if !merge.taken.contains(&chunk) {
            return true;
        }
        let cs = shared.chunk_size;
        let background = |b: &&mut Batch| b.kind == Kind::Background && b.holds(chunk);
        let Some(batch) = merge.batches.values_mut().find(background) else {
            merge.pipeline.hurry(chunk);
            return false;
        };
        let number = batch.number;
        let begun = !batch.forget(chunk, cs);
        let freed = if begun { batch.cut(cs) } else { vec![chunk] };
        for chunk in &freed {
            merge.taken.remove(chunk);
            shared.table.unfence(*chunk);
            if merge.waiting.contains_key(chunk) {
                merge.queue_urgent(*chunk);
            }
        }
        for chunk in freed {
            self.drains.drop_chunk(number, chunk);
        }
        // All of it may be copied now, or nothing be left of it.
        self.look_at_batch(number);
        !begun
    }

    /// A redirected write needs a chunk of the merge: takes it out of the background
    /// batch or of what that has copied. Its entry stays, so what the copy leaves in the
    /// origin is not shown. Once for each chunk, so that the merge ends.
    pub(super) fn withdraw(&mut self, chunk: u64) -> bool {
        let Some(shared) = self.merged_store().cloned() else {
            return false;
        };
        let Some(merge) = &mut self.merge else {
            return false;
        };
        if merge.withdrawn.contains(&chunk) || merge.waiting.contains_key(&chunk) {
            return false;
        }
        let background = |b: &&mut Batch| b.kind == Kind::Background && b.holds(chunk);
        let mut number = None;
        let mut copying = false;
        if let Some(batch) = merge.batches.values_mut().find(background) {
            number = Some(batch.number);
            copying = !batch.forget(chunk, shared.chunk_size);
            if copying && !mutation::is(Mutation::WithdrawnChunkRemoved) {
                batch.entries.retain(|e| e.old != chunk);
                batch.withdrawn.push(chunk);
            }
        } else if !merge.pipeline.withdraw(chunk) {
            return false;
        }
        if !copying || mutation::is(Mutation::WithdrawnChunkFree) {
            merge.taken.remove(&chunk);
        }
        merge.withdrawn.insert(chunk);
        shared.table.unfence(chunk);
        if let Some(number) = number {
            self.drains.drop_chunk(number, chunk);
            self.look_at_batch(number);
        }
        // It is to be merged again, and nothing else may end that tells the merger so.
        self.notify(Notice::MergeWork {
            snapshot: shared.id,
        });
        true
    }
}
