//! Making exceptions durable, a group at a time.

use super::accounting::IoPurpose;
use super::drains::Drain;
use super::waiting::{Task, Waiter};
use super::{Core, Snap, When};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{AppendPlan, Entry};

/// Zeroes are written in pieces of at most this many bytes.
const ZERO_PIECE: u64 = 1 << 20;

/// An allocated exception that is not committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    pub(super) old: u64,
    pub(super) new: u64,
    /// Its data is written (not necessarily durable).
    pub(super) ready: bool,
}

#[derive(Debug)]
pub(super) enum Step {
    /// Bytes of the next area zeroed so far.
    Zero(u64),
    Flush,
    /// Index of the metadata write under way.
    Write(usize),
}

#[derive(Debug)]
pub(super) struct Commit {
    entries: Vec<Entry>,
    plan: AppendPlan,
    step: Step,
}

impl Snap {
    /// Allocates a COW chunk for `chunk` and makes it pending.
    pub(super) fn allocate(&mut self, chunk: u64) -> Option<u64> {
        let new = self.metadata.allocate().ok()?;
        let seq = self.queue_base + self.queue.len() as u64;
        self.queue.push_back(Queued {
            old: chunk,
            new,
            ready: false,
        });
        self.pending.insert(
            chunk,
            super::Pending {
                seq,
                published: false,
                waiters: Vec::new(),
            },
        );
        Some(new)
    }

    /// Asks for everything up to this pending exception to become durable.
    pub(super) fn demand(&mut self, chunk: u64) {
        if let Some(p) = self.pending.get(&chunk) {
            self.demand = self.demand.max(p.seq + 1);
        }
    }

    pub(super) fn wait(&mut self, chunk: u64, when: When, waiter: Waiter) {
        if let Some(p) = self.pending.get_mut(&chunk) {
            p.waiters.push((when, waiter));
        }
    }

    /// The newest exception whose data is written and whose entry is not durable.
    pub(super) fn newest_ready(&self) -> Option<u64> {
        self.queue.iter().rev().find(|q| q.ready).map(|q| q.old)
    }
}

