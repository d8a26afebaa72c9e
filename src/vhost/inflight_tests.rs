//! Death between any two stores of a queue's worker, and a second death while its
//! successor takes over: the driver gets each head back once, whatever happened.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::io::sim::Rng;
use crate::mutation::{dying_after, has_died, with};
use crate::vhost::dirty_log::DirtyBitmap;
use crate::vhost::guest::MemoryHold;
use crate::vhost::ring::{Ring, Taken};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 8;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// Which index the front end tells the new back end to go on at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resume {
    /// With a region, which says it all.
    Region,
    /// The used index, as QEMU does.
    AtUsed,
    /// The available index that was taken last, as cloud-hypervisor does.
    AtAvailable,
}

/// A driver with its ring, and what a device must have done for it.
struct World {
    hold: Arc<MemoryHold>,
    region: Option<InflightRegion>,
    resume: Resume,
    rng: Rng,
    available: u16,
    seen: u16,
    /// Heads that the driver has not offered.
    free: VecDeque<u16>,
    /// Heads that are offered and not back, in the order in which they were offered.
    offered: Vec<u16>,
    /// The last device had taken them, in this order.
    taken: Vec<u16>,
}

fn record(size: u16) -> InflightRegion {
    let (message, file) = InflightRegion::create(1, size, 1).unwrap();
    InflightRegion::open(&message, file, 1).unwrap()
}

impl World {
    fn new(seed: u64, resume: Resume) -> Self {
        let ranges = [(GuestAddress(0), 0x1_0000)];
        let map = GuestMemoryMmap::<DirtyBitmap>::from_ranges(&ranges).unwrap();
        let mut world = Self {
            hold: Arc::new(MemoryHold {
                map: Arc::new(map.into()),
            }),
            region: (resume == Resume::Region).then(|| record(SIZE)),
            resume,
            rng: Rng::new(seed),
            // Both wrap on the way.
            available: 0xfffa,
            seen: 0xfffa,
            free: (0..SIZE).collect(),
            offered: Vec::new(),
            taken: Vec::new(),
        };
        world.store(AVAIL + 2, 0xfffa);
        world.store(USED + 2, 0xfffa);
        world
    }

    fn pick(&mut self, below: usize) -> usize {
        self.rng.below(below)
    }

    fn store(&mut self, address: u64, value: u16) {
        self.hold
            .map
            .write_obj(value, GuestAddress(address))
            .unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        self.hold.map.read_obj(GuestAddress(address)).unwrap()
    }

    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let Some(head) = self.free.pop_front() else {
                return;
            };
            let place = u64::from(self.available % SIZE);
            self.store(AVAIL + 4 + 2 * place, head);
            self.available = self.available.wrapping_add(1);
            self.store(AVAIL + 2, self.available);
            self.offered.push(head);
        }
    }

    /// The driver takes what is on the used ring: each head only once.
    fn collect(&mut self) -> Result<(), String> {
        while self.seen != self.load(USED + 2) {
            let place = u64::from(self.seen % SIZE);
            let head = self.load(USED + 4 + 8 * place);
            let at = self.offered.iter().position(|offered| *offered == head);
            let at = at.ok_or(format!("head {head} goes back, but was not under way"))?;
            self.offered.remove(at);
            self.taken.retain(|taken| *taken != head);
            self.free.push_back(head);
            self.seen = self.seen.wrapping_add(1);
        }
        Ok(())
    }

    /// A back end that takes the ring over.
    fn start(&mut self) -> Result<(Ring, Vec<u16>), String> {
        let base = match self.resume {
            Resume::AtAvailable => {
                let taken = self.offered.iter().rev();
                let later = taken.take_while(|head| !self.taken.contains(head)).count();
                self.available.wrapping_sub(u16::try_from(later).unwrap())
            }
            _ => self.load(USED + 2),
        };
        let mut queue = Queue::new(SIZE).unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(AVAIL))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_next_avail(base);
        queue.set_ready(true);
        let inflight = self.region.as_ref().and_then(|region| region.queue(0));
        Ring::new(queue, Arc::clone(&self.hold), inflight).map_err(|e| e.to_string())
    }

    /// Takes the ring over and works on it for a while, until death if that comes.
    fn serve(&mut self, rounds: usize) -> Result<(), String> {
        let started = self.start();
        if has_died() {
            return Ok(());
        }
        let (mut ring, replay) = started?;
        let mut under_way: Vec<Taken> = Vec::new();
        let mut again = Vec::new();
        ring.replay(&replay, |taken, _| {
            again.push(taken);
            true
        })
        .map_err(|e| e.to_string())?;
        self.check_replay(&again)?;
        under_way.extend(again);
        for round in 0..rounds {
            let last = round + 1 == rounds;
            let count = self.pick(5);
            self.offer(count);
            let mut fresh = Vec::new();
            ring.take_available(|taken, _| {
                // Death may come before or after the head is worked on.
                if !has_died() {
                    fresh.push(taken);
                }
                true
            })
            .map_err(|e| e.to_string())?;
            for taken in fresh {
                if self.taken.contains(&taken.head) {
                    return Err(format!("head {} is taken twice", taken.head));
                }
                self.taken.push(taken.head);
                under_way.push(taken);
            }
            let ends = if last {
                under_way.len()
            } else {
                self.pick(under_way.len() + 1)
            };
            for _ in 0..ends {
                let at = self.pick(under_way.len());
                let taken = under_way.swap_remove(at);
                ring.give_back(taken, 1).map_err(|e| e.to_string())?;
            }
            ring.publish().map_err(|e| e.to_string())?;
            self.collect()?;
            if has_died() {
                return Ok(());
            }
        }
        if !self.offered.is_empty() {
            return Err(format!("heads {:?} never go back", self.offered));
        }
        Ok(())
    }

    /// What the successor does again is what was taken and is not back, in that order.
    fn check_replay(&mut self, again: &[Taken]) -> Result<(), String> {
        let heads: Vec<u16> = again.iter().map(|taken| taken.head).collect();
        if self.resume == Resume::Region {
            // One that was about to be taken may be among them, as the last.
            let known = heads.len().min(self.taken.len());
            if heads[..known] != self.taken[..known] || heads.len() > self.taken.len() + 1 {
                let taken = &self.taken;
                return Err(format!(
                    "{heads:?} are done again, but {taken:?} were taken"
                ));
            }
        }
        self.taken = heads;
        Ok(())
    }
}

