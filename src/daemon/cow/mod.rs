//! From a COW path to a store that the engine can use.

pub mod error;
mod inspect;
pub mod mark;
mod size;

pub use inspect::{
    InspectedCow, OpenCow, OriginFacts, PreparedCow, Purpose, clear_head, inspect, storage_of,
};
