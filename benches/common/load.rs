//! The load generator: a virtio-blk driver in a thread of its own, which keeps a number
//! of requests in flight.
// `virtio-driver` takes raw pointers to the memory of requests.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CpuSet, sched_setaffinity};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags, iovec,
};
use vm_memory::{FileOffset, MmapRegion};

use super::random::Random;

/// Descriptors of a queue. A request uses three, so 170 requests fit.
const QUEUE_SIZE: u16 = 512;
/// Between two questions whether a load goes on.
const ASK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// Of ten requests, seven read and three write.
    Mixed,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

/// Where the requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere, until the time is over.
    Random,
    /// One request for every `u64` bytes, in a permuted order.
    OnceEvery(u64),
    /// In order, once.
    InOrder,
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub kind: Kind,
    pub place: Place,
    /// Bytes of a request.
    pub block: u64,
    /// Requests in flight in each queue.
    pub depth: usize,
    pub queues: usize,
    /// The driver polls for completions. Otherwise it sleeps, as a guest does.
    pub polls: bool,
    /// How long requests go to random places.
    pub time: Duration,
}

/// What a load has measured.
pub struct Outcome {
    pub requests: u64,
    pub time: Duration,
    /// Nanoseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }

    /// Microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        self.latency.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// Lets the calling thread run on one processor only, if there are several.
pub fn pin(cpu: usize) {
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > cpu) {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).unwrap();
    }
}

/// The offsets of a job's requests.
enum Offsets {
    Random {
        random: Random,
        block: u64,
        blocks: u64,
    },
    List(std::vec::IntoIter<u64>),
}

impl Offsets {
    fn new(job: &Job, size: u64) -> Self {
        let block = job.block;
        let mut random = Random::new(size ^ block);
        match job.place {
            Place::Random => Self::Random {
                random,
                block,
                blocks: size / block,
            },
            Place::InOrder => Self::List(
                (0..size / block)
                    .map(|i| i * block)
                    .collect::<Vec<_>>()
                    .into_iter(),
            ),
            Place::OnceEvery(step) => {
                let inside = step / block;
                let mut list: Vec<u64> = (0..size / step)
                    .map(|i| i * step + random.below(inside) * block)
                    .collect();
                for i in (1..list.len()).rev() {
                    list.swap(i, random.below(i as u64 + 1) as usize);
                }
                Self::List(list.into_iter())
            }
        }
    }

    fn next(&mut self) -> Option<u64> {
        match self {
            Self::Random {
                random,
                block,
                blocks,
            } => Some(random.below(*blocks) * *block),
            Self::List(list) => list.next(),
        }
    }
}

/// A connected front end.
struct Driver {
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, (usize, Instant)>>,
    memory: MmapRegion<()>,
    block: usize,
}

