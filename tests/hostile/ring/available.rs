//! The available ring: its entries, its index and its flags; what the guest writes into
//! the used ring; and kicks.

use vm_memory::{Bytes, GuestAddress};

use crate::client::{Case, IN, OK, Outcome, SECTOR_OF_CASES};
use crate::raw::{AVAIL, EVENT_IDX, Raw, Ring, SIZE, USED};

const BROKEN: Outcome = Outcome::Broken;

fn read(raw: &Raw, ring: &Ring) {
    raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
}

/// The index jumps, without new entries.
fn jump(name: &'static str, by: u16) -> Case {
    Case::ring(name, BROKEN, move |raw, ring| {
        raw.set_avail(ring, ring.avail.wrapping_add(by));
    })
}

/// One request; before it is offered, the guest writes `bytes` at `offset` of a part of the
/// ring.
fn writes(name: &'static str, offset: u64, bytes: &'static [u8]) -> Case {
    Case::ring(name, OK, move |raw, ring| {
        read(raw, ring);
        let place = GuestAddress(ring.base + offset);
        raw.memory.write_slice(bytes, place).unwrap();
        raw.offer(ring, &[0]);
    })
}

pub fn entries() -> Vec<Case> {
    let mut cases = vec![
        Case::ring("the same head twice at once", OK, |raw, ring| {
            read(raw, ring);
            raw.offer(ring, &[0, 0]);
        }),
        Case::ring("all entries are the same head", OK, |raw, ring| {
            read(raw, ring);
            raw.offer(ring, &[0; SIZE as usize]);
        }),
        Case::ring(
            "chains that share descriptors",
            Outcome::Back,
            |raw, ring| {
                read(raw, ring);
                raw.request(ring, 3, IN, SECTOR_OF_CASES, 512);
                raw.descriptor(ring, 3, (raw.header(ring, 3), 16, 1, 1));
                raw.offer(ring, &[0, 3]);
            },
        ),
        Case::ring("every descriptor is a head", Outcome::Back, |raw, ring| {
            read(raw, ring);
            for head in [3, 6, 9, 12] {
                raw.request(ring, head, IN, SECTOR_OF_CASES, 512);
            }
            let heads: Vec<u16> = (0..SIZE).collect();
            raw.offer(ring, &heads);
        }),
        head("a head that the table does not have", SIZE),
        head("a head far outside the table", u16::MAX),
        jump("the index jumps by more than the ring's size", SIZE + 1),
        jump("the index jumps far ahead", 0x8000),
        jump("the index goes backwards by one", u16::MAX),
        jump(
            "the index goes backwards by the ring's size",
            0_u16.wrapping_sub(SIZE),
        ),
        Case::ring("a kick without a request", Outcome::Nothing, |_, _| {}),
        Case::ring(
            "two kicks without a request",
            Outcome::Nothing,
            |_, ring| {
                ring.kick.write(1).unwrap();
            },
        ),
        Case::ring("thousands of kicks", OK, |raw, ring| {
            read(raw, ring);
            for _ in 0..4000 {
                ring.kick.write(1).unwrap();
            }
            raw.offer(ring, &[0]);
        }),
        Case::ring("a kick of the greatest count", OK, |raw, ring| {
            read(raw, ring);
            raw.offer(ring, &[0]);
            // Full if the worker has not read it yet.
            let _ = ring.kick.write(u64::MAX - 2);
        }),
    ];
    cases.extend(flags());
    cases
}

/// Only a reset repairs the ring: the entry stays.
fn head(name: &'static str, head: u16) -> Case {
    Case::ring(name, BROKEN, move |raw, ring| raw.offer(ring, &[head]))
}

/// Fields of both rings.
fn flags() -> Vec<Case> {
    // Behind entries of 2 bytes, and of 8 bytes.
    const USED_EVENT: u64 = AVAIL + 4 + 2 * SIZE as u64;
    const AVAIL_EVENT: u64 = USED + 4 + 8 * SIZE as u64;
    let mut cases = vec![
        writes("reserved flags of the available ring", AVAIL, &[0xfe, 0xff]),
        writes("no interrupts are wanted", AVAIL, &[1, 0]),
        writes("all flags of the available ring", AVAIL, &[0xff, 0xff]),
        writes("no flags of the available ring", AVAIL, &[0, 0]),
        writes(
            "the guest sets the flags of the used ring",
            USED,
            &[0xff, 0xff],
        ),
        writes(
            "the guest writes the entries of the used ring",
            USED + 4,
            &[0xff; 8 * SIZE as usize],
        ),
        writes(
            "the guest writes the event index of the used ring",
            AVAIL_EVENT,
            &[0xff, 0xff],
        ),
    ];
    for (name, bytes) in [
        ("an event index of 0", &[0, 0]),
        ("an event index of all ones", &[0xff, 0xff]),
        ("an event index far away", &[0, 0x80]),
    ] {
        cases.push(writes(name, USED_EVENT, bytes).with(EVENT_IDX));
        cases.push(writes(name, USED_EVENT, bytes));
    }
    cases.push(
        writes(
            "the guest writes the used ring with event indices",
            USED,
            &[0xff; 2],
        )
        .with(EVENT_IDX),
    );
    cases.push(
        writes(
            "the guest writes the event index that the device writes",
            AVAIL_EVENT,
            &[0xff, 0x7f],
        )
        .with(EVENT_IDX),
    );
    cases.push(Case::ring(
        "the guest writes the index of the used ring",
        OK,
        |raw, ring| {
            read(raw, ring);
            let place = GuestAddress(ring.base + USED + 2);
            let before = raw.used_index(ring);
            raw.memory.write_obj(before ^ 0x5555, place).unwrap();
            raw.offer(ring, &[0]);
        },
    ));
    cases
}
