//! A change that was recorded and then failed in the engine.

use crate::daemon::state::{RollbackRecord, VolumeState};

/// What has to be removed from the state file again.
#[derive(Clone, Debug)]
pub struct Undo {
    /// The snapshot that was recorded and not taken.
    pub not_taken: Option<String>,
    /// The snapshot whose merge was recorded and did not begin.
    pub not_merged: Option<String>,
    /// The pending rollback that is restored.
    pub rollback: Option<RollbackRecord>,
}

impl Undo {
    pub fn apply(&self, state: &mut VolumeState) {
        if let Some(name) = &self.not_merged {
            state.merge.take_if(|m| m.snapshot == *name);
            if state.snapshot(name).is_some() {
                state.rollback_at_reset.clone_from(&self.rollback);
            }
        }
        if let Some(name) = &self.not_taken {
            state.drop_snapshot(name);
        }
    }
}
