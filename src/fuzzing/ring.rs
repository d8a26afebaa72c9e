//! Bytes of a ring and of its guest's memory → the processing of requests.
//!
//! A driver does what the input says, between the rounds of a worker on a small volume. The
//! [`Judge`] decodes each chain by itself, from a copy of the memory, before the worker takes
//! it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::driver::{Driver, Ring};
use super::input::Input;
use super::judge::Judge;
use super::memory::Memory;
use super::volume::{View, Volume};
use crate::event_flag::EventFlag;
use crate::vhost::MAX_QUEUE_SIZE;
use crate::vhost::parts::{InflightRegion, LogSetting, QueueSetup, SteppedWorker, Stopped};
use crate::virtio_blk::{BlkDevice, ConfigSpace};

/// Rounds of a worker until it is no longer waited for; ten times as many in all. A guest
/// whose requests overwrite their own ring can keep a worker busy for ever.
const ROUNDS: usize = 200;
/// A drain takes no requests, so it ends soon.
const DRAIN_ROUNDS: usize = 20_000;
/// The bound of what requests under way take, with the last one that was taken.
const HELD_MOST: u64 = 29 << 20;

/// A ring with a worker, its guest and its disk.
pub struct World {
    pub volume: Volume,
    pub memory: Memory,
    pub driver: Driver,
    pub judge: Judge,
    pub device: BlkDevice,
    pub event_idx: bool,
    /// The driver has kept to the rules.
    pub driver_is_honest: bool,
    rounds_left: usize,
    write_through: Arc<AtomicBool>,
    kick: Arc<File>,
}

