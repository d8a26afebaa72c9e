//! Control requests, and the changes at the gate, by kind.

use super::Core;
use super::gate::Change;
use super::ports::ControlCall;
use crate::engine::api::{ControlError, ControlRequest};
use crate::engine::failure::Failure;

/// When a control request that is not refused has ended.
enum Ends {
    Now,
    Later,
}

impl Core {
    pub(in crate::engine) fn control(&mut self, port: usize, id: u64, request: ControlRequest) {
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
                self.add_snapshot(call, snapshot, store)?;
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
                self.start_handover(call, snapshot, writes, follow)?;
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

    /// What the change at the gate must come after has ended.
    pub(super) fn gate_drained(&mut self) {
        match &self.gate {
            Some(gate) if gate.is_cut() => self.flush_cut(gate.port()),
            Some(_) => self.finish_change(Ok(())),
            None => {}
        }
    }

    /// Lets the change at the gate take effect, unless what comes before it failed.
    pub(super) fn finish_change(&mut self, before: Result<(), Failure>) {
        self.open_gate(|core, change| {
            before.map_err(ControlError::Io)?;
            match change {
                Change::Cut { snapshot, store } => {
                    core.install(snapshot, *store);
                    Ok(())
                }
                Change::Handover {
                    snapshot,
                    writes,
                    follow,
                } => core.hand_over(snapshot, writes, follow),
            }
        });
    }
}
