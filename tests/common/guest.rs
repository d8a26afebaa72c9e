//! A guest with several queues and requests in flight, over a real virtio-blk
//! driver. Each slot has a part of the guest's memory and one request at a time.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags, iovec,
};
use vm_memory::{FileOffset, MmapRegion};

/// Largest request in bytes.
pub const REQUEST_MAX: usize = 1 << 20;
/// Room of one slot: a request may begin anywhere in its first page.
const SLOT_BYTES: usize = REQUEST_MAX + 4096;
/// A daemon that does not answer for this long is wedged.
const WEDGED: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// Of zeroes, without data; `cut` > 0: the space may be given back.
    Zero,
    Discard,
    Flush,
}

impl Kind {
    pub const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Discard)
    }
}

/// One request of a slot.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub kind: Kind,
    pub sector: u64,
    /// Bytes of data, at most `REQUEST_MAX`.
    pub len: usize,
    /// Where in the slot's memory the data begins, up to 4096.
    pub offset: usize,
    /// Where the data is cut into two segments; 0 or `len`: it is not.
    pub cut: usize,
}

struct Connection {
    transport: Box<VirtioBlkTransport>,
    memory: MmapRegion<()>,
}

/// Some of the queues of one front end.
pub struct Guest {
    connection: Arc<Connection>,
    /// With their numbers.
    queues: Vec<(usize, VirtioBlkQueue<'static, usize>)>,
    first_slot: usize,
    slots: usize,
}

impl Guest {
    /// Connects as a new guest. `slots` is for each queue, at most 32.
    pub fn connect(path: &Path, queues: usize, slots: usize) -> Self {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | (VirtioBlkFeatureFlags::FLUSH
                | VirtioBlkFeatureFlags::MQ
                | VirtioBlkFeatureFlags::DISCARD
                | VirtioBlkFeatureFlags::WRITE_ZEROES)
                .bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(path.to_str().unwrap(), features).unwrap());
        let mut all: Vec<VirtioBlkQueue<'static, usize>> =
            VirtioBlkQueue::setup_queues(&mut *transport, queues, 128).unwrap();
        for queue in &mut all {
            queue.set_used_notif_enabled(true);
        }
        let slots = queues * slots;
        let len = slots * SLOT_BYTES;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(fd);
        file.set_len(len as u64).unwrap();
        let fd = file.as_raw_fd();
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
        transport
            .map_mem_region(memory.as_ptr() as usize, len, fd, 0)
            .unwrap();
        Self {
            connection: Arc::new(Connection { transport, memory }),
            queues: all.into_iter().enumerate().collect(),
            first_slot: 0,
            slots,
        }
    }

    /// One guest for each queue, for threads of their own.
    pub fn split(self) -> Vec<Self> {
        let slots = self.slots / self.queues.len();
        self.queues
            .into_iter()
            .enumerate()
            .map(|(i, queue)| Self {
                connection: self.connection.clone(),
                queues: vec![queue],
                first_slot: i * slots,
                slots,
            })
            .collect()
    }

    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The device's size in sectors.
    pub fn sectors(&self) -> u64 {
        u64::from(self.connection.transport.get_config().unwrap().capacity)
    }

    /// The memory of a slot that has no request in flight.
    pub fn memory(&mut self, slot: usize) -> &mut [u8] {
        assert!(slot < self.slots);
        let start = (self.first_slot + slot) * SLOT_BYTES;
        // SAFETY: within the mapping, which `self` keeps; slots do not overlap, and
        // the daemon does not touch a slot that has no request in flight.
        unsafe {
            std::slice::from_raw_parts_mut(self.connection.memory.as_ptr().add(start), SLOT_BYTES)
        }
    }

