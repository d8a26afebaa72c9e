//! What a client of the control socket can ask of a served volume, and the rollback
//! that a guest's reset triggers.
//!
//! ```text
//!  api ─► by_vmm, at_reset ─► rollback ─► handover ─► create ─► undo
//!    ├──► merge ────────────────────────────┘
//!    └──► remove ─► detach; grow, resize, release, status
//! ```

mod api;
mod at_reset;
mod by_vmm;
mod create;
mod detach;
mod grow;
mod handover;
mod merge;
mod release;
mod remove;
mod resize;
mod rollback;
mod status;
mod undo;
