//! The main thread of a daemon, from the start's end to the stop.

pub mod notices;
pub mod run;
pub mod signals;
