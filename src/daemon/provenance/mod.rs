//! Whether the origin and the COWs are what the state file remembers: their marks,
//! and what the comparison with the state file shows.

pub mod cow_verdict;
pub mod golden;
pub mod marking;
pub mod marks;
pub mod standing;
