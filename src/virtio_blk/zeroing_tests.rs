//! DISCARD and WRITE_ZEROES.

use super::*;

/// N18 of `docs/checklist.md`.
#[test]
fn discard_is_offered_only_where_it_is_meant_to_be() {
    const DISCARD: u64 = 1 << 13;
    const WRITE_ZEROES: u64 = 1 << 14;
    const SECURE_ERASE: u64 = 1 << 16;
    let offered = |read_only, max_discard_sectors| {
        let device = BlkDevice {
            read_only,
            max_discard_sectors,
            ..device()
        };
        device.features() & (DISCARD | WRITE_ZEROES | SECURE_ERASE)
    };
    assert_eq!(offered(false, 8), DISCARD | WRITE_ZEROES);
    assert_eq!(offered(false, 0), WRITE_ZEROES);
    assert_eq!(offered(true, 8), 0);
    assert_eq!(offered(true, 0), 0);
    let without = BlkDevice {
        max_discard_sectors: 0,
        ..device()
    };
    let answer = (Some(STATUS), Some(BlkStatus::Unsupported));
    assert_eq!(
        outcome(&parse_range(&without, kind::DISCARD, 0, 8, 0)),
        answer
    );
    assert!(parse_range(&without, kind::WRITE_ZEROES, 0, 8, 0).is_ok());
}

fn put_segment(memory: &Memory, address: u64, sector: u64, sectors: u32, flags: u32) {
    let place = |at| GuestAddress(address + at);
    memory.write_obj(sector.to_le(), place(0)).unwrap();
    memory.write_obj(sectors.to_le(), place(8)).unwrap();
    memory.write_obj(flags.to_le(), place(12)).unwrap();
}

fn parse_range_of(
    device: &BlkDevice,
    kind: u32,
    segment: (u64, u32, u32),
    descriptors: &[Desc],
) -> Result<BlkRequest, Refused> {
    let memory = memory();
    // The header's own sector means nothing here.
    put_header(&memory, kind, u64::MAX);
    put_segment(&memory, DATA, segment.0, segment.1, segment.2);
    parse_ring(&memory, &linked(descriptors), device)
}

fn parse_range(
    device: &BlkDevice,
    kind: u32,
    sector: u64,
    sectors: u32,
    flags: u32,
) -> Result<BlkRequest, Refused> {
    let plain = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)];
    parse_range_of(device, kind, (sector, sectors, flags), &plain)
}

#[test]
fn a_range_is_taken_from_its_segment_in_any_framing() {
    let framings: [&[Desc]; 4] = [
        &[(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)],
        &[
            (HEADER, 16, 0),
            (DATA, 3, 0),
            (DATA + 3, 13, 0),
            (STATUS, 1, WRITE),
        ],
        &[
            (HEADER, 7, 0),
            (HEADER + 7, 9, 0),
            (DATA, 16, 0),
            (STATUS, 1, WRITE),
        ],
        &[
            (HEADER, 16, 0),
            (DATA, 0, 0),
            (DATA, 16, 0),
            (STATUS, 1, WRITE),
        ],
    ];
    for framing in framings {
        for (kind, flags, action) in [
            (
                kind::DISCARD,
                0,
                Action::Discard {
                    sector: 5,
                    sectors: 9,
                },
            ),
            (
                kind::WRITE_ZEROES,
                0,
                Action::WriteZeroes {
                    sector: 5,
                    sectors: 9,
                    unmap: false,
                },
            ),
            (
                kind::WRITE_ZEROES,
                1,
                Action::WriteZeroes {
                    sector: 5,
                    sectors: 9,
                    unmap: true,
                },
            ),
        ] {
            let request = parse_range_of(&device(), kind, (5, 9, flags), framing).unwrap();
            assert_eq!((request.action, request.data.len()), (action, 0));
            assert_eq!(request.status, GuestAddress(STATUS));
        }
    }
}

#[test]
fn a_range_is_whole_blocks_within_the_disk_and_no_more_than_was_offered() {
    let large = BlkDevice {
        capacity: Capacity::new(1 << 40),
        ..device()
    };
    let blocks = BlkDevice {
        topology: Topology::of_blocks(4096),
        ..device()
    };
    let refused = (Some(STATUS), Some(BlkStatus::IoErr));
    for (kind, most) in [(kind::DISCARD, 65536), (kind::WRITE_ZEROES, 8192)] {
        for (sector, sectors) in [
            (0, 0),
            (0, u32::MAX),
            (0, CAPACITY as u32 + 1),
            (CAPACITY, 1),
            (CAPACITY - 1, 2),
            (CAPACITY + 1, 1),
            (u64::MAX, 1),
            (u64::MAX - 7, 8),
            (1 << 55, 8),
        ] {
            let result = parse_range(&device(), kind, sector, sectors, 0);
            assert_eq!(outcome(&result), refused, "{kind}: {sector}+{sectors}");
        }
        assert!(parse_range(&device(), kind, CAPACITY - 1, 1, 0).is_ok());
        assert!(parse_range(&device(), kind, 0, CAPACITY as u32, 0).is_ok());
        assert!(parse_range(&large, kind, 7, most, 0).is_ok());
        assert_eq!(outcome(&parse_range(&large, kind, 7, most + 1, 0)), refused);
        assert!(parse_range(&blocks, kind, 8, 16, 0).is_ok());
        for (sector, sectors) in [(1, 8), (8, 1), (8, 9)] {
            let result = parse_range(&blocks, kind, sector, sectors, 0);
            assert_eq!(outcome(&result), refused, "{kind}: {sector}+{sectors}");
        }
    }
}

