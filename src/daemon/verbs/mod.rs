//! What a client of the control socket can ask of a served volume.

pub mod grow;
pub mod merging;
pub mod resets;
pub mod rollback;
pub mod snapshots;
pub mod status;
pub mod vmm;
