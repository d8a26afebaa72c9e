//! The volume while it is served: its parts, its views, its events and its pending
//! rollback.
//!
//! ```text
//!  events, pending ─► live ─► views, undo, left_over, notice_barrier, farewell ─► early, reset_rule, serials
//! ```

pub mod early;
pub mod events;
mod farewell;
pub mod left_over;
mod live;
pub mod notice_barrier;
mod pending;
pub mod reset_rule;
pub mod serials;
pub mod undo;
pub mod views;

pub use live::{
    LiveVolume, Merging, RETRY, Service, Snapshot, Tables, VolumeFacts, conflict, lock,
    lock_within, not_recorded,
};
