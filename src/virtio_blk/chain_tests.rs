//! Chains in indirect tables, and chains that are broken in one way.

use proptest::prelude::*;

use super::*;
use crate::virtio_blk::last_written_byte;

#[test]
fn an_indirect_table_is_followed() {
    let memory = memory();
    put_header(&memory, kind::IN, 3);
    let table = linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    put_table(&memory, TABLE, &table);
    let request = parse_ring(&memory, &[(TABLE, 48, INDIRECT, 0)], &device()).unwrap();
    assert_eq!(
        request.action,
        Action::Read {
            sector: 3,
            sectors: 1
        }
    );
}

#[test]
fn bad_indirect_tables_lose_no_head_and_write_no_status() {
    let memory = memory();
    put_header(&memory, kind::IN, 3);
    let table = linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    put_table(&memory, TABLE, &table);
    // Nested: the second table's first entry points to the first table.
    put_table(
        &memory,
        TABLE + 0x1000,
        &[(HEADER, 16, NEXT, 1), (TABLE, 48, INDIRECT, 0)],
    );
    // A table whose chain never ends.
    put_table(&memory, TABLE + 0x2000, &[(HEADER, 16, NEXT, 0)]);
    let outside = MEMORY_LEN as u64;
    for (name, address, len) in [
        ("empty", TABLE, 0),
        ("15 bytes", TABLE, 15),
        ("17 bytes", TABLE, 17),
        ("4 GiB", TABLE, u32::MAX - 15),
        ("nested", TABLE + 0x1000, 32),
        ("looping", TABLE + 0x2000, 16 * 65535),
        ("cut short", TABLE, 32),
        ("outside memory", outside, 48),
        ("half outside memory", outside - 16, 48),
        ("wrapping", u64::MAX - 15, 48),
    ] {
        let result = parse_ring(&memory, &[(address, len, INDIRECT, 0)], &device());
        assert_eq!(outcome(&result), (None, Some(BlkStatus::IoErr)), "{name}");
        // Only where the chain has an end.
        let end = last_written_byte(&memory, GuestAddress(0), 16, 0);
        let expected = (name == "4 GiB").then_some(GuestAddress(STATUS));
        assert_eq!(end, expected, "{name}");
    }
}

#[test]
fn chains_that_break_only_the_limit_of_4_gib_have_a_known_status() {
    let memory = memory();
    put_header(&memory, kind::IN, 3);
    let status = Some(GuestAddress(STATUS));
    let half = (DATA, 1 << 31, WRITE);
    for (name, chain, expected) in [
        (
            "read",
            vec![(HEADER, 16, 0), half, half, (STATUS, 1, WRITE)],
            status,
        ),
        (
            "header",
            vec![(HEADER, u32::MAX, 0), (STATUS, 1, WRITE)],
            status,
        ),
        (
            "status of 2 bytes",
            vec![(HEADER, u32::MAX, 0), (STATUS - 1, 2, WRITE)],
            status,
        ),
        (
            "then nothing",
            vec![
                (HEADER, 16, 0),
                half,
                half,
                (STATUS, 1, WRITE),
                (0, 0, WRITE),
            ],
            status,
        ),
        (
            "no status",
            vec![(HEADER, u32::MAX, 0), (DATA, 512, 0)],
            None,
        ),
        (
            "wraps",
            vec![(HEADER, u32::MAX, 0), (u64::MAX, 2, WRITE)],
            None,
        ),
    ] {
        let result = parse_ring(&memory, &linked(&chain), &device());
        assert!(result.is_err_and(|refused| refused.is_broken()), "{name}");
        let end = last_written_byte(&memory, GuestAddress(0), 16, 0);
        assert_eq!(end, expected, "{name}");
    }
}

