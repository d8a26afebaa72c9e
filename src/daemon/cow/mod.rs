//! From a COW path to a store that the engine can use: first everything is examined;
//! when nothing can be refused any more, the file and the store are made.
//!
//! ```text
//!  prepare, handed ─► inspect ─► open, given, mark, size, record ─► origin, error
//! ```

pub mod error;
mod given;
mod handed;
mod inspect;
pub mod mark;
mod open;
mod origin;
mod prepare;
mod record;
mod size;

pub use given::Given;
pub use handed::HandedCow;
pub use inspect::{InspectedCow, Purpose, inspect};
pub use open::{OpenCow, clear_head};
pub use origin::OriginFacts;
pub use prepare::PreparedCow;
pub use record::{Fate, OpenRecord, RecordPlace, record_folders};