impl Driver {
    fn connect(socket: &Path, job: &Job) -> Self {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | (VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::MQ).bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap());
        let mut queues =
            VirtioBlkQueue::setup_queues(&mut *transport, job.queues, QUEUE_SIZE).unwrap();
        for queue in &mut queues {
            queue.set_used_notif_enabled(!job.polls);
        }
        let block = job.block as usize;
        let len = block * job.depth * job.queues;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(fd);
        file.set_len(len as u64).unwrap();
        let fd = file.as_raw_fd();
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
        let region = (memory.as_ptr() as usize, len);
        transport.map_mem_region(region.0, region.1, fd, 0).unwrap();
        // SAFETY: the mapping is `len` bytes long, and no request is in flight.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), len) };
        let mut random = Random::new(7);
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        Self {
            transport,
            queues,
            memory,
            block,
        }
    }

    fn size(&self) -> u64 {
        u64::from(self.transport.get_config().unwrap().capacity) * 512
    }

    fn submit(&mut self, slot: usize, write: bool, offset: u64) {
        let at = self.queues.len();
        let queue = &mut self.queues[slot % at];
        let data = iovec {
            // Slot after slot in one mapping, which is long enough for all of them.
            iov_base: self.memory.as_ptr().wrapping_add(slot * self.block).cast(),
            iov_len: self.block,
        };
        let context = (slot, Instant::now());
        // SAFETY: the memory of a slot belongs to its only request until it completes.
        let queued = unsafe {
            if write {
                queue.writev(offset, &raw const data, 1, context)
            } else {
                queue.readv(offset, &raw const data, 1, context)
            }
        };
        queued.unwrap();
    }

    fn kick(&mut self) {
        for (number, queue) in self.queues.iter_mut().enumerate() {
            if queue.avail_notif_needed() {
                let notifier = self.transport.get_submission_notifier(number);
                notifier.notify().unwrap();
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<(usize, Instant)>) {
        for queue in &mut self.queues {
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0, "a request failed");
                done.push(completion.context);
            }
        }
    }

    /// Sleeps until the back end signals a completion.
    fn sleep(&self) {
        let events: Vec<_> = (0..self.queues.len())
            .map(|number| self.transport.get_completion_fd(number))
            .collect();
        let mut fds: Vec<_> = events
            .iter()
            .map(|event| PollFd::new(&**event, PollFlags::IN))
            .collect();
        let limit = rustix::event::Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        assert_ne!(
            poll(&mut fds, Some(&limit)),
            Ok(0),
            "no completion for 30 s"
        );
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (event, _) in events.iter().zip(ready).filter(|(_, ready)| *ready) {
            event.read().unwrap();
        }
    }
}

/// Runs a job against the device at `socket`, on processor 1.
pub fn run(socket: &Path, job: &Job) -> Outcome {
    run_while(socket, job, || true)
}

/// As [`run`], but makes no new requests once `goes_on` returns false; it is asked now and
/// then.
pub fn run_while(socket: &Path, job: &Job, goes_on: impl FnMut() -> bool + Send) -> Outcome {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            pin(1);
            Load::new(socket, job).run(goes_on)
        });
        load.join().expect("the load")
    })
}

struct Load<'a> {
    job: &'a Job,
    driver: Driver,
    offsets: Offsets,
    random: Random,
    in_flight: usize,
    outcome: Outcome,
}

impl<'a> Load<'a> {
    fn new(socket: &Path, job: &'a Job) -> Self {
        let driver = Driver::connect(socket, job);
        let offsets = Offsets::new(job, driver.size());
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        Self {
            job,
            driver,
            offsets,
            random: Random::new(1),
            in_flight: 0,
            outcome: Outcome {
                requests: 0,
                time: Duration::ZERO,
                latency,
            },
        }
    }

    /// False at the end of the offsets.
    fn next(&mut self, slot: usize) -> bool {
        let Some(offset) = self.offsets.next() else {
            return false;
        };
        let write = match self.job.kind {
            Kind::Read => false,
            Kind::Write => true,
            Kind::Mixed => self.random.below(10) >= 7,
        };
        self.driver.submit(slot, write, offset);
        self.in_flight += 1;
        true
    }

    fn run(mut self, mut goes_on: impl FnMut() -> bool) -> Outcome {
        let start = Instant::now();
        let end = start + self.job.time;
        let mut ask = start + ASK_EVERY;
        let mut open = true;
        for slot in 0..self.job.depth * self.job.queues {
            open = open && self.next(slot);
        }
        self.driver.kick();
        let mut done = Vec::new();
        while self.in_flight > 0 {
            self.driver.reap(&mut done);
            if done.is_empty() {
                if self.job.polls {
                    std::hint::spin_loop();
                } else {
                    self.driver.sleep();
                }
                continue;
            }
            let now = Instant::now();
            if self.job.place == Place::Random {
                open = open && now < end;
            }
            if now >= ask {
                open = open && goes_on();
                ask = now + ASK_EVERY;
            }
            for (slot, submitted) in done.drain(..) {
                self.in_flight -= 1;
                self.outcome.requests += 1;
                let time = now.duration_since(submitted).as_nanos() as u64;
                self.outcome.latency.saturating_record(time);
                open = open && self.next(slot);
            }
            self.driver.kick();
        }
        self.outcome.time = start.elapsed();
        self.outcome
    }
}
