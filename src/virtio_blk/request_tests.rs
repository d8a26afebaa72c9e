#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::cast_possible_truncation
)]

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::virtio_blk::{Capacity, Topology};

#[path = "chain_tests.rs"]
mod chains;
#[path = "zeroing_tests.rs"]
mod zeroing;

type Memory = GuestMemoryMmap<()>;

const MEMORY_LEN: usize = 0x40_0000;
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x30_0000;
const TABLE: u64 = 0x38_0000;
const CAPACITY: u64 = 1000;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap()
}

fn device() -> BlkDevice {
    BlkDevice {
        capacity: Capacity::new(CAPACITY),
        topology: Topology::of_blocks(512),
        read_only: false,
        serial: "serial".into(),
        num_queues: 1,
        max_discard_sectors: crate::virtio_blk::MAX_DISCARD_SECTORS,
    }
}

/// (address, length, flags) of a descriptor.
type Desc = (u64, u32, u16);

/// (address, length, flags, next), as they stand in the table.
type Raw = (u64, u32, u16, u16);

/// Links descriptors in a row.
fn linked(descriptors: &[Desc]) -> Vec<Raw> {
    let last = descriptors.len() - 1;
    let link = |(i, &(address, len, flags)): (usize, &Desc)| {
        let next = if i == last { 0 } else { NEXT };
        (address, len, flags | next, i as u16 + 1)
    };
    descriptors.iter().enumerate().map(link).collect()
}

fn put_header(memory: &Memory, kind: u32, sector: u64) {
    memory
        .write_obj(kind.to_le(), GuestAddress(HEADER))
        .unwrap();
    memory
        .write_obj(u32::MAX, GuestAddress(HEADER + 4))
        .unwrap();
    memory
        .write_obj(sector.to_le(), GuestAddress(HEADER + 8))
        .unwrap();
}

fn put_table(memory: &Memory, table: u64, descriptors: &[Raw]) {
    for (i, &(address, len, flags, next)) in descriptors.iter().enumerate() {
        let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        memory
            .write_obj(raw, GuestAddress(table + 16 * i as u64))
            .unwrap();
    }
}

/// Parses the chain at head 0 of a ring of 16.
fn parse_ring(
    memory: &Memory,
    descriptors: &[Raw],
    device: &BlkDevice,
) -> Result<BlkRequest, Refused> {
    let ring = MockSplitQueue::new(memory, 16);
    put_table(memory, 0, descriptors);
    memory
        .write_obj(1_u16.to_le(), GuestAddress(ring.avail_addr().0 + 2))
        .unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    let chain = queue.iter(memory).unwrap().next().unwrap();
    parse(chain, device)
}

fn run(kind: u32, sector: u64, descriptors: &[Desc]) -> Result<BlkRequest, Refused> {
    run_on(&device(), kind, sector, descriptors)
}

fn run_on(
    device: &BlkDevice,
    kind: u32,
    sector: u64,
    descriptors: &[Desc],
) -> Result<BlkRequest, Refused> {
    let memory = memory();
    put_header(&memory, kind, sector);
    parse_ring(&memory, &linked(descriptors), device)
}

fn outcome(result: &Result<BlkRequest, Refused>) -> (Option<u64>, Option<BlkStatus>) {
    match result {
        Ok(request) => (Some(request.status.0), None),
        Err(refused) => (refused.status.map(|a| a.0), Some(refused.code)),
    }
}

fn segments(list: &[(u64, u32)]) -> Segments {
    let segment = |&(address, len)| Segment {
        address: GuestAddress(address),
        len,
    };
    list.iter().map(segment).collect()
}

