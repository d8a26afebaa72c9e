//! Control requests by kind, and the way of a change through the gate.

use super::Core;
use super::drains::Drain;
use super::gate::{Change, Gate};
use super::ports::ControlCall;
use super::waiting::Waiter;
use crate::engine::api::{ControlError, ControlRequest};
use crate::engine::failure::Failure;

/// When a control request that is not refused has ended.
enum Ends {
    Now,
    Later,
}

impl Core {
    pub(super) fn control(&mut self, port: usize, id: u64, request: ControlRequest) {
        let call = ControlCall { port, id };
        match self.start_control(call, request) {
            Ok(Ends::Later) => {}
            Ok(Ends::Now) => self.control_done(call, Ok(())),
            Err(error) => self.control_done(call, Err(error)),
        }
    }

    fn start_control(
        &mut self,
        call: ControlCall,
        request: ControlRequest,
    ) -> Result<Ends, ControlError> {
        let ends = match request {
            ControlRequest::AddSnapshot { snapshot, store } => {
                let change = self.add_snapshot(snapshot, store)?;
                self.close_gate(call, change);
                Ends::Later
            }
            ControlRequest::RemoveSnapshot { snapshot, force } => {
                self.remove_snapshot(call, snapshot, force)?;
                Ends::Later
            }
            ControlRequest::Handover {
                snapshot,
                writes,
                follow,
            } => {
                let change = self.start_handover(snapshot, writes, follow)?;
                self.close_gate(call, change);
                Ends::Later
            }
            ControlRequest::Sync => {
                self.start_sync(call)?;
                Ends::Later
            }
            ControlRequest::PauseMerge => {
                self.pause_merge()?;
                Ends::Now
            }
            ControlRequest::ResumeMerge => {
                self.resume_merge()?;
                Ends::Now
            }
            ControlRequest::SetMergeWrites(writes) => {
                self.set_merge_writes(writes)?;
                Ends::Now
            }
            ControlRequest::InvalidRecorded { snapshot } => {
                self.invalid_recorded(snapshot);
                Ends::Now
            }
            ControlRequest::ResizeOrigin { sectors } => {
                self.resize_origin(sectors)?;
                Ends::Now
            }
            ControlRequest::Grow {
                snapshot,
                cow_sectors,
            } => {
                self.grow(snapshot, cow_sectors)?;
                Ends::Now
            }
        };
        Ok(ends)
    }

    // ---- the gate

    /// From here on requests wait for the change, until the older ones have ended.
    fn close_gate(&mut self, call: ControlCall, change: Change) {
        self.gate = Some(Gate::new(call, change));
        self.publish_views();
        self.add_drain(Drain::Gate);
    }

    /// What the change at the gate must come after has ended.
    pub(super) fn gate_drained(&mut self) {
        match &self.gate {
            Some(gate) if gate.is_cut() => {
                self.flush_cut(gate.port());
            }
            Some(_) => self.open_gate(Ok(())),
            None => {}
        }
    }

    /// Step 3 of a cut has ended.
    pub(super) fn cut_flushed(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.origin_flush_failed(failure);
        }
        // A flush before this one failed: what that covered may be lost.
        let flushed = self.flush_lost(None).map_or(Ok(()), Err);
        self.open_gate(flushed);
    }

    /// Lets the change take effect, unless what comes before it failed; answers the
    /// control request, and decides the requests that waited by the new state.
    fn open_gate(&mut self, before: Result<(), Failure>) {
        let Some(gate) = self.gate.take() else { return };
        let (change, call, queue) = gate.open();
        let result = match before {
            Ok(()) => self.take_effect(change),
            Err(failure) => Err(ControlError::Io(failure)),
        };
        self.publish_views();
        self.control_done(call, result);
        for request in queue {
            self.look_again(Waiter::Request(request));
        }
    }

    fn take_effect(&mut self, change: Change) -> Result<(), ControlError> {
        match change {
            Change::Cut { snapshot, store } => {
                self.install(snapshot, *store);
                Ok(())
            }
            Change::Handover {
                snapshot,
                writes,
                follow,
            } => self.hand_over(snapshot, writes, follow),
        }
    }
}
