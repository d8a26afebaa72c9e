//! Descriptor chains in the descriptor table: their shapes, addresses, lengths and
//! directions.

use vm_memory::{Bytes, GuestAddress};

use crate::client::{
    Case, HIGH, HIGH_LEN, IN, IO_ERROR, OK, OUT, Outcome, SECTOR_OF_CASES, UNSUPPORTED, sector,
};
use crate::raw::{AVAIL, DATA, MEMORY, NEXT, Raw, Ring, SIZE, USED, WRITE};

const LEN_ZERO: Outcome = Outcome::LenZero;

pub fn shapes() -> Vec<Case> {
    vec![
        Case::chain("a chain that loops", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, 0));
        }),
        Case::chain("a descriptor that follows itself", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, 1));
        }),
        Case::chain("a loop of only headers", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 16, NEXT, 0));
        }),
        Case::chain("next outside the table", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, SIZE));
        }),
        Case::chain("next far outside the table", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT | WRITE, u16::MAX));
        }),
        Case::chain("a chain of the whole ring", OK, |raw, ring| {
            long(raw, ring, SIZE);
        }),
        Case::chain("a chain of a whole ring of 1,024", OK, |raw, ring| {
            long(raw, ring, 1024);
        })
        .on_a_ring_of(1024),
        Case::chain("no status", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, 0, 0));
        }),
        Case::chain("only a header", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 16, 0, 0));
        }),
        Case::chain("only a status", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0) + 16, 1, WRITE, 0));
        }),
        Case::chain("the descriptors in any order", OK, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 16, NEXT, 15));
            raw.descriptor(ring, 15, (DATA, 512, NEXT | WRITE, 1));
            raw.descriptor(ring, 1, (raw.header(ring, 0) + 16, 1, WRITE, 0));
        })
        .then(|raw, _| assert_eq!(sector(raw, DATA), SECTOR_OF_CASES)),
        Case::chain(
            "the right shape for an unknown request",
            UNSUPPORTED,
            |raw, ring| {
                let header = GuestAddress(raw.header(ring, 0));
                raw.memory.write_obj(99_u32, header).unwrap();
            },
        ),
        Case::chain("next without its flag", OK, |raw, ring| {
            raw.descriptor(ring, 2, (raw.header(ring, 0) + 16, 1, WRITE, u16::MAX));
        }),
        Case::chain("unknown flags", OK, |raw, ring| {
            let data = raw.data(ring, 0);
            raw.descriptor(ring, 1, (data, 512, 0xfff8 | NEXT | WRITE, 2));
        }),
    ]
}

/// A read into a chain of `count` descriptors.
fn long(raw: &Raw, ring: &Ring, count: u16) {
    let header = raw.header(ring, 0);
    let data = (0..count - 2).map(|_| (DATA, 512, WRITE));
    let mut parts = vec![(header, 16, 0)];
    parts.extend(data);
    parts.push((header + 16, 1, WRITE));
    raw.chain(ring, 0, &parts);
}

