//! Header, data and status in descriptors as no driver puts them, all of which mean the same,
//! or nothing.

use vm_memory::{Bytes, GuestAddress};

use super::super::client::{
    Case, IN, IO_ERROR, OK, OUT, Outcome, SECTOR_OF_CASES, UNSUPPORTED, run,
};
use super::super::common::stamps;
use super::super::raw::{Raw, Ring, WRITE};
use super::super::world::World;
use super::{FREE, GET_ID, Part, ROOM, bytes, fill, header};

/// A read of one sector in the descriptors that `parts` makes of the header's address.
fn chain(
    name: &'static str,
    outcome: Outcome,
    kind: u32,
    parts: impl Fn(u64) -> Vec<Part> + 'static,
) -> Case {
    Case::ring(name, outcome, move |raw, ring| {
        let header = header(raw, ring, kind, SECTOR_OF_CASES);
        raw.chain(ring, 0, &parts(header));
        raw.offer(ring, &[0]);
    })
}

const DATA: Part = (ROOM, 512, WRITE);

#[test]
fn a_header_is_sixteen_readable_bytes() {
    let mut cases = Vec::new();
    for len in 0..16 {
        cases.push(chain("a short header", IO_ERROR, IN, move |header| {
            vec![(header, len, 0), DATA, (header + 16, 1, WRITE)]
        }));
    }
    cases.push(chain("no header", IO_ERROR, IN, |header| {
        vec![DATA, (header + 16, 1, WRITE)]
    }));
    cases.push(chain("a writable header", IO_ERROR, IN, |header| {
        vec![(header, 16, WRITE), DATA, (header + 16, 1, WRITE)]
    }));
    cases.push(chain("half a writable header", IO_ERROR, IN, |header| {
        vec![
            (header, 8, 0),
            (header + 8, 8, WRITE),
            DATA,
            (header + 16, 1, WRITE),
        ]
    }));
    cases.push(chain("a header beyond memory", IO_ERROR, IN, |header| {
        vec![(1 << 40, 16, 0), DATA, (header + 16, 1, WRITE)]
    }));
    // What follows the header of a read must be writable, and of GET_ID is not looked at.
    cases.push(chain("a header of 17 bytes", IO_ERROR, IN, |header| {
        vec![(header, 17, 0), DATA, (header + 16, 1, WRITE)]
    }));
    cases.push(chain("a header of a page", IO_ERROR, IN, |header| {
        vec![(header, 4096, 0), DATA, (header + 16, 1, WRITE)]
    }));
    cases.push(chain("a larger header of GET_ID", OK, GET_ID, |header| {
        vec![(header, 24, 0), (ROOM, 20, WRITE), (header + 16, 1, WRITE)]
    }));
    run(&World::new(), &cases);
}

/// It was read into [`ROOM`].
fn has_read(raw: &Raw, _: &Ring) {
    let data = bytes(raw, ROOM, 512);
    let (sector, stamp) = (SECTOR_OF_CASES, SECTOR_OF_CASES);
    stamps::check("what was read", sector, &data, &[stamp]);
}

#[test]
fn a_header_may_be_split_at_any_byte() {
    let mut cases = Vec::new();
    for at in 1..16 {
        let split = move |header: u64| {
            vec![
                (header, at, 0),
                (header + u64::from(at), 16 - at, 0),
                DATA,
                (header + 16, 1, WRITE),
            ]
        };
        cases.push(chain("a split header", OK, IN, split).then(has_read));
    }
    let parts = |header: u64| {
        let mut parts: Vec<Part> = (0..8).map(|i| (header + 2 * i, 2, 0)).collect();
        parts.extend([(0, 0, 0), (ROOM, 0, WRITE), DATA, (header + 16, 1, WRITE)]);
        parts
    };
    cases.push(chain("a header in eight", OK, IN, parts).then(has_read));
    run(&World::new(), &cases);
}

