//! Indirect descriptor tables.

use crate::client::{Case, HIGH, HIGH_LEN, IO_ERROR, OK, Outcome, SECTOR_OF_CASES, sector};
use crate::raw::{DATA, INDIRECT, MEMORY, NEXT, Raw, Ring, SIZE, WRITE};

const LEN_ZERO: Outcome = Outcome::LenZero;

/// The flag of a descriptor that names a table.
const TABLE: u16 = 4;
/// Where the cases have their tables, and room for 65,536 descriptors.
const PLACE: u64 = HIGH;

/// A read whose chain is in a table of `len` bytes; its three descriptors come first.
fn table(raw: &Raw, ring: &Ring, len: u32, flags: u16) {
    let (header, data) = (raw.header(ring, 0), raw.data(ring, 0));
    raw.chain_at(
        PLACE,
        &[(header, 16, 0), (data, 512, WRITE), (header + 16, 1, WRITE)],
    );
    raw.descriptor(ring, 0, (PLACE, len, TABLE | flags, 1));
}

/// The same, of `count` descriptors.
fn long(raw: &Raw, ring: &Ring, count: u32) {
    let header = raw.header(ring, 0);
    let mut parts = vec![(header, 16, 0)];
    parts.extend((0..count - 2).map(|_| (DATA, 512, WRITE)));
    parts.push((header + 16, 1, WRITE));
    raw.chain_at(PLACE, &parts);
    raw.descriptor(ring, 0, (PLACE, 16 * count, TABLE, 0));
}

fn reads(raw: &Raw, ring: &Ring) {
    assert_eq!(sector(raw, raw.data(ring, 0)), SECTOR_OF_CASES);
}

/// Where the feature is negotiated.
pub fn tables() -> Vec<Case> {
    let mut cases = joined();
    cases.extend(sizes());
    cases.extend(places());
    for case in &mut cases {
        case.acknowledge(INDIRECT);
    }
    // A device may carry them out; nothing else changes with the feature.
    cases.push(
        Case::chain("a table without the feature", OK, |raw, ring| {
            table(raw, ring, 48, 0)
        })
        .then(reads),
    );
    cases
}

/// Flags of the descriptors.
fn joined() -> Vec<Case> {
    vec![
        Case::chain("a table", OK, |raw, ring| table(raw, ring, 48, 0)).then(reads),
        // The device has to ignore the flag.
        Case::chain("a table that is written", OK, |raw, ring| {
            table(raw, ring, 48, WRITE)
        })
        .then(reads),
        Case::chain("a table and next", OK, |raw, ring| {
            table(raw, ring, 48, NEXT)
        })
        .then(reads),
        Case::chain("a table after descriptors", OK, |raw, ring| {
            table(raw, ring, 32, 0);
            let (header, data) = (raw.header(ring, 0), raw.data(ring, 0));
            raw.chain_at(PLACE, &[(data, 512, WRITE), (header + 16, 1, WRITE)]);
            raw.descriptor(ring, 0, (header, 16, NEXT, 1));
            raw.descriptor(ring, 1, (PLACE, 32, TABLE, 0));
        })
        .then(reads),
        Case::chain("a table in a table", LEN_ZERO, |raw, ring| {
            table(raw, ring, 48, 0);
            raw.descriptor_at(PLACE + 16, (PLACE + 0x1000, 48, TABLE, 0));
        }),
        Case::chain("a table that is its own", LEN_ZERO, |raw, ring| {
            table(raw, ring, 48, 0);
            raw.descriptor_at(PLACE, (PLACE, 48, TABLE, 0));
        }),
        // What a table ends is the end of the chain.
        Case::chain("two tables joined by next", LEN_ZERO, |raw, ring| {
            let (header, data) = (raw.header(ring, 0), raw.data(ring, 0));
            raw.chain_at(PLACE, &[(header, 16, 0)]);
            raw.chain_at(
                PLACE + 0x1000,
                &[(data, 512, WRITE), (header + 16, 1, WRITE)],
            );
            raw.descriptor(ring, 0, (PLACE, 16, TABLE | NEXT, 1));
            raw.descriptor(ring, 1, (PLACE + 0x1000, 32, TABLE, 0));
        }),
        Case::chain("two whole tables joined by next", OK, |raw, ring| {
            table(raw, ring, 48, NEXT);
            raw.descriptor(ring, 1, (PLACE, 48, TABLE, 0));
        })
        .then(reads),
    ]
}