/// Tries a death at every store, and at every store of the next one's taking over.
fn live_and_die(seed: u64, resume: Resume) -> Result<u64, String> {
    let mut tried = 0;
    for first in 0.. {
        let mut more = false;
        for second in 0..12 {
            let mut world = World::new(seed, resume);
            let (mut before, mut then) = (Ok(()), Ok(()));
            more = dying_after(first, || before = world.serve(6));
            before?;
            world.collect()?;
            dying_after(second, || then = world.serve(2));
            then?;
            world.collect()?;
            world.serve(4)?;
            tried += 1;
        }
        if !more {
            return Ok(tried);
        }
    }
    Ok(tried)
}

#[test]
fn whenever_a_worker_dies_each_head_goes_back_once() {
    for resume in [Resume::Region, Resume::AtUsed, Resume::AtAvailable] {
        let mut tried = 0;
        for seed in 0..8 {
            tried += live_and_die(seed, resume)
                .unwrap_or_else(|e| panic!("seed {seed}, resumed {resume:?}: {e}"));
        }
        println!("{tried} deaths, resumed {resume:?}");
        assert!(tried > 1000);
    }
}

#[test]
fn every_order_of_the_record_counts() {
    let region = [
        Mutation::TakenNotRecorded,
        Mutation::InFlightBeforeCounter,
        Mutation::BatchLinkedLate,
        Mutation::InFlightEndsEarly,
        Mutation::UsedIndexRecordedEarly,
        Mutation::ReplayUnordered,
        Mutation::ReplayCountForgotten,
    ];
    let cases = region.map(|bug| (bug, Resume::Region)).into_iter().chain([
        (Mutation::PublishedOutOfOrder, Resume::AtUsed),
        (Mutation::PublishedOutOfOrder, Resume::AtAvailable),
        (Mutation::ResumedAtTheTold, Resume::AtAvailable),
    ]);
    for (bug, resume) in cases {
        let found = (0..50).any(|seed| with(Some(bug), || live_and_die(seed, resume).is_err()));
        assert!(found, "{bug:?} survives, resumed {resume:?}");
    }
}

