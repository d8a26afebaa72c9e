//! Bytes of an in-flight region, and of the ring that it belongs to → the restart of the
//! queue. Workers end with requests under way, and the next ones go on by the region, in
//! which the front end writes what the input says.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::message::VhostUserInflight;

use super::input::Input;
use super::ring::World;
use crate::vhost::parts::{InflightRegion, SteppedWorker};

/// The region that the front end passes, and its file.
struct Region {
    region: InflightRegion,
    file: File,
    /// Only back ends have written to it.
    is_honest: bool,
}

impl Region {
    /// `None`: refused.
    fn open(input: &mut Input<'_>, size: u16) -> Option<Self> {
        let entries = input.choose(&[size, 64, 1, 16, 1024]);
        let (mut message, file) = InflightRegion::create(1, entries, 1).unwrap();
        let mut is_honest = true;
        let len = usize::from(input.byte() % 64);
        let start = input.take(len);
        if !start.is_empty() {
            file.write_all_at(start, 0).unwrap();
            is_honest = false;
        }
        match input.byte() {
            1 => message.mmap_offset = u64::from(input.u16()),
            2 => message.mmap_size = input.u64(),
            3 => message.num_queues = input.u16(),
            4 => message.queue_size = input.u16(),
            5 => message.mmap_offset = input.u64(),
            _ => {}
        }
        let theirs = file.try_clone().unwrap();
        let region = open(&message, theirs)?;
        Some(Self {
            region,
            file,
            is_honest,
        })
    }

    fn poke(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16());
        let len = usize::from(input.byte() % 32);
        let there = self.file.metadata().unwrap().len();
        let bytes = input.take(len);
        if at + bytes.len() as u64 <= there {
            self.file.write_all_at(bytes, at).unwrap();
            self.is_honest = false;
        }
    }
}

fn open(message: &VhostUserInflight, file: File) -> Option<InflightRegion> {
    InflightRegion::open(message, file, 1).ok()
}

/// The worker of a ring that another one has left. `left`: what was under way, if that is
/// certain.
fn go_on(
    world: &World,
    base: u16,
    region: &Region,
    left: Option<BTreeSet<u16>>,
) -> Option<SteppedWorker> {
    let (used, available) = world.indices();
    let worker = world.worker(base, Some(&region.region))?;
    let replay = worker.replay();
    let heads: BTreeSet<u16> = replay.iter().copied().collect();
    assert_eq!(heads.len(), replay.len(), "a head twice: {replay:?}");
    assert!(replay.len() <= usize::from(available.wrapping_sub(used)));
    if let Some(left) = left
        && !world.judge.is_tangled
        && !world.judge.ring_is_overwritten
    {
        assert_eq!(heads, left, "what was under way is not carried out again");
    }
    Some(worker)
}

/// One run.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new(&mut input);
    let Some(mut region) = Region::open(&mut input, world.driver.ring.size) else {
        return;
    };
    let base = world.indices().1;
    let Some(mut worker) = go_on(&world, base, &region, None) else {
        assert!(
            !region.is_honest,
            "a region that a back end made has no room for a ring"
        );
        return;
    };
    world.driver_is_honest &= region.is_honest;
    let mut steps = 0;
    let mut always_whole = true;
    while !input.is_empty() && steps < 100 {
        steps += 1;
        match input.byte() {
            0..100 => world.request(&mut input),
            100..130 => drop(world.round(&mut worker)),
            130..160 => drop(world.run(&mut worker)),
            way @ 160..200 => {
                let broken = worker.is_broken();
                let under_way = world.judge.under_way.iter().map(|(head, _)| *head);
                let mut left: BTreeSet<u16> = under_way.chain(worker.replay().to_vec()).collect();
                let stopped = if way < 190 {
                    world.hang_up(worker)
                } else {
                    left.clear();
                    world.stop(worker)
                };
                // A broken ring is left as it is, and a stop then tells that.
                assert!(way < 190 || broken || !stopped.undone);
                let is_known = region.is_honest && world.driver_is_honest && !broken;
                always_whole &= is_known;
                let left = is_known.then_some(left);
                let next = go_on(&world, stopped.position, &region, left).filter(|_| !broken);
                let Some(next) = next else {
                    assert!(
                        !is_known,
                        "a ring and a region that belong together are refused"
                    );
                    return world.check_end(false);
                };
                worker = next;
            }
            200..230 => {
                region.poke(&mut input);
                // It has to do with fewer or more requests than there are.
                world.driver_is_honest &= region.is_honest;
            }
            _ => world.misbehave(&mut input),
        }
    }
    always_whole &= world.finish(worker);
    world.check_end(always_whole);
}
