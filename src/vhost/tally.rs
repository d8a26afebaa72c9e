//! What a worker counts: requests are noted as they are answered, and counted at once, right
//! before their answers are published. So the clock is read once for all that are published
//! together, and a guest that sees an answer finds it counted.

use std::sync::Arc;
use std::time::Instant;

use super::counters::{ErrorCause, Operation, QueueCounters};
use crate::units::SECTOR_SIZE;
use crate::virtio_blk::{Action, BlkRequest, BlkStatus};

/// What is counted of a request once it ends.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// When it was taken, in nanoseconds of the worker's life.
    taken: u64,
    /// What it transfers if it succeeds.
    sectors: u32,
    operation: Operation,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(ErrorCause),
}

impl Outcome {
    /// For a request that was refused with `code`.
    pub const fn refused(code: BlkStatus) -> Self {
        Self::Failed(match code {
            BlkStatus::Unsupported => ErrorCause::Unsupported,
            BlkStatus::IoErr | BlkStatus::Ok => ErrorCause::Invalid,
        })
    }

    /// The status byte.
    pub const fn code(self) -> BlkStatus {
        match self {
            Self::Done => BlkStatus::Ok,
            Self::Failed(ErrorCause::Io | ErrorCause::Invalid) => BlkStatus::IoErr,
            Self::Failed(ErrorCause::Unsupported) => BlkStatus::Unsupported,
        }
    }
}

/// See the module documentation.
pub struct Tally {
    counters: Arc<QueueCounters>,
    birth: Instant,
    /// When the last requests were taken.
    taken: u64,
    /// Requests that are answered and not counted.
    ended: Vec<Begun>,
}

impl Tally {
    pub fn new(counters: Arc<QueueCounters>, most: usize) -> Self {
        Self {
            counters,
            birth: Instant::now(),
            taken: 0,
            ended: Vec::with_capacity(most),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.birth.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Requests have been taken from the ring.
    pub fn takes(&mut self) {
        self.taken = self.now();
    }

    /// One of the requests that were taken last.
    pub fn begun(&self, request: &BlkRequest) -> Begun {
        let (operation, first) = sectors(request.action);
        let later = request.later.iter().map(|action| sectors(*action).1);
        let all = later.fold(first, u64::saturating_add);
        Begun {
            taken: self.taken,
            // What a request may have is far less.
            sectors: u32::try_from(all).unwrap_or(u32::MAX),
            operation,
        }
    }

    /// One of them that is refused.
    pub const fn refused(&self) -> Begun {
        Begun {
            taken: self.taken,
            sectors: 0,
            operation: Operation::Other,
        }
    }

    /// A request is answered.
    pub fn answered(&mut self, begun: Begun, outcome: Outcome) {
        let mut begun = begun;
        if let Outcome::Failed(cause) = outcome {
            self.counters.failed(begun.operation, cause);
            begun.sectors = 0;
        }
        self.ended.push(begun);
    }

    /// Counts what was answered. `published`: the answers are published next; otherwise nobody
    /// will see them, and they do not count. So many requests are still `under_way`.
    // A function of its own, so that the test of costs finds it.
    #[inline(never)]
    pub fn count_answered(&mut self, published: bool, under_way: usize) {
        if self.ended.is_empty() {
            return;
        }
        let now = self.now();
        for ended in self.ended.drain(..) {
            if published {
                let nanoseconds = now.saturating_sub(ended.taken);
                let bytes = u64::from(ended.sectors) * SECTOR_SIZE;
                self.counters.ended(ended.operation, bytes, nanoseconds);
            }
        }
        self.set_in_flight(under_way);
    }

    /// So many requests are under way.
    pub fn set_in_flight(&self, requests: usize) {
        self.counters.set_in_flight(requests);
    }

    /// The ring has been stopped.
    pub fn ring_fault(&self) {
        self.counters.ring_fault();
    }
}

impl Drop for Tally {
    /// What the worker has not ended is not under way any more.
    fn drop(&mut self) {
        self.counters.set_in_flight(0);
    }
}

const fn sectors(action: Action) -> (Operation, u64) {
    match action {
        Action::Read { sectors, .. } => (Operation::Read, sectors),
        Action::Write { sectors, .. } => (Operation::Write, sectors),
        Action::WriteZeroes { sectors, .. } => (Operation::WriteZeroes, sectors),
        Action::Discard { sectors, .. } => (Operation::Discard, sectors),
        Action::Flush => (Operation::Flush, 0),
        Action::GetId => (Operation::GetId, 0),
    }
}