// Long: one table of framings, each with the same request behind it.
#[test]
fn every_framing_gives_the_same_request() {
    let read = Action::Read {
        sector: 7,
        sectors: 4,
    };
    let write = Action::Write {
        sector: 7,
        sectors: 4,
    };
    let status = GuestAddress(STATUS);
    let cases: &[(&str, u32, Action, &[Desc])] = &[
        (
            "plain read",
            kind::IN,
            read,
            &[(HEADER, 16, 0), (DATA, 2048, WRITE), (STATUS, 1, WRITE)],
        ),
        (
            "plain write",
            kind::OUT,
            write,
            &[(HEADER, 16, 0), (DATA, 2048, 0), (STATUS, 1, WRITE)],
        ),
        (
            "split header",
            kind::OUT,
            write,
            &[
                (HEADER, 5, 0),
                (HEADER + 5, 11, 0),
                (DATA, 2048, 0),
                (STATUS, 1, WRITE),
            ],
        ),
        (
            "byte by byte",
            kind::IN,
            read,
            &[
                (HEADER, 1, 0),
                (HEADER + 1, 1, 0),
                (HEADER + 2, 1, 0),
                (HEADER + 3, 13, 0),
                (DATA, 2048, WRITE),
                (STATUS, 1, WRITE),
            ],
        ),
        (
            "empty descriptors",
            kind::OUT,
            write,
            &[
                (HEADER, 16, 0),
                (0, 0, 0),
                (DATA, 2048, 0),
                (0, 0, WRITE),
                (STATUS, 1, WRITE),
                (7, 0, WRITE),
            ],
        ),
    ];
    for (name, kind, action, descriptors) in cases {
        let request = run(*kind, 7, descriptors).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let want = BlkRequest {
            later: Vec::new(),
            action: *action,
            data: segments(&[(DATA, 2048)]),
            status,
        };
        assert_eq!(request, want, "{name}");
    }
}

#[test]
fn header_and_status_may_share_descriptors_with_the_data() {
    let write = run(kind::OUT, 1, &[(HEADER, 16 + 1024, 0), (STATUS, 1, WRITE)]).unwrap();
    assert_eq!(write.data, segments(&[(HEADER + 16, 1024)]));
    let read = run(
        kind::IN,
        1,
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 513, WRITE)],
    )
    .unwrap();
    assert_eq!(read.data, segments(&[(DATA, 512), (STATUS, 512)]));
    assert_eq!(read.status, GuestAddress(STATUS + 512));
    assert_eq!(
        read.action,
        Action::Read {
            sector: 1,
            sectors: 2
        }
    );
}

#[test]
fn a_flush_needs_no_data_and_its_sector_is_ignored() {
    let flush = run(
        kind::FLUSH,
        u64::MAX,
        &[(HEADER, 16, 0), (STATUS, 1, WRITE)],
    )
    .unwrap();
    assert_eq!(flush.action, Action::Flush);
    assert!(flush.data.is_empty());
}

#[test]
fn get_id_takes_whatever_room_there_is() {
    for room in [0, 1, 19, 20, 21, 512] {
        let id = run(
            kind::GET_ID,
            0,
            &[(HEADER, 16, 0), (DATA, room, WRITE), (STATUS, 1, WRITE)],
        )
        .unwrap();
        assert_eq!(id.action, Action::GetId);
        let total: u32 = id.data.iter().map(|s| s.len).sum();
        assert_eq!(total, room);
    }
}

#[test]
fn a_range_is_refused_exactly_beyond_the_end() {
    let with = |sector, len| {
        run(
            kind::IN,
            sector,
            &[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)],
        )
    };
    assert!(with(CAPACITY - 1, 512).is_ok());
    assert!(with(0, 512 * CAPACITY as u32).is_ok());
    for (sector, len) in [
        (CAPACITY, 512),
        (CAPACITY - 1, 1024),
        (0, 512 * (CAPACITY as u32 + 1)),
        (u64::MAX, 512),
        (u64::MAX >> 9, 512),
        (1 << 55, 512),
        ((1 << 55) + 1, 512),
    ] {
        assert_eq!(
            outcome(&with(sector, len)),
            (Some(STATUS), Some(BlkStatus::IoErr)),
            "{sector}+{len}"
        );
    }
}

#[test]
fn odd_lengths_are_io_errors() {
    for len in [0, 1, 511, 513, 1000] {
        let read = run(
            kind::IN,
            0,
            &[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)],
        );
        assert_eq!(
            outcome(&read),
            (Some(STATUS), Some(BlkStatus::IoErr)),
            "read of {len}"
        );
        let write = run(
            kind::OUT,
            0,
            &[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)],
        );
        assert_eq!(
            outcome(&write),
            (Some(STATUS), Some(BlkStatus::IoErr)),
            "write of {len}"
        );
    }
}

