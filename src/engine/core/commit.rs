//! Making exceptions durable, a group at a time.

use super::Core;
use super::accounting::IoPurpose;
use super::drains::Drain;
use super::record::Recorder;
use super::unsettled::When;
use super::waiting::Task;
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{AppendPlan, Entry, MetaWrite};

/// Zeroes are written in pieces of at most this many bytes.
const ZERO_PIECE: u64 = 1 << 20;

#[derive(Debug)]
pub(super) enum Step {
    /// Bytes of the next area zeroed so far.
    Zero(u64),
    Pad,
    Flush,
    Write,
    /// The entries are durable, and the record still lists some of them.
    Retire,
}

#[derive(Debug)]
pub(super) struct Commit {
    entries: Vec<Entry>,
    plan: AppendPlan,
    step: Step,
}

/// The step of a commit when the next area is zero, if it has to be.
const fn first_after_zeroes(plan: &AppendPlan) -> Step {
    if plan.padding.is_some() {
        Step::Pad
    } else {
        Step::Flush
    }
}

/// Where to write what.
fn content(write: &MetaWrite) -> (u64, OwnedBuffer) {
    let mut buffer = OwnedBuffer::zeroed(write.data.len());
    buffer.as_mut_slice().copy_from_slice(&write.data);
    (write.offset, buffer)
}

impl Core {
    /// The data of an allocated exception is written.
    pub(super) fn mark_ready(&mut self, id: SnapshotId, chunk: u64) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if !snap.unsettled.ready(chunk) {
            return;
        }
        if mutation::is(Mutation::OriginWriteBeforeEntry) {
            self.wake_waiters(id, chunk, When::Settled);
        }
        self.tasks.push_back(Task::Commit(id));
    }

    /// Makes a deferred exception visible to its own view before it is durable.
    pub(super) fn publish_early(&mut self, id: SnapshotId, chunk: u64) {
        if let Some(snap) = self.snaps.get_mut(&id)
            && snap.is_usable()
            && let Some(cow_chunk) = snap.unsettled.publish(chunk)
        {
            snap.shared.table.set(chunk, cow_chunk, false);
            self.wake_waiters(id, chunk, When::Published);
        }
    }

    /// Starts a commit if one is wanted and none runs. A group is what was
    /// allocated when the first of it was ready: later copies join the next one.
    pub(super) fn maybe_commit(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if snap.commit.is_some() || !snap.is_usable() {
            return;
        }
        let offered = snap.unsettled.next_group();
        if offered.is_empty() {
            return;
        }
        let plan = snap.metadata.plan_append(&offered);
        let entries: Vec<Entry> = offered.into_iter().take(plan.taken).collect();
        let step = if plan.zero_next_area.is_some() {
            Step::Zero(0)
        } else {
            first_after_zeroes(&plan)
        };
        let nothing_to_write = plan.write.is_none();
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

    /// Order: 1 the next area zeroed, if this fills one; the units before the last one
    /// padded, if there are several → 2 flush: data chunks, zeroes and padding durable →
    /// 3 the entries written, durable → 4 the record does not list them any more: a merge
    /// may remove them from the log, and a start would bring them back → 5 in memory.
    fn commit_step(&mut self, id: SnapshotId) {
        let port = self.acting;
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let device = snap.shared.device;
        let Some(commit) = &mut snap.commit else {
            return;
        };
        let mut purpose = IoPurpose::Commit { snapshot: id };
        let (write, durable) = match commit.step {
            Step::Zero(done) => {
                let (offset, len) = commit.plan.zero_next_area.unwrap_or_default();
                let piece = ZERO_PIECE.min(len.saturating_sub(done));
                let zeroes = OwnedBuffer::zeroed(usize::try_from(piece).unwrap_or(0));
                (Some((offset + done, zeroes)), false)
            }
            Step::Pad => {
                purpose = IoPurpose::Padding { snapshot: id };
                (commit.plan.padding.as_ref().map(content), false)
            }
            Step::Flush => (None, false),
            Step::Write => (commit.plan.write.as_ref().map(content), true),
            Step::Retire => return self.write_record(id),
        };
        self.issue(port, purpose, |tag| match write {
            None => Command::Flush { tag, device },
            Some((offset, buffer)) => Command::Write {
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
            // The content of the log on disk is unknown now: the store is not used again.
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
                    first_after_zeroes(&commit.plan)
                }
            }
            Step::Pad => Step::Flush,
            Step::Flush => Step::Write,
            Step::Write => {
                let durable = snap.metadata.entries().len() + commit.entries.len();
                let lists = |r: &mut Recorder| r.retire(durable as u64);
                if !snap.recorder.as_mut().is_some_and(lists)
                    || mutation::is(Mutation::RecordNotRetired)
                {
                    return self.committed(id);
                }
                Step::Retire
            }
            Step::Retire => return,
        };
        self.commit_step(id);
    }

    /// The record does not list the entries of the commit any more.
    pub(super) fn commit_retired(&mut self, id: SnapshotId) {
        let commit = self.snaps.get(&id).and_then(|s| s.commit.as_ref());
        if commit.is_some_and(|c| matches!(c.step, Step::Retire)) {
            self.committed(id);
        }
    }

    /// The entries are durable. Reads go to the COW from here on; those that already
    /// read the origin must end before a write changes it.
    fn committed(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(commit) = snap.commit.take() else {
            return;
        };
        snap.counts.commits += u64::from(commit.plan.write.is_some());
        snap.metadata.apply_append(&commit.entries);
        snap.unsettled.committed(&commit.entries);
        for entry in &commit.entries {
            snap.shared.table.set(entry.old, entry.new, false);
        }
        let mut chunks: Vec<u64> = commit.entries.iter().map(|e| e.old).collect();
        for chunk in &chunks {
            self.wake_waiters(id, *chunk, When::Committed);
        }
        chunks.sort_unstable();
        self.add_drain(Drain::SnapshotReads {
            snapshot: id,
            chunks,
        });
        self.watch_usage(id);
        self.tasks.push_back(Task::Commit(id));
    }

    /// The old reads have ended: origin writes may go on.
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
            let waiters = snap.unsettled.settled(*chunk);
            if mutation::is(Mutation::CopyOutWaiterForgotten) {
                continue;
            }
            for waiter in waiters {
                self.wake(waiter);
            }
        }
    }

    fn wake_waiters(&mut self, id: SnapshotId, chunk: u64, reached: When) {
        if let Some(snap) = self.snaps.get_mut(&id) {
            for waiter in snap.unsettled.take_waiters(chunk, reached) {
                self.wake(waiter);
            }
        }
    }
}