/// Lengths of the table, in bytes and in descriptors.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 8, 15, 17, u32::MAX] {
        let name = format!("a table of {len} bytes");
        cases.push(Case::chain(name, LEN_ZERO, move |raw, ring| {
            table(raw, ring, len, 0);
        }));
    }
    cases.extend([
        Case::chain(
            "a table that is shorter than its chain",
            LEN_ZERO,
            |raw, ring| {
                table(raw, ring, 32, 0);
            },
        ),
        Case::chain("a table that is longer than its chain", OK, |raw, ring| {
            table(raw, ring, 65_535 * 16, 0);
        })
        .then(reads),
        Case::chain("a table of 65,536 descriptors", IO_ERROR, |raw, ring| {
            table(raw, ring, 65_536 * 16, 0);
        }),
        Case::chain("a table of 2 GiB", IO_ERROR, |raw, ring| {
            table(raw, ring, 1 << 31, 0);
        }),
        Case::chain("a table of more than the ring's size", OK, |raw, ring| {
            long(raw, ring, u32::from(SIZE) + 1);
        }),
        Case::chain("a table of 1,024 descriptors", OK, |raw, ring| {
            long(raw, ring, 1024)
        }),
        Case::chain("a table of 1,025 descriptors", IO_ERROR, |raw, ring| {
            long(raw, ring, 1025)
        }),
        Case::chain(
            "a table whose lengths are over 4 GiB",
            IO_ERROR,
            |raw, ring| {
                let header = raw.header(ring, 0);
                let half = (DATA, 1 << 31, WRITE);
                raw.chain_at(
                    PLACE,
                    &[(header, 16, 0), half, half, (header + 16, 1, WRITE)],
                );
                raw.descriptor(ring, 0, (PLACE, 64, TABLE, 0));
            },
        ),
    ]);
    cases
}

/// Where the table is, and where its descriptors lead.
fn places() -> Vec<Case> {
    let end = HIGH + HIGH_LEN as u64;
    vec![
        Case::chain("a table outside memory", LEN_ZERO, move |raw, ring| {
            raw.descriptor(ring, 0, (end, 48, TABLE, 0));
        }),
        Case::chain("a table in a hole of memory", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 0, (MEMORY as u64, 48, TABLE, 0));
        }),
        Case::chain("a table that wraps around", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 0, (u64::MAX - 15, 48, TABLE, 0));
        }),
        Case::chain(
            "a table that goes on in a page that is not there",
            LEN_ZERO,
            move |raw, ring| {
                let header = raw.header(ring, 0);
                raw.descriptor_at(end - 16, (header, 16, NEXT, 1));
                raw.descriptor(ring, 0, (end - 16, 48, TABLE, 0));
            },
        ),
        Case::chain(
            "a table whose descriptor goes on in a page that is not there",
            LEN_ZERO,
            move |raw, ring| {
                raw.descriptor(ring, 0, (end - 8, 48, TABLE, 0));
            },
        ),
        Case::chain("a table at an odd address", OK, |raw, ring| {
            let (header, data) = (raw.header(ring, 0), raw.data(ring, 0));
            raw.chain_at(
                PLACE + 3,
                &[(header, 16, 0), (data, 512, WRITE), (header + 16, 1, WRITE)],
            );
            raw.descriptor(ring, 0, (PLACE + 3, 48, TABLE, 0));
        })
        .then(reads),
        Case::chain("a loop in a table", LEN_ZERO, |raw, ring| {
            table(raw, ring, 48, 0);
            raw.descriptor_at(PLACE + 16, (DATA, 512, NEXT | WRITE, 0));
        }),
        Case::chain("a loop in a large table", LEN_ZERO, |raw, ring| {
            table(raw, ring, 65_535 * 16, 0);
            raw.descriptor_at(PLACE + 16, (DATA, 0, NEXT | WRITE, 1));
        }),
        Case::chain("next outside a table", LEN_ZERO, |raw, ring| {
            table(raw, ring, 48, 0);
            raw.descriptor_at(PLACE + 16, (DATA, 512, NEXT | WRITE, 3));
        }),
        Case::chain("the ring's own table as a table", LEN_ZERO, |raw, ring| {
            raw.descriptor(ring, 0, (ring.base, 48, TABLE, 0));
        }),
    ]
}