#[test]
fn the_last_writable_byte_is_the_status() {
    let mut cases = vec![
        chain("no descriptor for it", IO_ERROR, IN, |header| {
            // The last byte of the data is taken for it, and one is missing then.
            vec![(header, 16, 0), (header + 16 + 1 - 512, 512, WRITE)]
        }),
        chain("nothing writable", Outcome::LenZero, IN, |header| {
            vec![(header, 16, 0)]
        }),
        chain("readable", Outcome::LenZero, OUT, |header| {
            vec![(header, 16, 0), (ROOM, 512, 0), (header + 16, 1, 0)]
        }),
        chain("of no bytes", Outcome::LenZero, OUT, |header| {
            vec![(header, 16, 0), (ROOM, 512, 0), (header + 16, 0, WRITE)]
        }),
        chain("of no bytes behind a byte", OK, IN, |header| {
            vec![
                (header, 16, 0),
                DATA,
                (header + 16, 1, WRITE),
                (ROOM, 0, WRITE),
            ]
        })
        .then(has_read),
        chain("beyond memory", Outcome::LenZero, IN, |header| {
            vec![(header, 16, 0), DATA, (1 << 40, 1, WRITE)]
        }),
        // 512 bytes of data and 4 of which the last is the status are no whole sectors.
        chain("of four bytes", IO_ERROR, IN, |header| {
            vec![(header, 16, 0), DATA, (header + 13, 4, WRITE)]
        }),
        chain("in two", IO_ERROR, IN, |header| {
            vec![
                (header, 16, 0),
                DATA,
                (ROOM + 512, 1, WRITE),
                (header + 16, 1, WRITE),
            ]
        }),
    ];
    let shared = Case::ring("behind the data", Outcome::Back, |raw, ring| {
        fill(raw, ROOM, 0xff, 513);
        let header = header(raw, ring, IN, SECTOR_OF_CASES);
        raw.chain(ring, 0, &[(header, 16, 0), (ROOM, 513, WRITE)]);
        raw.offer(ring, &[0]);
    });
    cases.push(shared.then(|raw, ring| {
        has_read(raw, ring);
        assert_eq!(bytes(raw, ROOM + 512, 1), [0]);
        let last = raw.used_index(ring).wrapping_sub(1);
        assert_eq!(raw.used(ring, last), (0, 513));
    }));
    run(&World::new(), &cases);
}

/// QEMU's tests call this ANY_LAYOUT.
#[test]
fn header_and_data_may_share_a_descriptor() {
    let write = |len: u32| {
        move |raw: &Raw, ring: &mut Ring| {
            let from = header(raw, ring, OUT, FREE);
            let mut whole = bytes(raw, from, 16);
            whole.extend(vec![0x5a; 512]);
            raw.memory.write_slice(&whole, GuestAddress(ROOM)).unwrap();
            let status = raw.header(ring, 0) + 16;
            raw.chain(ring, 0, &[(ROOM, len, 0), (status, 1, WRITE)]);
            raw.offer(ring, &[0]);
        }
    };
    let cases = [
        Case::ring("in one", OK, write(528)).on_read_only(IO_ERROR),
        Case::ring("in one, a byte short", IO_ERROR, write(527)),
        Case::ring("in one, a byte too long", IO_ERROR, write(529)),
        Case::ring("a header alone", IO_ERROR, write(16)),
        Case::ring("it is there", Outcome::Back, |raw, ring| {
            super::put(raw, ring, IN, FREE, &[DATA]);
            raw.offer(ring, &[0]);
        })
        .then(|raw, ring| {
            assert_eq!(raw.status(ring, 0), 0);
            let data = bytes(raw, ROOM, 512);
            // Where the view can be written.
            if data[0] == 0x5a {
                assert_eq!(data, [0x5a; 512]);
            } else {
                stamps::check("untouched", FREE, &data, &[FREE]);
            }
        }),
    ];
    run(&World::new(), &cases);
}

#[test]
fn directions_that_are_mixed_are_refused() {
    let cases = [
        chain("a read with readable data", IO_ERROR, IN, |header| {
            vec![(header, 16, 0), (ROOM, 512, 0), (header + 16, 1, WRITE)]
        }),
        chain("a write with writable data", IO_ERROR, OUT, |header| {
            vec![(header, 16, 0), DATA, (header + 16, 1, WRITE)]
        }),
        chain("both, for a read", IO_ERROR, IN, |header| {
            vec![
                (header, 16, 0),
                (ROOM, 512, 0),
                (ROOM + 512, 512, WRITE),
                (header + 16, 1, WRITE),
            ]
        }),
        chain("both, for a write", IO_ERROR, OUT, |header| {
            vec![
                (header, 16, 0),
                (ROOM, 512, 0),
                (ROOM + 512, 512, WRITE),
                (header + 16, 1, WRITE),
            ]
        }),
        chain("interleaved", IO_ERROR, IN, |header| {
            vec![
                (header, 16, 0),
                DATA,
                (ROOM + 512, 512, 0),
                (header + 16, 1, WRITE),
            ]
        }),
        chain("an unknown type, interleaved", IO_ERROR, 77, |header| {
            vec![
                (header, 16, 0),
                DATA,
                (ROOM + 512, 512, 0),
                (header + 16, 1, WRITE),
            ]
        }),
        chain("an unknown type", UNSUPPORTED, 77, |header| {
            vec![(header, 16, 0), DATA, (header + 16, 1, WRITE)]
        }),
    ];
    run(&World::new(), &cases);
}