impl Core {
    /// The data of a pending exception is written.
    pub(super) fn mark_ready(&mut self, id: SnapshotId, chunk: u64) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(seq) = snap.pending.get(&chunk).map(|p| p.seq) else {
            return;
        };
        let Some(at) = seq
            .checked_sub(snap.queue_base)
            .and_then(|at| usize::try_from(at).ok())
        else {
            return;
        };
        if let Some(q) = snap.queue.get_mut(at) {
            q.ready = true;
        }
        if mutation::is(Mutation::OriginWriteBeforeEntry) {
            self.wake_pending(id, chunk, |w| w == When::Settled);
        }
        self.tasks.push_back(Task::Commit(id));
    }

    /// Makes a deferred exception visible to its own view before it is durable.
    pub(super) fn publish_early(&mut self, id: SnapshotId, chunk: u64) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(p) = snap.pending.get_mut(&chunk) else {
            return;
        };
        let Some(at) = p
            .seq
            .checked_sub(snap.queue_base)
            .and_then(|at| usize::try_from(at).ok())
        else {
            return;
        };
        let Some(q) = snap.queue.get(at) else { return };
        p.published = true;
        snap.shared.table.set(chunk, q.new, false);
        self.wake_pending(id, chunk, |w| w == When::Published);
    }

    /// Starts a commit if one is wanted and none runs. A group is what was
    /// allocated when the first of it was ready: later copies join the next one.
    pub(super) fn maybe_commit(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if snap.commit.is_some() || !snap.is_usable() || snap.demand <= snap.queue_base {
            return;
        }
        let ready = snap.queue.iter().take_while(|q| q.ready).count();
        if ready == 0 {
            return;
        }
        let goal = *snap.goal.get_or_insert(snap.demand);
        if snap.queue_base + (ready as u64) < goal {
            return;
        }
        snap.goal = None;
        let offered: Vec<Entry> = snap
            .queue
            .iter()
            .take(ready)
            .map(|q| Entry {
                old: q.old,
                new: q.new,
            })
            .collect();
        let plan = snap.metadata.plan_append(&offered);
        let entries: Vec<Entry> = offered.into_iter().take(plan.taken).collect();
        let step = if plan.zero_next_area.is_some() {
            Step::Zero(0)
        } else {
            Step::Flush
        };
        let nothing_to_write = plan.writes.is_empty();
        snap.commit = Some(Commit {
            entries,
            plan,
            step,
        });
        if nothing_to_write {
            self.committed(id); // a transient store
        } else {
            self.acting = self.commit_port(id);
            self.commit_step(id);
        }
    }

    /// Order: 1 the next area zeroed, if this fills one → 2 flush: data chunks and
    /// zeroes durable → 3 entry writes in order, each durable before the next →
    /// 4 in memory.
    fn commit_step(&mut self, id: SnapshotId) {
        let port = self.acting;
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let device = snap.shared.device;
        let Some(commit) = &mut snap.commit else {
            return;
        };
        let command = match commit.step {
            Step::Zero(done) => {
                let (offset, len) = commit.plan.zero_next_area.unwrap_or_default();
                let piece = ZERO_PIECE.min(len.saturating_sub(done));
                let buffer = OwnedBuffer::zeroed(usize::try_from(piece).unwrap_or(0));
                Some((offset + done, buffer, false))
            }
            Step::Flush => None,
            Step::Write(at) => {
                let Some(write) = commit.plan.writes.get(at) else {
                    self.committed(id);
                    return;
                };
                let mut buffer = OwnedBuffer::zeroed(write.data.len());
                buffer.as_mut_slice().copy_from_slice(&write.data);
                Some((write.offset, buffer, true))
            }
        };
        let purpose = IoPurpose::Commit { snapshot: id };
        self.issue(port, purpose, |tag| match command {
            None => Command::Flush { tag, device },
            Some((offset, buffer, durable)) => Command::Write {
                tag,
                device,
                offset,
                buffer: Buffer::Owned(buffer),
                durable,
                patch: None,
            },
        });
    }

    pub(super) fn commit_step_done(&mut self, id: SnapshotId, result: Result<(), Failure>) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if !snap.is_usable() {
            snap.commit = None;
            return;
        }
        if let Err(failure) = result {
            // What is on disk is unknown now: the store is not trusted again.
            snap.commit = None;
            self.invalidate(id, InvalidReason::Io(failure));
            return;
        }
        let Some(commit) = &mut snap.commit else {
            return;
        };
        commit.step = match commit.step {
            Step::Zero(done) => {
                let len = commit.plan.zero_next_area.map_or(0, |(_, len)| len);
                let done = done.saturating_add(ZERO_PIECE).min(len);
                if done < len {
                    Step::Zero(done)
                } else {
                    Step::Flush
                }
            }
            Step::Flush => Step::Write(0),
            Step::Write(at) => Step::Write(at + 1),
        };
        self.commit_step(id);
    }

    /// The entries are durable. Reads go to the COW from here on; those that
    /// already read the origin must end before anybody overwrites it.
    fn committed(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(commit) = snap.commit.take() else {
            return;
        };
        snap.metadata.apply_append(&commit.entries);
        let mut chunks = Vec::with_capacity(commit.entries.len());
        for entry in &commit.entries {
            snap.queue.pop_front();
            snap.queue_base += 1;
            if let Some(p) = snap.pending.get_mut(&entry.old) {
                p.published = true;
            }
            snap.shared.table.set(entry.old, entry.new, false);
            chunks.push(entry.old);
        }
        for chunk in &chunks {
            self.wake_pending(id, *chunk, |w| w != When::Settled);
        }
        chunks.sort_unstable();
        self.add_drain(Drain::SnapshotReads {
            snapshot: id,
            chunks,
        });
        self.watch_usage(id);
        self.tasks.push_back(Task::Commit(id));
    }

    /// The old reads have ended: origin writes may go.
    pub(super) fn settled(&mut self, id: SnapshotId, chunks: &[u64]) {
        for chunk in chunks {
            let Some(snap) = self.snaps.get_mut(&id) else {
                return;
            };
            if !snap.is_usable() {
                return;
            }
            if let Some(new) = snap.shared.table.get(*chunk).cow_chunk() {
                snap.shared.table.set(*chunk, new, true);
            }
            if !mutation::is(Mutation::CopyOutWaiterForgotten) {
                self.wake_pending(id, *chunk, |_| true);
            }
            if let Some(snap) = self.snaps.get_mut(&id) {
                snap.pending.remove(chunk);
            }
        }
    }

    fn wake_pending(&mut self, id: SnapshotId, chunk: u64, which: impl Fn(When) -> bool) {
        let Some(p) = self
            .snaps
            .get_mut(&id)
            .and_then(|s| s.pending.get_mut(&chunk))
        else {
            return;
        };
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut p.waiters)
            .into_iter()
            .partition(|(w, _)| which(*w));
        p.waiters = later;
        for (_, waiter) in now {
            self.wake(waiter);
        }
    }
}
