//! The start: options and state file become a plan, files and sockets are opened and
//! checked, stores are made, and the volume is served.
//!
//! ```text
//!  serve ─► incoming, metrics
//!    └────► confine ─► access, sockets
//!    └────► build ─► preflight ─► cow_check, sockets ─► plan ─► origin_check ─► options
//!                        └─────► missing_state              sockets ─► inherited, listing
//!                        └─────► blocks, access
//!  look ─► preflight, access, sockets, listing
//! ```

mod access;
pub mod blocks;
pub mod build;
pub mod confine;
mod cow_check;
mod incoming;
pub mod inherited;
mod listing;
pub mod look;
mod metrics;
mod missing_state;
pub mod options;
mod origin_check;
mod plan;
pub mod preflight;
pub mod serve;
pub mod sockets;