/// Addresses that are not of guest memory, for `len` bytes.
fn nowhere(len: u64) -> [(&'static str, u64); 8] {
    [
        ("beyond memory", HIGH + HIGH_LEN as u64),
        ("far beyond memory", 1 << 52),
        ("in a hole of memory", MEMORY as u64),
        ("over the start of a hole", MEMORY as u64 - len / 2),
        ("over the end of a hole", HIGH - len.div_ceil(2)),
        ("over the end of memory", HIGH + HIGH_LEN as u64 - len / 2),
        ("in the window of a device", 0xfee0_0000),
        ("at an address that wraps around", u64::MAX - len / 2),
    ]
}

pub fn addresses() -> Vec<Case> {
    let mut cases = Vec::new();
    for (place, address) in nowhere(512) {
        cases.push(Case::chain(
            format!("data {place}"),
            IO_ERROR,
            move |raw, ring| raw.descriptor(ring, 1, (address, 512, NEXT | WRITE, 2)),
        ));
        cases.push(Case::write(
            format!("data to write {place}"),
            IO_ERROR,
            move |raw, ring| raw.descriptor(ring, 1, (address, 512, NEXT, 2)),
        ));
    }
    for (place, address) in nowhere(16) {
        cases.push(Case::chain(
            format!("a header {place}"),
            IO_ERROR,
            move |raw, ring| raw.descriptor(ring, 0, (address, 16, NEXT, 1)),
        ));
    }
    for (place, address) in nowhere(1) {
        cases.push(Case::chain(
            format!("a status {place}"),
            LEN_ZERO,
            move |raw, ring| raw.descriptor(ring, 2, (address, 1, WRITE, 0)),
        ));
    }
    cases.extend(in_the_ring());
    cases
}

/// Memory is the guest's, also that of its rings.
fn in_the_ring() -> [Case; 5] {
    [
        Case::chain("data at address 0", OK, |raw, ring| {
            raw.descriptor(ring, 1, (0, 512, NEXT | WRITE, 2));
        })
        .then(|raw, _| assert_eq!(sector(raw, 0), SECTOR_OF_CASES)),
        Case::chain("data in the descriptor table", OK, |raw, ring| {
            raw.descriptor(ring, 1, (ring.base, 512, NEXT | WRITE, 2));
        })
        .then(|raw, ring| assert_eq!(sector(raw, ring.base), SECTOR_OF_CASES)),
        // A sector whose bytes are flags and an index that goes backwards.
        Case::chain(
            "data in the available ring",
            Outcome::Broken,
            |raw, ring| {
                let place = ring.base + AVAIL;
                raw.descriptor(ring, 1, (place, 512, NEXT | WRITE, 2));
            },
        ),
        Case::chain("data in the used ring", OK, |raw, ring| {
            // Behind the index, which the test waits for.
            let place = ring.base + USED + 512;
            raw.descriptor(ring, 1, (place, 512, NEXT | WRITE, 2));
        }),
        Case::chain("a status in the ring", Outcome::Back, |raw, ring| {
            let reserved = ring.base + USED + 600;
            raw.descriptor(ring, 2, (reserved, 1, WRITE, 0));
        }),
    ]
}

pub fn lengths() -> Vec<Case> {
    vec![
        Case::chain("no data", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 0, NEXT | WRITE, 2));
        }),
        Case::chain("a header of length 0", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 0, NEXT, 1));
        }),
        Case::write("a status of length 0", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 2, (raw.header(ring, 0) + 16, 0, WRITE, 0));
        }),
        Case::chain("an empty descriptor among others", OK, |raw, ring| {
            let header = raw.header(ring, 0);
            let data = raw.data(ring, 0);
            let nowhere = u64::MAX;
            raw.chain(
                ring,
                0,
                &[
                    (nowhere, 0, 0),
                    (header, 16, 0),
                    (nowhere, 0, WRITE),
                    (data, 512, WRITE),
                    (nowhere, 0, WRITE),
                    (header + 16, 1, WRITE),
                    (nowhere, 0, WRITE),
                ],
            );
        }),
        Case::chain("data of 4 GiB - 1", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, u32::MAX, NEXT | WRITE, 2));
        }),
        Case::write("data to write of 4 GiB - 1", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, u32::MAX, NEXT, 2));
        }),
        Case::chain("data of 4 GiB - 512", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (DATA, 0xffff_fe00, NEXT | WRITE, 2));
        }),
        Case::chain("a header of 4 GiB - 1", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), u32::MAX, NEXT, 1));
        }),
        // Its last byte is in memory, though nothing else of it is.
        Case::chain("a status of 4 GiB - 1", Outcome::Back, |raw, ring| {
            let place = raw.header(ring, 0) + 16;
            raw.descriptor(ring, 2, (place, u32::MAX, WRITE, 0));
        })
        .then(|raw, ring| {
            let last = raw.header(ring, 0) + 16 + u64::from(u32::MAX) - 1;
            let status: u8 = raw.memory.read_obj(GuestAddress(last)).unwrap();
            assert_eq!((status, raw.status(ring, 0)), (1, 0xff));
        }),
        Case::chain(
            "address and length that wrap around",
            IO_ERROR,
            |raw, ring| {
                let last = !0xfff;
                raw.descriptor(ring, 1, (last, 0x2000, NEXT | WRITE, 2));
            },
        ),
        Case::chain("lengths whose sum is over 4 GiB", IO_ERROR, |raw, ring| {
            let header = raw.header(ring, 0);
            let half = (DATA, 1 << 31, WRITE);
            raw.chain(
                ring,
                0,
                &[(header, 16, 0), half, half, half, (header + 16, 1, WRITE)],
            );
        }),
        Case::write("a write of over 4 GiB", IO_ERROR, |raw, ring| {
            let header = raw.header(ring, 0);
            let half = (DATA, 1 << 31, 0);
            raw.chain(
                ring,
                0,
                &[(header, 16, 0), half, half, half, (header + 16, 1, WRITE)],
            );
        }),
        Case::chain(
            "empty descriptors to the end of the ring",
            LEN_ZERO,
            |raw, ring| {
                raw.chain(ring, 0, &[(DATA, 0, 0); SIZE as usize]);
            },
        ),
    ]
}

