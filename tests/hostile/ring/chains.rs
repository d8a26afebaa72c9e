//! Descriptor chains.

use crate::client::{Case, HIGH, HIGH_LEN, IO_ERROR, Outcome, repeat, run};
use crate::raw::{DATA, MEMORY, NEXT, SIZE, WRITE};
use crate::world::World;

fn shapes() -> Vec<Case> {
    vec![
        Case::chain("a loop", Outcome::LenZero, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, 0));
        }),
        Case::chain("next outside the table", Outcome::LenZero, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, SIZE));
        }),
        Case::chain("data in a hole", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (MEMORY as u64, 512, NEXT | WRITE, 2));
        }),
        Case::chain("data over the end of memory", IO_ERROR, |raw, ring| {
            let last = HIGH + HIGH_LEN as u64 - 256;
            raw.descriptor(ring, 1, (last, 512, NEXT | WRITE, 2));
        }),
        Case::ring("a jump of the index", Outcome::Broken, |raw, ring| {
            raw.set_avail(ring, ring.avail.wrapping_add(SIZE + 1));
        }),
    ]
}

#[test]
fn odd_chains_come_back() {
    let mut world = World::new();
    run(&mut world, &shapes());
    world.end();
}

#[test]
fn odd_chains_cost_nothing_that_lasts() {
    let mut world = World::new();
    repeat(&mut world, &shapes());
    world.end();
}