/// What a hostile front end may write into its region.
#[test]
fn nothing_in_a_region_is_believed() {
    let mut rng = Rng::new(3);
    let mut few = |below: usize| u16::try_from(rng.below(below)).unwrap();
    let mut refused = 0;
    for _ in 0..20_000 {
        let region = record(SIZE);
        let mut queue = region.queue(0).unwrap();
        for _ in 0..few(12) {
            let descriptor = HEADER + DESCRIPTOR * usize::from(few(8));
            match few(5) {
                0 => queue.store(descriptor, u8::try_from(few(3)).unwrap()),
                1 => queue.store(descriptor + NEXT_AT, few(12)),
                2 => queue.store(descriptor + COUNTER_AT, u64::from(few(5)).wrapping_sub(1)),
                3 => queue.store(LAST_BATCH_HEAD_AT, few(12)),
                _ => queue.store(USED_INDEX_AT, few(12)),
            }
            .unwrap();
        }
        let (used, outstanding) = (few(12), few(9));
        match queue.recover(SIZE, used, used.wrapping_add(outstanding)) {
            Ok(heads) => {
                let distinct: BTreeSet<_> = heads.iter().collect();
                assert!(distinct.len() == heads.len() && heads.iter().all(|head| *head < SIZE));
                assert!(heads.len() <= usize::from(outstanding));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100);
}

#[test]
fn a_reset_ring_makes_a_new_start_in_an_old_region() {
    let region = record(SIZE);
    let mut queue = region.queue(0).unwrap();
    for head in [3, 1, 4] {
        queue.taken(head).unwrap();
    }
    queue.store(USED_INDEX_AT, 500_u16).unwrap();
    // The new driver has offered two requests by now.
    assert_eq!(queue.recover(SIZE, 0, 2), Ok(Vec::new()));
    assert_eq!(queue.recover(SIZE, 0, 2), Ok(Vec::new()), "and stays one");
}

/// A region of the largest size holds what a larger ring left there.
#[test]
fn heads_that_the_ring_does_not_have_are_not_done_again() {
    let region = record(SIZE);
    let mut queue = region.queue(0).unwrap();
    for head in [3, SIZE, 1023] {
        queue.taken(head).unwrap();
    }
    assert_eq!(queue.recover(SIZE, 0, 3), Ok(vec![3]));
    assert_eq!(queue.recover(1024, 0, 3), Ok(vec![3]), "they are gone");
}

#[test]
fn a_region_that_could_kill_or_lies_is_refused() {
    // Room for 1024 entries, whatever was asked for.
    let (message, file) = InflightRegion::create(2, 128, 4).unwrap();
    let len = 2 * 16448;
    assert_eq!((message.mmap_size, message.mmap_offset), (len, 0));
    let open = |message: &VhostUserInflight, file: &File| {
        InflightRegion::open(message, file.try_clone().unwrap(), 4).map_err(|e| e.to_string())
    };
    open(&message, &file).unwrap();
    open(&message, &file).expect("a second time, as it is now in use");

    let wrong = |queues, size, len, offset| VhostUserInflight::new(len, offset, queues, size);
    for (refused, what) in [
        (wrong(0, 128, len, 0), "0 queues"),
        (wrong(5, 128, len, 0), "5 queues"),
        (wrong(2, 0, len, 0), "0 entries"),
        (wrong(2, 2048, len, 0), "2048 entries"),
        (wrong(2, 128, len - 1, 0), "32895 bytes"),
        (wrong(3, 128, len, 0), "49344 bytes"),
        (wrong(1, 128, len, 0x10_0000), "offset 1048576"),
        (
            wrong(2, 128, u64::MAX, u64::MAX),
            "offset 18446744073709551615",
        ),
    ] {
        let error = open(&refused, &file).unwrap_err();
        assert!(error.contains(what), "{error}");
    }

    // Another back end's, which is as large as it was asked for.
    let message = VhostUserInflight::new(4224, 0, 2, 128);
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(4224).unwrap();
    let error = open(&message, &plain).unwrap_err();
    assert!(error.contains("sealed"), "{error}");
    let loose = File::from(memfd_create("loose", MemfdFlags::ALLOW_SEALING).unwrap());
    loose.set_len(4224).unwrap();
    let error = open(&message, &loose).unwrap_err();
    assert!(error.contains("F_SEAL_SHRINK"), "{error}");
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    open(&message, &File::from(pipe)).unwrap_err();
    fcntl_add_seals(&loose, SealFlags::SHRINK).unwrap();
    open(&message, &loose).unwrap();

    let region = open(&message, &loose).unwrap();
    assert_eq!(region.queue(1).unwrap().size(), 128);
    let error = open(&wrong(1, 256, 4224, 0), &loose).unwrap_err();
    assert!(error.contains("128 descriptors"), "{error}");
    region.queue(1).unwrap().store(VERSION_AT, 2_u16).unwrap();
    let error = open(&message, &loose).unwrap_err();
    assert!(error.contains("version 2"), "{error}");
}

/// Counters decide, not the places in the table.
#[test]
fn heads_are_done_again_in_the_order_in_which_they_were_taken() {
    let region = record(SIZE);
    let mut queue = region.queue(0).unwrap();
    let order = [5, 0, 7, 2];
    for head in order {
        queue.taken(head).unwrap();
    }
    assert_eq!(
        region.queue(0).unwrap().recover(SIZE, 0, 4),
        Ok(order.to_vec())
    );
    let counters: BTreeMap<u64, u16> = (order.iter())
        .map(|head| {
            let at = queue.descriptor(*head).unwrap();
            (queue.load(at + COUNTER_AT).unwrap(), *head)
        })
        .collect();
    assert_eq!(counters.into_values().collect::<Vec<_>>(), order);
}
