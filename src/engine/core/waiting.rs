//! Waiting, without a thread that waits: requests and merge batches count what must
//! end before they are decided again; whatever ends wakes its waiters.

use super::Core;
use crate::engine::api::SnapshotId;

/// The number of a request off the fast path.
pub(super) type RequestId = usize;

/// Who is woken when something that was waited for has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// One of the request's waits has ended.
    Request(RequestId),
    /// A snapshot write's part in this chunk is to be looked at again.
    Part(RequestId, u64),
    /// One of this merge batch's waits has ended. By number: the lists of other
    /// snapshots may still name a batch that was given up, and this must not wake
    /// its successor.
    Batch(u64),
}

/// What [`Core::run`] has to do next.
#[derive(Debug)]
pub(super) enum Task {
    /// All waits of a request have ended.
    Request(RequestId),
    Part(RequestId, u64),
    /// All waits of this merge batch have ended.
    Batch(u64),
    Commit(SnapshotId),
    /// The store's record has something to list.
    Record(SnapshotId),
    /// There is room for copy-outs again.
    CopyRoom,
}

/// How many things must end before a request or a batch is decided again.
#[derive(Debug, Default)]
pub(super) struct Waits {
    left: u32,
    /// Its task is in the queue.
    queued: bool,
}

impl Waits {
    pub(super) fn add(&mut self, count: u32) {
        self.left += count;
    }

    fn end_one(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether its task is to be queued now: nothing is left, and it is not queued yet.
    fn queue(&mut self) -> bool {
        self.left == 0 && !std::mem::replace(&mut self.queued, true)
    }

    /// Its task is taken from the queue. False if it waits for something again.
    pub(super) fn take_turn(&mut self) -> bool {
        self.queued = false;
        self.left == 0
    }
}

impl Core {
    fn waits_of(&mut self, waiter: Waiter) -> Option<&mut Waits> {
        match waiter {
            Waiter::Request(id) => self.requests.get_mut(id).map(|r| r.waits()),
            // Counted by its request when it was parked.
            Waiter::Part(..) => None,
            Waiter::Batch(number) => self.merge.as_mut()?.waits_of_batch(number),
        }
    }

    pub(super) fn add_wait(&mut self, waiter: Waiter) {
        if let Some(waits) = self.waits_of(waiter) {
            waits.add(1);
        }
    }

    pub(super) fn wake(&mut self, waiter: Waiter) {
        if let Waiter::Part(id, chunk) = waiter {
            return self.tasks.push_back(Task::Part(id, chunk));
        }
        if let Some(waits) = self.waits_of(waiter) {
            waits.end_one();
        }
        self.look_again(waiter);
    }

    /// Queues the task of a waiter that waits for nothing, once.
    pub(super) fn look_again(&mut self, waiter: Waiter) {
        if !self.waits_of(waiter).is_some_and(Waits::queue) {
            return;
        }
        match waiter {
            Waiter::Request(id) => self.tasks.push_back(Task::Request(id)),
            Waiter::Part(..) => {}
            Waiter::Batch(number) => self.tasks.push_back(Task::Batch(number)),
        }
    }
}