#[test]
fn unknown_flags_are_unsupported() {
    let unsupported = (Some(STATUS), Some(BlkStatus::Unsupported));
    for (kind, known) in [(kind::DISCARD, 0_u32), (kind::WRITE_ZEROES, 1)] {
        for flags in (0..32).map(|bit| 1 << bit).filter(|flag| flag & known == 0) {
            let result = parse_range(&device(), kind, 0, 8, flags);
            assert_eq!(outcome(&result), unsupported, "{kind}: {flags:#x}");
        }
    }
}

/// The ranges (sector, sectors, flags), in descriptors of `piece` bytes.
fn parse_ranges(
    device: &BlkDevice,
    kind: u32,
    ranges: &[(u64, u32, u32)],
    piece: u32,
) -> Result<BlkRequest, Refused> {
    let memory = memory();
    put_header(&memory, kind, 0);
    for (i, range) in ranges.iter().enumerate() {
        put_segment(&memory, DATA + 16 * i as u64, range.0, range.1, range.2);
    }
    let end = 16 * ranges.len() as u32;
    let mut descriptors = vec![(HEADER, 16, 0)];
    for at in (0..end).step_by(piece as usize) {
        descriptors.push((DATA + u64::from(at), piece.min(end - at), 0));
    }
    descriptors.push((STATUS, 1, WRITE));
    parse_ring(&memory, &linked(&descriptors), device)
}

#[test]
fn several_ranges_are_taken_in_their_order() {
    let ranges = [(5, 9, 0), (0, 1, 0), (5, 9, 0), (900, 100, 0)];
    for piece in [7, 16, 24, 64] {
        let request = parse_ranges(&device(), kind::DISCARD, &ranges, piece).unwrap();
        let mut all = vec![request.action];
        all.extend(request.later.iter().rev());
        let want = ranges.map(|(sector, sectors, _)| Action::Discard {
            sector,
            sectors: sectors.into(),
        });
        assert_eq!(all, want);
    }
    // Each has its own flag.
    let two = [(0, 8, 1), (8, 8, 0)];
    let request = parse_ranges(&device(), kind::WRITE_ZEROES, &two, 32).unwrap();
    let range = |sector, unmap| Action::WriteZeroes {
        sector,
        sectors: 8,
        unmap,
    };
    assert_eq!(request.action, range(0, true));
    assert_eq!(request.later, [range(8, false)]);
}

/// Nothing of a request is carried out if one of its ranges is wrong.
#[test]
fn each_range_is_checked() {
    let refused = |code| (Some(STATUS), Some(code));
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for place in 0..3 {
            for (bad, code) in [
                ((CAPACITY, 1, 0), BlkStatus::IoErr),
                ((0, 0, 0), BlkStatus::IoErr),
                ((0, u32::MAX, 0), BlkStatus::IoErr),
                ((u64::MAX, 8, 0), BlkStatus::IoErr),
                ((0, 8, 2), BlkStatus::Unsupported),
            ] {
                let mut ranges = [(0, 8, 0); 3];
                ranges[place] = bad;
                let result = parse_ranges(&device(), kind, &ranges, 48);
                assert_eq!(
                    outcome(&result),
                    refused(code),
                    "{kind}: {bad:?} at {place}"
                );
            }
        }
    }
}

#[test]
fn as_many_ranges_as_were_offered_are_taken_and_no_more() {
    let unsupported = (Some(STATUS), Some(BlkStatus::Unsupported));
    for (kind, most) in [(kind::DISCARD, 32), (kind::WRITE_ZEROES, 8)] {
        let ranges = vec![(0, 8, 0); most + 1];
        let request = parse_ranges(&device(), kind, &ranges[..most], 16 * most as u32).unwrap();
        assert_eq!(request.later.len(), most - 1);
        let result = parse_ranges(&device(), kind, &ranges, 16 * most as u32 + 16);
        assert_eq!(outcome(&result), unsupported, "{kind}");
        // Sums that do not fit into 32 bits are counted as they are.
        let many = [
            (HEADER, 16, 0),
            (DATA, 1 << 31, 0),
            (DATA, (1 << 31) - 64, 0),
            (STATUS, 1, WRITE),
        ];
        let result = parse_range_of(&device(), kind, (0, 8, 0), &many);
        assert_eq!(outcome(&result), unsupported, "{kind}");
    }
}

#[test]
fn a_range_that_is_cut_short_or_goes_the_wrong_way_is_an_io_error() {
    let refused = (Some(STATUS), Some(BlkStatus::IoErr));
    let framings: [&[Desc]; 7] = [
        &[(HEADER, 16, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 8, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 15, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 17, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 31, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 16, WRITE), (STATUS, 1, WRITE)],
        &[
            (HEADER, 16, 0),
            (MEMORY_LEN as u64 - 8, 16, 0),
            (STATUS, 1, WRITE),
        ],
    ];
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for framing in framings {
            let result = parse_range_of(&device(), kind, (0, 8, 0), framing);
            assert_eq!(outcome(&result), refused, "{kind}: {framing:?}");
        }
    }
}
