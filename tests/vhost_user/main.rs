//! A view served in-process, to a real driver and to hostile front ends.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod back_channel;
mod backend;
mod driver;
mod messages;
#[path = "../common/raw.rs"]
mod raw;
mod resumes;
mod rings;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;

use snapback::vhost::{ViewConfig, ViewServer, ViewSocket};
use snapback::virtio_blk::{BlkDevice, Capacity, Topology};

use backend::{CallLog, Volume};

pub const SECTORS: u64 = 16384;

/// A served view and what is behind it.
pub struct Served {
    pub server: ViewServer,
    pub volume: Arc<Volume>,
    pub call_log: Arc<CallLog>,
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

pub fn device() -> BlkDevice {
    BlkDevice {
        capacity: Capacity::new(SECTORS),
        topology: Topology::of_blocks(512),
        read_only: false,
        serial: "snapback-test".into(),
        num_queues: 4,
        max_discard_sectors: 4096,
    }
}

pub fn serve() -> Served {
    serve_device(device(), Volume::new(SECTORS))
}

pub fn serve_device(device: BlkDevice, volume: Arc<Volume>) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.sock");
    let call_log = CallLog::of(&volume);
    let config = ViewConfig {
        name: "test".into(),
        device,
        max_queues: 8,
        write_through: false,
        any_memory: false,
    };
    let socket = ViewSocket::bind(&path).unwrap();
    let server = ViewServer::start(socket, config, volume.clone(), call_log.clone()).unwrap();
    Served {
        server,
        volume,
        call_log,
        path,
        _folder: folder,
    }
}

/// Waits until `condition` holds; fails after ten seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed().as_secs() < 10,
            "not within ten seconds: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
