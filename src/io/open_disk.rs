//! The choice between io_uring and threads.

use std::io;
use std::sync::Arc;

use super::{Devices, Disk, ThreadDisk, UringDisk};

/// The interface to the kernel that a disk uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring, or threads where io_uring is missing or forbidden.
    #[default]
    Auto,
    IoUring,
    Threads,
}

/// A disk for one thread. `depth`: operations that the kernel works on at once
/// (threads: at most 8).
///
/// The disk belongs to the thread that calls [`Disk::reap`] first: move it there before
/// that call, and drop it there.
pub fn open_disk(
    engine: IoEngine,
    devices: Arc<Devices>,
    depth: u32,
) -> io::Result<Box<dyn Disk + Send>> {
    match engine {
        IoEngine::IoUring => Ok(Box::new(UringDisk::new(devices, depth)?)),
        IoEngine::Threads => Ok(Box::new(ThreadDisk::new(devices, depth)?)),
        IoEngine::Auto => match UringDisk::new(Arc::clone(&devices), depth) {
            Ok(disk) => Ok(Box::new(disk)),
            Err(e) => {
                tracing::warn!(
                    "io_uring cannot be used ({e}); using blocking threads, which are slower"
                );
                Ok(Box::new(ThreadDisk::new(devices, depth)?))
            }
        },
    }
}
