//! The start: options and state file become a plan, files and sockets are opened
//! and checked, stores are prepared, and the volume is served.

pub mod inherited;
pub mod lost;
pub mod options;
pub mod origin_check;
pub mod plan;
pub mod preflight;
pub mod serve;
