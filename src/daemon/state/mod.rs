//! The state file: what is recorded of a volume from one daemon to the next.
//!
//! ```text
//!  place ─► file ─► home ─► record
//!             └───► replace
//! ```

mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod home;
pub mod place;
mod record;
mod replace;

pub use file::{OpenedState, StateError, StateFile};
pub use home::Home;
pub use record::{
    AccessRecord, BlockSizes, MarkedAs, MergeRecord, RollbackRecord, SnapshotRecord, StoppedGuest,
    VolumeState, WritePolicy,
};
pub use replace::FileError;
