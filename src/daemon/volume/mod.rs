//! The volume while it is served: its parts, its views, and its events.

pub mod events;
mod live;
pub mod serials;
pub mod turns;
pub mod views;

pub use live::{LiveVolume, Merging, Snapshot, Tables, VolumeFacts, conflict, lock, not_recorded};