pub fn directions() -> Vec<Case> {
    vec![
        Case::chain("a header that is written", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 16, NEXT | WRITE, 1));
        }),
        Case::chain("a read into data that is read", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 1, (raw.data(ring, 0), 512, NEXT, 2));
        }),
        Case::write(
            "a write from data that is written",
            IO_ERROR,
            |raw, ring| {
                raw.descriptor(ring, 1, (raw.data(ring, 0), 512, NEXT | WRITE, 2));
            },
        ),
        Case::write("a status that is read", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 2, (raw.header(ring, 0) + 16, 1, 0, 0));
        }),
        // The last byte that is written is the status.
        Case::chain(
            "a read with a status that is read",
            Outcome::Back,
            |raw, ring| {
                raw.descriptor(ring, 2, (raw.header(ring, 0) + 16, 1, 0, 0));
            },
        )
        .then(|raw, ring| {
            let last = GuestAddress(raw.data(ring, 0) + 511);
            let status: u8 = raw.memory.read_obj(last).unwrap();
            assert_eq!((status, raw.status(ring, 0)), (1, 0xff));
        }),
        Case::chain("directions that alternate", IO_ERROR, |raw, ring| {
            mixed(raw, ring, IN);
        }),
        Case::write(
            "a write whose directions alternate",
            IO_ERROR,
            |raw, ring| {
                mixed(raw, ring, OUT);
            },
        ),
        Case::chain("everything is read", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 1, (raw.data(ring, 0), 512, NEXT, 2));
            raw.descriptor(ring, 2, (raw.header(ring, 0) + 16, 1, 0, 0));
        }),
        Case::chain("everything is written", IO_ERROR, |raw, ring| {
            raw.descriptor(ring, 0, (raw.header(ring, 0), 16, NEXT | WRITE, 1));
            raw.descriptor(ring, 1, (raw.data(ring, 0), 512, NEXT | WRITE, 2));
        }),
    ]
}

fn mixed(raw: &Raw, ring: &Ring, kind: u32) {
    raw.request(ring, 0, kind, SECTOR_OF_CASES, 512);
    let (header, data) = (raw.header(ring, 0), raw.data(ring, 0));
    raw.chain(
        ring,
        0,
        &[
            (header, 16, 0),
            (data, 512, WRITE),
            (data + 512, 512, 0),
            (data + 1024, 512, WRITE),
            (data + 1536, 512, 0),
            (header + 16, 1, WRITE),
        ],
    );
}
