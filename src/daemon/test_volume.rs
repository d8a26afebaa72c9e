//! A served volume without guests, for tests. The test takes the place of the main thread.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::running::notices::Notices;
use super::start::build::build_volume;
use super::start::confine::check;
use super::start::options::ServeOptions;
use super::start::serve::start_serving;
use super::volume::{LiveVolume, Service};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::io::IoEngine;

/// Serves a new disk of 1 MiB in `folder`, without a control server.
pub fn serve(folder: &Path) -> (Arc<LiveVolume>, Notices) {
    let path = |name: &str| folder.join(name);
    std::fs::write(path("disk.img"), vec![7; 1 << 20]).unwrap();
    let options = ServeOptions {
        origin: path("disk.img"),
        num_queues: 1,
        control: Some(path("c.sock")),
        io_engine: IoEngine::Threads,
        polling: Duration::ZERO,
        ..ServeOptions::default()
    };
    let mut checked = check(&options, &[], None).unwrap();
    let sockets = std::mem::take(&mut checked.sockets);
    let (volume, mut notices, prepared) = build_volume(&options, checked, Service::Daemon).unwrap();
    let control = start_serving(&volume, prepared, sockets, &mut notices).unwrap();
    drop(control);
    (volume, notices)
}

/// A snapshot with a new COW and a socket in `folder`.
pub fn spec(folder: &Path, name: &str) -> SnapshotSpec {
    let path = |name: String| folder.join(name).display().to_string();
    SnapshotSpec {
        name: name.into(),
        cow: path(format!("{name}.cow")),
        store_type: StoreType::P,
        chunk_size: None,
        size: Some(1 << 20),
        socket: Some(path(format!("{name}.sock"))),
        discard_zeroes_cow: None,
        defer_entries: None,
        discard_passdown_origin: None,
        read_only: None,
    }
}
