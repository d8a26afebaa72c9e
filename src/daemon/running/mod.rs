//! The main thread of a daemon, from the end of the start to the stop.
//!
//! ```text
//!  run ─► stop, signals, notices ─► merge_end
//! ```

pub mod event_command;
mod merge_end;
pub mod notices;
pub mod run;
pub mod signals;
pub mod stop;
