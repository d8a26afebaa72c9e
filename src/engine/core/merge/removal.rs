//! From copied chunks to merged ones: steps 4 to 6 of [`super::batch`], for groups.
//!
//! Order: 1 a flush of the origin takes everything that was copied when it began → 2 a
//! removal takes what flushes have covered: all that guest writes wait for, and of the
//! rest as much as does not make them wait; the slots are looked up now, because the
//! removal before may have moved entries → 3 its writes, each step durable before the
//! next: a single write by itself, several by one flush after the last of them → 4 drop
//! from memory, which lifts the fence, and release waiters.
//!
//! One flush and one removal are under way at a time, side by side: a plan holds only
//! for the log that it was made from. Copies go on meanwhile.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::batch::{Batch, Kind};
use crate::engine::api::*;
use crate::engine::core::Core;
use crate::engine::core::accounting::IoPurpose;
use crate::engine::core::waiting::{RequestId, Waiter};
use crate::engine::failure::Failure;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{Entry, MetaWrite, RemovalPlan};

/// Background chunks in one removal. It takes a few durable steps however many they are.
const CHUNKS: usize = 8192;
/// The same while guest writes wait. From there it doubles with each removal for which
/// none waits, because a guest that writes waits only most of the time.
const CHUNKS_BESIDE_WAITERS: usize = 1024;

