//! The volume without a daemon: the merge, and what state files record of a store, for the
//! verbs that read or repair it.

pub mod doubts;
pub mod merge;
pub mod recorded;
