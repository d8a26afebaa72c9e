//! The main thread of a daemon, from the end of the start to the stop.
//!
//! ```text
//!  run ─► stop, signals, manager, notices ─► merge_end
//!  event_launcher ─► event_command ─► lines
//! ```

pub mod event_command;
pub mod event_launcher;
mod lines;
pub mod manager;
mod merge_end;
pub mod notices;
pub mod run;
pub mod signals;
pub mod stop;
