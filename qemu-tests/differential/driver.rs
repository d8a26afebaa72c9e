//! A guest without a machine: a virtio-blk driver on a view's socket.
#![allow(unsafe_code, reason = "the driver's requests point into shared memory")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

use super::SECTOR;
use super::model::Extent;
use crate::content;

/// Bytes that all requests at once may have.
const MEMORY: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Driver {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, usize>,
    memory: MmapRegion<()>,
}

impl Driver {
    pub fn connect(socket: &Path) -> Self {
        let features = VirtioFeatureFlags::VERSION_1.bits() | VirtioBlkFeatureFlags::FLUSH.bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap());
        let mut queues: Vec<VirtioBlkQueue<'static, usize>> =
            VirtioBlkQueue::setup_queues(&mut *transport, 1, 128).unwrap();
        let mut queue = queues.remove(0);
        queue.set_used_notif_enabled(true);
        let file = File::from(
            rustix::fs::memfd_create("driver", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.set_len(MEMORY as u64).unwrap();
        let fd = file.as_raw_fd();
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY).unwrap();
        transport
            .map_mem_region(memory.as_ptr() as usize, MEMORY, fd, 0)
            .unwrap();
        Self {
            transport,
            queue,
            memory,
        }
    }

    /// Writes all at once; whether every one succeeded. The content is that of
    /// the write's number.
    pub fn write(&mut self, seed: u64, writes: &[(Extent, u64)]) -> bool {
        let mut at = 0;
        for (extent, number) in writes {
            let mut data = vec![0; extent.count as usize * SECTOR];
            for (sector, target) in (extent.sector..).zip(data.chunks_exact_mut(SECTOR)) {
                content::put(target, seed, sector, *number);
            }
            assert!(at + data.len() <= MEMORY, "a burst is too long");
            // SAFETY: the range is inside the mapping, which outlives the request,
            // and no other request uses it.
            unsafe {
                let target = self.memory.as_ptr().add(at);
                target.copy_from(data.as_ptr(), data.len());
                self.queue
                    .write_raw(extent.sector * SECTOR as u64, target, data.len(), 0)
                    .unwrap();
            }
            at += data.len();
        }
        self.wait(writes.len())
    }

    /// The whole disk of `sectors`; `None` if any read fails.
    pub fn read(&mut self, sectors: u64) -> Option<Vec<u8>> {
        let mut all = vec![0; sectors as usize * SECTOR];
        for (number, target) in all.chunks_mut(MEMORY).enumerate() {
            let pointer = self.memory.as_ptr();
            // SAFETY: inside the mapping, and nothing else is on its way.
            unsafe {
                self.queue
                    .read_raw((number * MEMORY) as u64, pointer, target.len(), 0)
                    .unwrap();
            }
            if !self.wait(1) {
                return None;
            }
            // SAFETY: the request has ended.
            unsafe { pointer.copy_to(target.as_mut_ptr(), target.len()) };
        }
        Some(all)
    }

    pub fn flush(&mut self) -> bool {
        self.queue.flush(0).unwrap();
        self.wait(1)
    }

    /// Waits for `count` requests; whether all succeeded.
    fn wait(&mut self, count: usize) -> bool {
        if self.queue.avail_notif_needed() {
            self.transport.get_submission_notifier(0).notify().unwrap();
        }
        let event = self.transport.get_completion_fd(0);
        let deadline = Instant::now() + PATIENCE;
        let mut results = Vec::new();
        while results.len() < count {
            results.extend(self.queue.completions().map(|c| c.ret));
            if results.len() < count {
                assert!(Instant::now() < deadline, "a request hangs in snapback");
                let second = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                let mut fds = [PollFd::new(&*event, PollFlags::IN)];
                if poll(&mut fds, Some(&second)) == Ok(1) {
                    event.read().unwrap();
                }
            }
        }
        results.iter().all(|result| *result == 0)
    }
}
