//! The state file: what a volume remembers from one daemon to the next.

mod file;
mod home;
pub mod place;
mod replace;

pub use file::{
    MarkedAs, MergeRecord, OpenedState, RollbackRecord, SnapshotRecord, StateError, StateFile,
    StoppedGuest, VolumeState, WritePolicy,
};
pub use home::Home;
pub use replace::FileError;
