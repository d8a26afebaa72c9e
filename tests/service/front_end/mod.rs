//! The front end of `tests/restart/`, which keeps its rings while daemons come and go.
#![allow(dead_code, unsafe_code)]

#[path = "../../common"]
pub mod common {
    pub mod random;
    pub mod stamps;
    pub mod volume;
}

#[path = "../../restart/connection.rs"]
mod connection;
#[path = "../../restart/disk.rs"]
pub mod disk;
#[path = "../../restart/faults.rs"]
pub mod faults;
#[path = "../../restart/guest.rs"]
pub mod guest;
#[path = "../../restart/region.rs"]
mod region;
#[path = "../../restart/ring.rs"]
pub mod ring;
#[path = "../../restart/server.rs"]
mod server;