impl World {
    pub fn new(input: &mut Input<'_>) -> Self {
        let view = input.choose(&[
            View::Origin,
            View::OriginWithSnapshot,
            View::Snapshot,
            View::ReadOnly,
        ]);
        let seed = u64::from(input.byte());
        let mut volume = Volume::new(view, seed);
        volume.turn();
        let device = volume.device(input.choose(&[512, 4096]));
        let event_idx = input.flag();
        let write_through = Arc::new(AtomicBool::new(input.flag()));
        let base = input.choose(&[0, 0xfffe, 0x7fff, 5]);
        let memory = Memory::new();
        let ring = Ring::choose(input);
        let driver = Driver::new(ring, base, &memory);
        Self {
            judge: Judge::new(ring, device.clone(), base),
            volume,
            memory,
            driver,
            device,
            event_idx,
            driver_is_honest: ring.is_disjoint(),
            rounds_left: 10 * ROUNDS,
            write_through,
            kick: Arc::new(File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap())),
        }
    }

    /// A worker that takes the ring over; `None` if the ring is refused.
    pub fn worker(&self, base: u16, region: Option<&InflightRegion>) -> Option<SteppedWorker> {
        let ring = self.driver.ring;
        let mut queue = Queue::new(MAX_QUEUE_SIZE).unwrap();
        queue.try_set_size(ring.size).ok()?;
        let descriptors = GuestAddress(ring.descriptors);
        queue.try_set_desc_table_address(descriptors).ok()?;
        let available = GuestAddress(ring.available);
        queue.try_set_avail_ring_address(available).ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(ring.used))
            .ok()?;
        queue.set_next_avail(base);
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        let map = self.memory.map();
        if !queue.is_valid(&map) {
            return None;
        }
        let setup = QueueSetup {
            name: "queue".into(),
            queue,
            memory: Arc::new(map.into()),
            kick: Arc::clone(&self.kick),
            call: Arc::default(),
            err: None,
            space: Arc::new(ConfigSpace::new(self.device.clone())),
            write_through: Arc::clone(&self.write_through),
            backend: Arc::new(self.volume.means()),
            inflight: region.and_then(|region| region.queue(0)),
            leave: Arc::new(EventFlag::new().unwrap()),
            log: Arc::default(),
            marks: None,
            counters: Arc::default(),
            dirty: LogSetting::default(),
        };
        SteppedWorker::new(setup).ok()
    }

    /// One round of the worker, judged. False: it would sleep.
    pub fn round(&mut self, worker: &mut SteppedWorker) -> bool {
        let before = self.memory.image();
        let (ring, first) = (self.driver.ring, worker.next_avail());
        let replay = worker.replay().to_vec();
        let heads: Vec<u16> = if replay.is_empty() {
            let place = |n: u16| first.wrapping_add(n) % ring.size;
            let at = |n| before.u16(ring.available + 4 + 2 * u64::from(place(n)));
            (0..ring.size).map(|n| at(n).unwrap()).collect()
        } else {
            replay.clone()
        };
        let progress = worker.round();
        let taken = if worker.is_hung_up() {
            0
        } else if replay.is_empty() {
            usize::from(worker.next_avail().wrapping_sub(first))
        } else {
            replay.len() - worker.replay().len()
        };
        assert!(taken <= heads.len(), "{taken} heads at once");
        for head in heads.iter().take(taken).filter(|head| **head < ring.size) {
            let chain = self.judge.look(&before, *head);
            self.judge.took(&before, *head, chain);
        }
        assert!(worker.held() <= HELD_MOST, "{} bytes", worker.held());
        let after = self.memory.image();
        self.judge.after_round(&before, &after);
        progress | self.volume.turn()
    }

    /// Rounds until the worker would sleep. False: it is still busy.
    pub fn run(&mut self, worker: &mut SteppedWorker) -> bool {
        worker.kick();
        for _ in 0..ROUNDS {
            if self.rounds_left == 0 {
                return false;
            }
            self.rounds_left -= 1;
            if !self.round(worker) {
                return true;
            }
        }
        false
    }

    /// The driver acts.
    pub fn drive(&mut self, act: impl FnOnce(&mut Driver, &Memory)) {
        let before = self.memory.image();
        act(&mut self.driver, &self.memory);
        self.judge.driver_wrote(&before, &self.memory.image());
    }

    /// The driver offers a request, even if the ring has no room for it.
    pub fn request(&mut self, input: &mut Input<'_>) {
        let (used, available) = self.indices();
        self.driver_is_honest &= available.wrapping_sub(used) < self.driver.ring.size;
        self.drive(|driver, memory| driver.request(memory, input));
    }

    /// The used and the available index.
    pub fn indices(&self) -> (u16, u16) {
        let (image, ring) = (self.memory.image(), self.driver.ring);
        let index = |at| image.u16(at + 2).unwrap();
        (index(ring.used), index(ring.available))
    }

    /// The driver does something that is not a request.
    pub fn misbehave(&mut self, input: &mut Input<'_>) {
        self.driver_is_honest = false;
        self.drive(|driver, memory| driver.mischief(memory, input));
    }

    /// The last worker does all that is available, and ends. An honest driver then has as
    /// many answers as it has requests. Returns whether the ring was served until then.
    pub fn finish(&mut self, mut worker: SteppedWorker) -> bool {
        let idle = self.run(&mut worker);
        let broken = worker.is_broken();
        self.stop(worker);
        let overwritten = self.judge.is_tangled || self.judge.ring_is_overwritten;
        if self.driver_is_honest && !overwritten {
            assert!(!broken, "the ring of an honest driver is not served");
            let (used, available) = self.indices();
            assert!(
                !idle || used == available,
                "{used} answers, {available} requests"
            );
        }
        !broken
    }

    /// Ends a worker; returns where the ring goes on.
    pub fn stop(&mut self, worker: SteppedWorker) -> Stopped {
        worker.request_stop();
        self.drain(worker)
    }

    /// Ends a worker as if its front end had left: it answers nothing any more.
    pub fn hang_up(&mut self, worker: SteppedWorker) -> Stopped {
        worker.hang_up();
        let stopped = self.drain(worker);
        self.judge.died();
        stopped
    }

    fn drain(&mut self, mut worker: SteppedWorker) -> Stopped {
        for _ in 0..DRAIN_ROUNDS {
            self.round(&mut worker);
            if let Some(stopped) = worker.stopped() {
                return stopped;
            }
        }
        panic!("a stop does not end");
    }

    /// Nothing is under way any more.
    pub fn check_end(&mut self, all_back: bool) {
        let judge = &self.judge;
        if all_back && !judge.ring_is_overwritten {
            assert_eq!(judge.back, judge.taken, "heads that do not come back");
        }
        let (shown, other) = self.volume.shown();
        self.judge.check_disk(&shown, all_back);
        if let Some(other) = other {
            assert!(
                other == super::volume::initial(),
                "another view has changed"
            );
        }
    }
}

/// One run.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new(&mut input);
    let base = world.indices().1;
    let Some(mut worker) = world.worker(base, None) else {
        return;
    };
    let mut steps = 0;
    while !input.is_empty() && steps < 100 {
        steps += 1;
        match input.byte() {
            0..120 => world.request(&mut input),
            120..160 => drop(world.round(&mut worker)),
            160..200 => drop(world.run(&mut worker)),
            way @ 200..220 => {
                let broken = worker.is_broken();
                let stopped = if way < 210 {
                    world.stop(worker)
                } else {
                    world.hang_up(worker)
                };
                // The driver resets a device whose ring is broken.
                let next = world.worker(stopped.position, None).filter(|_| !broken);
                let Some(next) = next else {
                    return world.check_end(way < 210);
                };
                worker = next;
            }
            _ => world.misbehave(&mut input),
        }
    }
    world.finish(worker);
    world.check_end(true);
}
