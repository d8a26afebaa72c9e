//! The volume without a daemon: the offline merge, and what state files say of a
//! store to the verbs that read or repair it.

pub mod doubts;
pub mod merge;
pub mod recorded;
