//! The control socket: HTTP/1.1 and JSON over a Unix socket.
//!
//! [`api`] has the types, [`server`] and [`client`] are the two ends, [`events`] is the log,
//! and [`render`], [`bar`] and [`narrate`] turn a status and events into text.

pub mod access;
pub mod api;
pub mod bar;
pub mod client;
pub mod events;
mod follow;
mod guest_requests;
mod malformed;
pub mod metrics;
mod metrics_server;
pub mod narrate;
mod openapi;
pub mod operations;
mod passing;
mod peer;
pub mod problem;
mod query;
pub mod registry;
pub mod render;
mod reply;
mod routes;
mod scrape;
pub mod server;
mod socket;
pub mod socket_status;
pub mod table;
pub mod utc;
mod verbs;
pub mod view_io;

pub use client::{Client, ClientError};
pub use metrics_server::MetricsServer;
pub use server::ControlServer;
pub use socket::{BoundSocket as ControlSocket, SocketError};
pub use utc::rfc3339;
