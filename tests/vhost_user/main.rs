//! A view served in-process, to a real driver and to hostile front ends.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod back_channel;
mod backend;
mod dirty_log;
mod driver;
mod log_refusals;
mod messages;
#[path = "../common/raw.rs"]
mod raw;
mod resumes;
mod rings;
mod socket;
#[path = "../common/yardstick.rs"]
mod yardstick;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapback::vhost::{ViewConfig, ViewServer, ViewSocket};
use snapback::virtio_blk::{BlkDevice, Capacity, Topology};

use vhost::vhost_user::Frontend;

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

/// The view has ended the session.
pub fn has_hung_up(frontend: &Frontend) -> bool {
    // SAFETY: the descriptor lives as long as the front end.
    let fd = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}