/// The place of the status byte is known, so the driver gets to know that it failed.
#[test]
fn a_chain_that_is_too_long_comes_back_with_an_error_status() {
    let memory = memory();
    put_header(&memory, kind::IN, 3);
    for count in [MAX_DESCRIPTORS - 2, MAX_DESCRIPTORS - 1, 5000] {
        let mut chain = vec![(HEADER, 16, 0)];
        // Half a sector each, of the same memory.
        chain.resize(count + 1, (DATA, 256, WRITE));
        chain.push((STATUS, 1, WRITE));
        chain.push((DATA, 0, WRITE));
        let tail = if count == 5000 { 0 } else { 1 };
        chain.truncate(chain.len() - tail);
        put_table(&memory, TABLE, &linked(&chain));
        let len = 16 * chain.len() as u32;
        let result = parse_ring(&memory, &[(TABLE, len, INDIRECT, 0)], &device());
        let refused = match result {
            Ok(_) => {
                assert_eq!(chain.len(), MAX_DESCRIPTORS);
                continue;
            }
            Err(refused) => refused,
        };
        assert!(chain.len() > MAX_DESCRIPTORS);
        assert_eq!(refused.status, Some(GuestAddress(STATUS)), "{count}");
        assert_eq!(refused.code, BlkStatus::IoErr);
    }
}

/// One way to break a valid chain, and what must come of it.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    None,
    UnknownType,
    PastEnd,
    OddLength,
    WrongDirection,
    ShortHeader,
    NoStatus,
    Loop,
}

fn flaws() -> impl Strategy<Value = Flaw> {
    prop_oneof![
        Just(Flaw::None),
        Just(Flaw::UnknownType),
        Just(Flaw::PastEnd),
        Just(Flaw::OddLength),
        Just(Flaw::WrongDirection),
        Just(Flaw::ShortHeader),
        Just(Flaw::NoStatus),
        Just(Flaw::Loop),
    ]
}

proptest! {
    #[test]
    fn a_chain_broken_in_one_way_gets_that_very_status(
        flaw in flaws(),
        write in any::<bool>(),
        sector in 0..CAPACITY - 100,
        pieces in prop::collection::vec(1_u32..=8, 1..=8),
        header_cut in 1_u32..16,
        odd in 1_u32..512,
        at in 0_usize..8,
    ) {
        let data_flag = if write { 0 } else { WRITE };
        let mut kind = if write { kind::OUT } else { kind::IN };
        let mut start = sector;
        let mut chain = vec![(HEADER, header_cut, 0), (HEADER + u64::from(header_cut), 16 - header_cut, 0)];
        let mut address = DATA;
        for sectors in &pieces {
            chain.push((address, sectors * 512, data_flag));
            address += u64::from(sectors * 512);
        }
        chain.push((STATUS, 1, WRITE));
        let piece = 2 + at % pieces.len();
        match flaw {
            Flaw::None | Flaw::Loop => {}
            Flaw::UnknownType => kind = 99,
            Flaw::PastEnd => start = CAPACITY + 1 - u64::from(pieces.iter().sum::<u32>()),
            Flaw::OddLength => chain[piece].1 += odd,
            Flaw::WrongDirection => chain[piece].2 ^= WRITE,
            // The rest of the header is missing and data takes its place only
            // when there is readable data, so cut all of it.
            Flaw::ShortHeader => { chain.retain(|d| d.2 == WRITE); chain.insert(0, (HEADER, header_cut, 0)); }
            Flaw::NoStatus => chain.retain(|d| d.2 == 0),
        }
        let mut table = linked(&chain);
        if let Flaw::Loop = flaw {
            let last = table.len() - 1;
            table[last].2 |= NEXT;
            table[last].3 = at as u16 % table.len() as u16;
        }
        let memory = memory();
        put_header(&memory, kind, start);
        let result = parse_ring(&memory, &table, &device());
        let want = match flaw {
            Flaw::None => (Some(STATUS), None),
            Flaw::UnknownType => (Some(STATUS), Some(BlkStatus::Unsupported)),
            Flaw::NoStatus | Flaw::Loop => (None, Some(BlkStatus::IoErr)),
            _ => (Some(STATUS), Some(BlkStatus::IoErr)),
        };
        prop_assert_eq!(outcome(&result), want);
        if let Ok(request) = result {
            let total: u32 = request.data.iter().map(|s| s.len).sum();
            prop_assert_eq!(total, 512 * pieces.iter().sum::<u32>());
        }
    }
}
