//! The judge's decoder knows how many ranges and descriptors there may be, and what is wrong
//! with requests that have more.

use super::*;
use crate::fuzzing::input::Input;
use crate::fuzzing::ring::World;
use crate::fuzzing::seeds::request_of_ranges;

const DISCARD: u8 = 4;
const ZEROES: u8 = 5;

/// The chain that a driver offers for these bytes, as `Driver::request` reads them.
fn offered(request: &[u8]) -> Chain {
    let mut world = World::new(&mut Input(&[]));
    world.drive(|driver, memory| driver.request(memory, &mut Input(request)));
    world.judge.look(&world.memory.image(), 0)
}

fn ranges(kind: u8, count: u8, last: Option<[u8; 3]>) -> Wish {
    let chain = offered(&request_of_ranges(kind, count, last, 0)[1..]);
    assert!(chain.status.is_some(), "{chain:?}");
    chain.wish
}

#[test]
fn as_many_ranges_as_there_may_be_are_wanted_and_no_more() {
    let adjoining = |count: u64| (0..count).map(|n| (8 + 2 * n, 2)).collect::<Vec<_>>();
    assert_eq!(ranges(DISCARD, 1, None), Wish::Discard(adjoining(1)));
    assert_eq!(ranges(DISCARD, 32, None), Wish::Discard(adjoining(32)));
    assert_eq!(ranges(DISCARD, 33, None), Wish::Unsupported);
    assert_eq!(ranges(ZEROES, 8, None), Wish::Zeroes(adjoining(8)));
    assert_eq!(ranges(ZEROES, 9, None), Wish::Unsupported);
}

#[test]
fn one_wrong_range_decides_what_becomes_of_all() {
    for kind in [DISCARD, ZEROES] {
        assert_eq!(ranges(kind, 8, Some([200, 2, 0])), Wish::Failure, "beyond");
        assert_eq!(ranges(kind, 8, Some([8, 0, 0])), Wish::Failure, "empty");
        assert_eq!(ranges(kind, 8, Some([8, 2, 2])), Wish::Unsupported, "flag");
        // Too many are too many before they are looked at.
        assert_eq!(ranges(kind, 40, Some([200, 2, 0])), Wish::Unsupported);
    }
    let unmap = Some([8, 2, 1]);
    assert_eq!(ranges(DISCARD, 2, unmap), Wish::Unsupported);
    assert_eq!(ranges(ZEROES, 2, unmap), Wish::Zeroes(vec![(8, 2), (8, 2)]));
    // 31 and 0 bytes.
    for length in [31, 0] {
        let flaw = [5, 1, length, 0, 0, 0];
        let request = [&[DISCARD, 8, 2, 1 << 2, 0, 0][..], &flaw].concat();
        assert_eq!(offered(&request).wish, Wish::Failure, "{length} bytes");
    }
}

#[test]
fn a_chain_that_only_breaks_a_limit_has_a_status_byte() {
    // A write of two pieces in an indirect table, with a flaw.
    let write = |layout: u8, flaw: &[u8]| offered(&[&[0, 8, 1, 7, 0, layout][..], flaw].concat());
    assert!(matches!(write(1, &[]).wish, Wish::Write { .. }));
    assert!(matches!(write(1, &[15, 1, 60, 0]).wish, Wish::Write { .. }));
    for (name, chain) in [
        ("1025 descriptors", write(1, &[15, 1, 61, 0])),
        ("a table of 65540", write(1 | 16, &[])),
        ("4 GiB", write(1, &[5, 1, 0xff, 0xff, 0xff, 0xff])),
    ] {
        assert_eq!(chain.wish, Wish::Failure, "{name}");
        assert!(chain.status.is_some(), "{name}");
        assert_eq!(chain.writable.len(), 1, "{name}");
    }
    // One that has no end has none.
    let chain = write(0, &[7]);
    assert_eq!((chain.wish, chain.status), (Wish::Failure, None));
}