#[test]
fn requests_keep_to_the_block_size() {
    let device = BlkDevice {
        topology: Topology::of_blocks(4096),
        ..device()
    };
    let with = |sector, len| {
        run_on(
            &device,
            kind::IN,
            sector,
            &[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)],
        )
    };
    assert!(with(8, 4096).is_ok());
    for (sector, len) in [(1, 4096), (8, 512), (8, 4608)] {
        assert_eq!(
            outcome(&with(sector, len)),
            (Some(STATUS), Some(BlkStatus::IoErr)),
            "{sector}+{len}"
        );
    }
}

#[test]
fn a_read_only_disk_refuses_every_writing_type() {
    let device = BlkDevice {
        read_only: true,
        ..device()
    };
    for kind in 0..40 {
        let writes = [1, 11, 13, 14, 15, 18, 20, 22, 24, 26].contains(&kind);
        let result = run_on(
            &device,
            kind,
            0,
            &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)],
        );
        let refused = result
            .err()
            .is_some_and(|r| r.reason == "a write to a read-only disk");
        assert_eq!(refused, writes, "type {kind}");
    }
}

#[test]
fn types_that_are_not_offered_are_unsupported() {
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 99, u32::MAX] {
        let result = run(
            kind,
            0,
            &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)],
        );
        assert_eq!(
            outcome(&result),
            (Some(STATUS), Some(BlkStatus::Unsupported)),
            "type {kind}"
        );
    }
}

#[test]
fn data_in_the_wrong_direction_is_an_io_error() {
    let readable_read = run(
        kind::IN,
        0,
        &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)],
    );
    let writable_write = run(
        kind::OUT,
        0,
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)],
    );
    let mixed = run(
        kind::OUT,
        0,
        &[
            (HEADER, 16, 0),
            (DATA, 512, WRITE),
            (DATA, 512, 0),
            (STATUS, 1, WRITE),
        ],
    );
    for result in [readable_read, writable_write, mixed] {
        assert_eq!(outcome(&result), (Some(STATUS), Some(BlkStatus::IoErr)));
    }
}

#[test]
fn a_chain_without_a_status_byte_names_no_place_for_it() {
    let memory = memory();
    put_header(&memory, kind::OUT, 0);
    let cases: &[(&str, Vec<Raw>)] = &[
        (
            "nothing writable",
            linked(&[(HEADER, 16, 0), (DATA, 512, 0)]),
        ),
        (
            "empty status",
            linked(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 0, WRITE)]),
        ),
        (
            "loop",
            vec![(HEADER, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 0)],
        ),
        (
            "next out of range",
            vec![(HEADER, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 16)],
        ),
        ("next far out of range", vec![(HEADER, 16, NEXT, u16::MAX)]),
        (
            "sum beyond 4 GiB",
            linked(&[(HEADER, 16, 0), (DATA, u32::MAX, 0), (STATUS, 1, WRITE)]),
        ),
        (
            "status beyond the address space",
            linked(&[(HEADER, 16, 0), (u64::MAX - 1, 8, WRITE)]),
        ),
    ];
    for (name, descriptors) in cases {
        let result = parse_ring(&memory, descriptors, &device());
        assert_eq!(outcome(&result), (None, Some(BlkStatus::IoErr)), "{name}");
    }
}

#[test]
fn a_header_that_cannot_be_read_is_an_io_error() {
    let outside = MEMORY_LEN as u64;
    for header in [
        (outside, 16),
        (outside - 8, 16),
        (u64::MAX - 4, 16),
        (HEADER, 15),
        (HEADER, 0),
    ] {
        let result = run(
            kind::FLUSH,
            0,
            &[(header.0, header.1, 0), (STATUS, 1, WRITE)],
        );
        assert_eq!(
            outcome(&result),
            (Some(STATUS), Some(BlkStatus::IoErr)),
            "{header:?}"
        );
    }
    let none = run(kind::FLUSH, 0, &[(STATUS, 1, WRITE)]);
    assert_eq!(outcome(&none), (Some(STATUS), Some(BlkStatus::IoErr)));
}
