//! The gate: requests that would be on the wrong side of a change wait here until it
//! has taken effect.

use super::ports::ControlCall;
use super::waiting::RequestId;
use crate::engine::api::{MergeWrites, SnapshotId, SnapshotStore};

/// A change that requests wait for, one at a time.
#[derive(Debug)]
pub(super) struct Gate {
    change: Change,
    call: ControlCall,
    /// Requests that came meanwhile.
    queue: Vec<RequestId>,
}

#[derive(Debug)]
pub(super) enum Change {
    /// A new snapshot. Only writes to origin views wait.
    Cut {
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    },
    /// Everything on the views of the origin and of this snapshot waits.
    Handover {
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    },
}

impl Gate {
    pub(super) const fn new(call: ControlCall, change: Change) -> Self {
        Self {
            change,
            call,
            queue: Vec::new(),
        }
    }

    /// The change, its control request, and the requests that wait.
    pub(super) fn open(self) -> (Change, ControlCall, Vec<RequestId>) {
        (self.change, self.call, self.queue)
    }

    pub(super) const fn change(&self) -> &Change {
        &self.change
    }

    pub(super) const fn port(&self) -> usize {
        self.call.port
    }

    pub(super) const fn is_cut(&self) -> bool {
        matches!(self.change, Change::Cut { .. })
    }

    /// A request waits for the change.
    pub(super) fn queue(&mut self, request: RequestId) {
        self.queue.push(request);
    }
}
