//! A guest with one queue and one buffer, over a real virtio-blk driver.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

const MEMORY: usize = 1 << 20;
pub const DISCARD: u64 = VirtioBlkFeatureFlags::DISCARD.bits();
pub const WRITE_ZEROES: u64 = VirtioBlkFeatureFlags::WRITE_ZEROES.bits();
const ZEROING: u64 = DISCARD | WRITE_ZEROES;

pub struct Guest {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, usize>,
    memory: MmapRegion<()>,
}

impl Guest {
    /// Connects as a new guest, whose rings start at 0.
    pub fn connect(path: &Path) -> Self {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | (VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::RO).bits()
            | ZEROING;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(path.to_str().unwrap(), features).unwrap());
        let mut queues: Vec<VirtioBlkQueue<'static, usize>> =
            VirtioBlkQueue::setup_queues(&mut *transport, 1, 128).unwrap();
        let mut queue = queues.remove(0);
        queue.set_used_notif_enabled(true);
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(fd);
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

    /// The device offers no writing.
    pub fn is_read_only(&self) -> bool {
        self.transport.get_features() & VirtioBlkFeatureFlags::RO.bits() != 0
    }

    /// The device's size.
    pub fn bytes(&self) -> usize {
        u64::from(self.transport.get_config().unwrap().capacity) as usize * 512
    }

    /// Notifies the device if it wants that.
    fn kick(&mut self) {
        if self.queue.avail_notif_needed() {
            self.transport.get_submission_notifier(0).notify().unwrap();
        }
    }

    /// The result of the request under way.
    pub fn wait(&mut self) -> i32 {
        self.kick();
        let event = self.transport.get_completion_fd(0);
        let start = Instant::now();
        loop {
            let done = self.queue.completions().map(|c| c.ret).next();
            if let Some(ret) = done {
                return ret;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no completion for 20 s"
            );
            let mut fds = [PollFd::new(&*event, PollFlags::IN)];
            let timeout = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&timeout)) == Ok(1) {
                event.read().unwrap();
            }
        }
    }

    /// The request under way has ended; then its result is taken.
    pub fn has_ended(&mut self) -> bool {
        self.queue.completions().next().is_some()
    }

    /// Submits a write; [`Self::wait`] has its result.
    pub fn begin_write(&mut self, sector: u64, data: &[u8]) {
        assert!(data.len() <= MEMORY);
        let pointer = self.memory.as_ptr();
        // SAFETY: within the mapping, which lives longer than the request.
        unsafe {
            pointer.copy_from(data.as_ptr(), data.len());
            self.queue
                .write_raw(sector * 512, pointer, data.len(), 0)
                .unwrap();
        }
        self.kick();
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> i32 {
        self.begin_write(sector, data);
        self.wait()
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Result<Vec<u8>, i32> {
        assert!(len <= MEMORY);
        let pointer = self.memory.as_ptr();
        // SAFETY: as in `write`.
        unsafe { self.queue.read_raw(sector * 512, pointer, len, 0).unwrap() };
        match self.wait() {
            0 => {
                let mut data = vec![0; len];
                // SAFETY: as in `write`.
                unsafe { pointer.copy_to(data.as_mut_ptr(), len) };
                Ok(data)
            }
            error => Err(error),
        }
    }

    /// Which of DISCARD and WRITE_ZEROES the view offers.
    pub fn offered(&self) -> u64 {
        self.transport.get_features() & ZEROING
    }

    pub fn discard(&mut self, sector: u64, sectors: u64) -> i32 {
        self.queue.discard(sector * 512, sectors * 512, 0).unwrap();
        self.wait()
    }

    pub fn write_zeroes(&mut self, sector: u64, sectors: u64) -> i32 {
        self.queue
            .write_zeroes(sector * 512, sectors * 512, true, 0)
            .unwrap();
        self.wait()
    }

    pub fn flush(&mut self) -> i32 {
        self.queue.flush(0).unwrap();
        self.wait()
    }

    /// Reads the whole disk of `bytes`.
    pub fn read_all(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes)
            .step_by(MEMORY)
            .flat_map(|at| self.read(at as u64 / 512, MEMORY).unwrap())
            .collect()
    }
}
