//! Whether the origin and the COWs are what the state file records: their marks, and what
//! the comparison with the state file shows.
//!
//! ```text
//!  origin, cow_verdict ─► placement ─► marks ◄─ marking        golden
//! ```

pub mod cow_verdict;
pub mod golden;
pub mod marking;
pub mod marks;
pub mod origin;
pub mod placement;