    /// Queues a request for a slot that has none; [`kick`](Self::kick) sends it.
    pub fn submit(&mut self, slot: usize, ask: &Ask) {
        assert!(ask.len <= REQUEST_MAX && ask.offset <= SLOT_BYTES - REQUEST_MAX);
        let start = self.memory(slot)[ask.offset..].as_mut_ptr();
        let cut = if ask.cut == 0 { ask.len } else { ask.cut };
        let part = |from: usize, len: usize| iovec {
            iov_base: start.wrapping_add(from).cast(),
            iov_len: len,
        };
        let parts = [part(0, cut), part(cut, ask.len - cut)];
        let count = if cut < ask.len { 2 } else { 1 };
        let index = slot % self.queues.len();
        let queue = &mut self.queues[index].1;
        let place = ask.sector * 512;
        // SAFETY: the parts lie within the slot's memory, which nobody uses until
        // the completion.
        let queued = unsafe {
            match ask.kind {
                Kind::Read => queue.readv(place, parts.as_ptr(), count, slot),
                Kind::Write => queue.writev(place, parts.as_ptr(), count, slot),
                Kind::Zero => queue.write_zeroes(place, ask.len as u64, ask.cut > 0, slot),
                Kind::Discard => queue.discard(place, ask.len as u64, slot),
                Kind::Flush => queue.flush(slot),
            }
        };
        queued.unwrap();
    }

    /// Tells the daemon of all queued requests.
    pub fn kick(&mut self) {
        for (number, queue) in &mut self.queues {
            if queue.avail_notif_needed() {
                let notifier = self.connection.transport.get_submission_notifier(*number);
                notifier.notify().unwrap();
            }
        }
    }

    /// Adds what has completed to `done`: slots with 0 or a negative errno.
    pub fn reap(&mut self, done: &mut Vec<(usize, i32)>) {
        for (_, queue) in &mut self.queues {
            done.extend(queue.completions().map(|c| (c.context, c.ret)));
        }
    }

    /// As `reap`, but sleeps up to `timeout` for the first completion.
    pub fn reap_within(&mut self, done: &mut Vec<(usize, i32)>, timeout: Duration) {
        let start = Instant::now();
        loop {
            self.reap(done);
            let left = timeout.saturating_sub(start.elapsed());
            if !done.is_empty() || left.is_zero() {
                return;
            }
            let events: Vec<_> = self
                .queues
                .iter()
                .map(|(number, _)| self.connection.transport.get_completion_fd(*number))
                .collect();
            let mut fds: Vec<_> = events
                .iter()
                .map(|event| PollFd::new(&**event, PollFlags::IN))
                .collect();
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut fds, Some(&timeout)) {
                // A wait that was interrupted is one that ended early.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("{error}"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (event, _) in events.iter().zip(ready).filter(|(_, ready)| *ready) {
                event.read().unwrap();
            }
        }
    }

    /// As `reap`, for at least one completion.
    pub fn wait(&mut self, done: &mut Vec<(usize, i32)>) {
        self.reap_within(done, WEDGED);
        assert!(!done.is_empty(), "no completion for {WEDGED:?}");
    }

    /// Reads the whole disk in order; `look` gets the first sector and the data.
    pub fn read_all(&mut self, mut look: impl FnMut(u64, &[u8])) {
        let (sectors, step) = (self.sectors(), REQUEST_MAX as u64 / 512);
        let depth = self.slots.min(4);
        let mut next = 0;
        while next < sectors {
            let mut asks = Vec::new();
            for slot in 0..depth {
                let len = step.min(sectors - next) as usize * 512;
                if len == 0 {
                    break;
                }
                let ask = Ask {
                    kind: Kind::Read,
                    sector: next,
                    len,
                    offset: 0,
                    cut: 0,
                };
                self.submit(slot, &ask);
                asks.push(ask);
                next += len as u64 / 512;
            }
            self.all(asks.len());
            for (slot, ask) in asks.iter().enumerate() {
                look(ask.sector, &self.memory(slot)[..ask.len]);
            }
        }
    }

    /// Sends what is queued and waits for `count` completions, all of them good.
    pub fn all(&mut self, count: usize) {
        self.kick();
        let mut ended = 0;
        let mut done = Vec::new();
        while ended < count {
            self.wait(&mut done);
            for (slot, ret) in done.drain(..) {
                assert_eq!(ret, 0, "slot {slot}");
                ended += 1;
            }
        }
    }
}
