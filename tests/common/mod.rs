//! For tests over the daemon's binary: the daemon, guests, and what the guests
//! know of their disks.

pub mod cut;
pub mod failed;
pub mod guest;
pub mod load;
pub mod random;
pub mod stamps;
pub mod volume;