/// Chunks that go through the steps together.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Guest writes wait for them.
    urgent: Vec<Entry>,
    /// A removal takes those that are nearest to the end of the log.
    background: VecDeque<Entry>,
    /// Direct writes, whose chunks are among the urgent ones.
    writes: Vec<RequestId>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.background.is_empty() && self.writes.is_empty()
    }

    fn append(&mut self, mut other: Self) {
        self.urgent.append(&mut other.urgent);
        self.background.append(&mut other.background);
        self.writes.append(&mut other.writes);
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.urgent.iter().chain(&self.background)
    }

    fn take_background(&mut self, chunk: u64) -> Option<Entry> {
        let at = self.background.iter().position(|e| e.old == chunk)?;
        self.background.remove(at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Move,
    Zero(usize),
}

/// A removal under way.
#[derive(Debug)]
struct Turn {
    entries: Vec<Entry>,
    writes: Vec<RequestId>,
    plan: RemovalPlan,
    step: Step,
    ios: usize,
    /// The step has several writes, which are to be flushed when they have ended.
    volatile: bool,
    /// That flush is under way.
    flushing: bool,
    /// A write or a flush failed: it is unknown which of its entries are on disk.
    failed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pipeline {
    copied: Group,
    flushing: Option<Group>,
    flushed: Group,
    turn: Option<Turn>,
    /// Background chunks in the last removal, at most.
    most: usize,
}

impl Pipeline {
    /// Whether direct writes wait for it.
    pub(super) fn has_writes(&self) -> bool {
        let flushing = self.flushing.iter();
        let mut groups = [&self.copied, &self.flushed].into_iter().chain(flushing);
        groups.any(|g| !g.writes.is_empty())
            || self.turn.as_ref().is_some_and(|t| !t.writes.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.copied.is_empty()
            && self.flushing.is_none()
            && self.flushed.is_empty()
            && self.turn.is_none()
    }

    /// The chunks in it.
    pub(super) fn chunks(&self) -> impl Iterator<Item = u64> {
        let flushing = self.flushing.iter();
        let groups = [&self.copied, &self.flushed].into_iter().chain(flushing);
        let removed = self.turn.iter().flat_map(|t| &t.entries);
        groups
            .flat_map(Group::entries)
            .chain(removed)
            .map(|e| e.old)
    }

    fn groups(&mut self) -> impl Iterator<Item = &mut Group> {
        [&mut self.copied, &mut self.flushed]
            .into_iter()
            .chain(&mut self.flushing)
    }

    /// Background chunks that are copied and not removed.
    pub(super) fn backlog(&self) -> usize {
        let flushing = self.flushing.iter();
        let groups = [&self.copied, &self.flushed].into_iter().chain(flushing);
        groups.map(|g| g.background.len()).sum()
    }

    /// A guest write waits for this chunk now.
    pub(super) fn hurry(&mut self, chunk: u64) {
        for group in self.groups() {
            let entry = group.take_background(chunk);
            group.urgent.extend(entry);
        }
    }

    /// Takes out a chunk for which nobody waits. False if it is not there.
    pub(super) fn withdraw(&mut self, chunk: u64) -> bool {
        self.groups().any(|g| g.take_background(chunk).is_some())
    }

    /// Takes out everything that is not being removed.
    pub(super) fn give_up(&mut self) -> (Vec<Entry>, Vec<RequestId>) {
        let mut all = Group::default();
        for group in self.groups() {
            all.append(std::mem::take(group));
        }
        (all.entries().copied().collect(), all.writes)
    }
}

impl Core {
    /// All of a batch is in the origin. The merger's thread goes on with it.
    pub(super) fn look_at_batch(&mut self, number: u64) {
        let Some(merge) = &mut self.merge else { return };
        let done = |b: &Batch| b.is_copied() && !b.abandoned;
        if !merge.batches.get(&number).is_some_and(done) {
            return;
        }
        let Some(batch) = merge.batches.remove(&number) else {
            return;
        };
        for chunk in &batch.withdrawn {
            merge.taken.remove(chunk);
        }
        let group = &mut merge.pipeline.copied;
        for entry in batch.entries {
            if batch.kind == Kind::Background && !merge.waiting.contains_key(&entry.old) {
                group.background.push_back(entry);
            } else {
                group.urgent.push(entry);
            }
        }
        if let Kind::Direct(id) = batch.kind {
            group.writes.push(id);
        }
        let snapshot = merge.snapshot;
        self.notify(Notice::MergeWork { snapshot });
    }

    /// Starts the next flush and the next removal, if there is something for them. For
    /// the merger's thread, which carries them out.
    pub(super) fn advance_merge(&mut self) {
        if self.merge.as_ref().is_none_or(|m| m.failed.is_some()) {
            return;
        }
        self.start_turn();
        let device = self.origin_device();
        let Some(merge) = &mut self.merge else { return };
        let (Some(port), pipeline) = (merge.port, &mut merge.pipeline) else {
            return;
        };
        if pipeline.flushing.is_none() && !pipeline.copied.is_empty() {
            pipeline.flushing = Some(std::mem::take(&mut pipeline.copied));
            self.issue(port, IoPurpose::MergeFlush, |tag| Command::Flush {
                tag,
                device,
            });
        }
    }

    /// Step 1 has ended.
    pub(in crate::engine::core) fn merge_flush_done(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // The lost writes may have been reported to a guest's flush: after it, no flush
        // of the origin is believed.
        let result = result.and(self.flush_lost(None).map_or(Ok(()), Err));
        if let Err(failure) = result {
            self.fail_merge(failure);
        }
        let Some(merge) = &mut self.merge else { return };
        // Empty if the merge has failed meanwhile.
        let mut group = merge.pipeline.flushing.take().unwrap_or_default();
        if mutation::is(Mutation::CopiedDuringFlushRemoved) {
            group.append(std::mem::take(&mut merge.pipeline.copied));
        }
        let early = mutation::is(Mutation::DirectWriteAckedEarly);
        let acked = if early {
            group.writes.clone()
        } else {
            Vec::new()
        };
        merge.pipeline.flushed.append(group);
        for id in acked {
            self.wake(Waiter::Request(id));
        }
        self.advance_merge();
        self.look_at_end();
    }

    /// Step 2.
    fn start_turn(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        let (Some(snap), Some(port)) = (self.snaps.get(&merge.snapshot), merge.port) else {
            return;
        };
        let pipeline = &mut merge.pipeline;
        if pipeline.turn.is_some() || pipeline.flushed.is_empty() {
            return;
        }
        let group = &mut pipeline.flushed;
        // Batches may end in another order. The tail of the log goes without moves.
        let slot = |e: &Entry| Reverse(snap.metadata.slot_of(e.new));
        group.background.make_contiguous().sort_by_cached_key(slot);
        let waited_for = !merge.waiting.is_empty() || !group.writes.is_empty();
        pipeline.most = if waited_for {
            CHUNKS_BESIDE_WAITERS
        } else {
            (pipeline.most * 2).clamp(CHUNKS_BESIDE_WAITERS, CHUNKS)
        };
        let mut entries = std::mem::take(&mut group.urgent);
        let rest = group.background.len().min(pipeline.most);
        entries.extend(group.background.drain(..rest));
        let writes = std::mem::take(&mut group.writes);
        let slots = entries.iter().filter_map(|e| snap.metadata.slot_of(e.new));
        let slots: Vec<usize> = slots.collect();
        let plan = snap.metadata.plan_removal(&slots);
        let moves = plan.moves.clone();
        pipeline.turn = Some(Turn {
            entries,
            writes,
            plan,
            step: Step::Move,
            ios: 0,
            volatile: false,
            flushing: false,
            failed: false,
        });
        if moves.is_empty() {
            return self.zero_next();
        }
        self.write_step(&IoPurpose::MergeMove, port, &moves);
    }

    fn turn(&mut self) -> Option<&mut Turn> {
        self.merge.as_mut()?.pipeline.turn.as_mut()
    }

    /// A write or the flush of a step has ended.
    pub(in crate::engine::core) fn merge_log_done(
        &mut self,
        purpose: &IoPurpose,
        mut result: Result<(), Failure>,
    ) {
        let snapshot = self.merging();
        // One that failed beside it, such as a guest's, lost what this one covers, too.
        if self.turn().is_some_and(|t| t.flushing) {
            match (result, snapshot) {
                (Err(failure), Some(id)) => self.store_flush_failed(id, failure),
                _ => result = self.flush_lost(snapshot).map_or(Ok(()), Err),
            }
        }
        let early = mutation::is(Mutation::RemovalFlushedEarly);
        let wait = |t: &mut Turn| t.ios > 0 && !(early && t.volatile);
        if !self.turn_io_ended(result) || self.turn().is_none_or(wait) {
            return;
        }
        let port = self.merge.as_ref().and_then(|m| m.port);
        let device = self.merged_store().map(|s| s.device);
        let (Some(turn), Some(port), Some(device)) = (self.turn(), port, device) else {
            return;
        };
        turn.flushing = std::mem::take(&mut turn.volatile);
        if !turn.flushing {
            return self.zero_next();
        }
        turn.ios += 1;
        self.issue(port, purpose.clone(), |tag| Command::Flush { tag, device });
    }

    /// Step 3, the tail, one step of the plan after the other.
    fn zero_next(&mut self) {
        let port = self.merge.as_ref().and_then(|m| m.port);
        let (Some(turn), Some(port)) = (self.turn(), port) else {
            return;
        };
        let at = match turn.step {
            Step::Zero(at) => at + 1,
            Step::Move => 0,
        };
        turn.step = Step::Zero(at);
        let Some(step) = turn.plan.tail.get(at).cloned() else {
            return self.turn_ended();
        };
        self.write_step(&IoPurpose::MergeZero, port, &step);
    }

    fn write_step(&mut self, purpose: &IoPurpose, port: usize, writes: &[MetaWrite]) {
        let Some(device) = self.merged_store().map(|s| s.device) else {
            return;
        };
        let Some(turn) = self.turn() else { return };
        let durable = writes.len() == 1;
        turn.ios = writes.len();
        turn.volatile = !durable;
        for write in writes {
            let mut buffer = OwnedBuffer::zeroed(write.data.len());
            buffer.as_mut_slice().copy_from_slice(&write.data);
            self.issue(port, purpose.clone(), |tag| Command::Write {
                tag,
                device,
                offset: write.offset,
                buffer: Buffer::Owned(buffer),
                durable,
                patch: None,
            });
        }
    }

    /// Step 4: the removal is durable, the chunks belong to the origin.
    fn turn_ended(&mut self) {
        let Some(merge) = &mut self.merge else { return };
        let Some(turn) = merge.pipeline.turn.take() else {
            return;
        };
        let Some(snap) = self.snaps.get_mut(&merge.snapshot) else {
            return;
        };
        snap.metadata.apply_removal(&turn.plan);
        let chunks = turn.entries.len() as u64;
        merge.chunks_done += chunks;
        self.counts.merge.chunks += chunks;
        self.counts.merge.bytes += chunks * snap.shared.chunk_size.bytes();
        let mut waiting = Vec::new();
        for entry in &turn.entries {
            snap.shared.table.clear(entry.old);
            merge.taken.remove(&entry.old);
            merge.withdrawn.remove(&entry.old);
            waiting.extend(merge.waiting.remove(&entry.old).unwrap_or_default());
        }
        if mutation::is(Mutation::MergeWaiterForgotten) {
            waiting.clear();
        }
        let snapshot = merge.snapshot;
        for id in turn.writes.into_iter().chain(waiting) {
            self.wake(Waiter::Request(id));
        }
        self.advance_merge();
        self.look_at_end();
        self.notify(Notice::MergeWork { snapshot });
    }

    /// Ends the merge if nothing is left. One that has failed ends when it is resumed.
    fn look_at_end(&mut self) {
        let Some(merge) = &self.merge else { return };
        let snap = self.snaps.get(&merge.snapshot);
        let empty = snap.is_some_and(|s| s.metadata.entries().is_empty());
        if empty && merge.failed.is_none() && !merge.has_work() {
            self.end_merge();
        }
    }

    /// Accounts for one write of a removal; false if the removal does not go on. A
    /// failure elsewhere does not end it: its chunks are durable in the origin.
    fn turn_io_ended(&mut self, result: Result<(), Failure>) -> bool {
        let Some(merge) = &mut self.merge else {
            return false;
        };
        let Some(turn) = &mut merge.pipeline.turn else {
            return false;
        };
        turn.ios = turn.ios.saturating_sub(1);
        let limbo = !mutation::is(Mutation::FailedRemovalForgotten);
        if let Err(failure) = result {
            turn.failed = true;
            if limbo {
                merge.limbo.extend(turn.entries.iter().map(|e| e.old));
            }
            self.fail_merge(failure);
        }
        let Some(merge) = &mut self.merge else {
            return false;
        };
        let Some(turn) = merge.pipeline.turn.take_if(|t| t.failed && t.ios == 0) else {
            return self.turn().is_some_and(|t| !t.failed);
        };
        // Its chunks stay fenced, and in limbo.
        self.give_up_copied(turn.entries, turn.writes, !limbo);
        self.release_merge_waiters();
        false
    }
}
