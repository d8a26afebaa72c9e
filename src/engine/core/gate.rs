//! The gate: requests that would be on the wrong side of a change wait here until it
//! has taken effect.

use super::Core;
use super::ports::ControlCall;
use super::request::RequestId;
use super::waiting::Waiter;
use crate::engine::api::{ControlError, MergeWrites, SnapshotId, SnapshotStore};

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

impl Core {
    /// From here on requests wait for the change. The caller adds the drain that waits
    /// for the older ones.
    pub(super) fn close_gate(&mut self, call: ControlCall, change: Change) {
        self.gate = Some(Gate {
            change,
            call,
            queue: Vec::new(),
        });
        self.publish_views();
    }

    /// Lets the change take effect, answers the control request, and decides the
    /// requests that waited by the new state.
    pub(super) fn open_gate(
        &mut self,
        take_effect: impl FnOnce(&mut Self, Change) -> Result<(), ControlError>,
    ) {
        let Some(gate) = self.gate.take() else { return };
        let result = take_effect(self, gate.change);
        self.publish_views();
        self.control_done(gate.call, result);
        for request in gate.queue {
            self.look_again(Waiter::Request(request));
        }
    }
}
