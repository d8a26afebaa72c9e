//! The control socket: HTTP/1.1 and JSON over a Unix socket.
//!
//! [`api`] has the words, [`server`] and [`client`] the two ends, [`render`]
//! turns a status into what people and `dmsetup` scripts read.

pub mod api;
pub mod client;
pub mod events;
mod follow;
pub mod narrate;
pub mod render;
mod routes;
pub mod server;
mod socket;
mod utc;

pub use client::{Client, ClientError};
pub use server::ControlServer;
pub use socket::{BoundSocket as ControlSocket, SocketError};
