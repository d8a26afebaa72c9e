//! The record of entries that are acknowledged and not yet in the log.

use super::{DEVICE, Entry, Event, LoadParams, Loaded, MemoryDisk, load};
use crate::io::sim::{Fault, FaultOn, Fill, Keep, Rng, SimDevices};
use crate::io::{Errno, OwnedBuffer, blocking};
use crate::store::{
    FoundRecord, Listed, Metadata, RECORD_BYTES, RECORD_ROOM, RecordError, RecordOwner, StoreError,
    check_record, create, read_record, record_block_of, record_slots, record_write, replay_record,
};
use crate::units::ChunkSize;

const COW_SECTORS: u64 = 400;
const ORIGIN_SECTORS: u64 = 320;
const OWNER: RecordOwner = RecordOwner {
    boot: [7; 16],
    store: [9; 64],
};

const fn entry(old: u64, new: u64) -> Entry {
    Entry { old, new }
}

/// A store of 8-sector chunks with these entries.
fn store_with(entries: &[Entry]) -> (MemoryDisk, Metadata) {
    let mut disk = MemoryDisk::new(vec![0xee; COW_SECTORS as usize * 512]);
    let chunk = ChunkSize::new(8).unwrap();
    let mut log = create(&mut disk, DEVICE, chunk, COW_SECTORS, 512).unwrap();
    let all: Vec<_> = (0u64..).zip(entries.iter().copied()).collect();
    replay_record(&list(0, &all), &mut log, ORIGIN_SECTORS, &mut disk, DEVICE).unwrap();
    disk.events.clear();
    (disk, log)
}

/// The bytes of a record that lists these entries in their slots.
fn record_of(floor: u64, entries: &[(u64, Entry)]) -> Vec<u8> {
    let mut bytes = OWNER.empty_record();
    let mut blocks: Vec<u64> = entries.iter().map(|e| record_block_of(e.0)).collect();
    blocks.push(record_block_of(floor));
    for first in blocks {
        let listed = |slot| entries.iter().find(|e| e.0 == slot).map(|e| e.1);
        let write = record_write(floor, first, listed);
        bytes[write.offset as usize..][..write.data.len()].copy_from_slice(&write.data);
    }
    bytes
}

fn list(floor: u64, entries: &[(u64, Entry)]) -> Listed {
    match read_record(&record_of(floor, entries), &OWNER).unwrap() {
        FoundRecord::Mine(listed) => listed,
        other => panic!("{other:?}"),
    }
}

fn loaded(disk: &mut MemoryDisk) -> Vec<Entry> {
    let params = LoadParams {
        cow_sectors: COW_SECTORS,
        origin_sectors: Some(ORIGIN_SECTORS),
        unit: 512,
        block_bytes: 512,
    };
    match load(disk, DEVICE, &params).unwrap() {
        Loaded::Valid(store) => store.metadata().entries().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_start_appends_what_the_log_lacks_and_a_second_one_nothing() {
    let (mut disk, mut log) = store_with(&[entry(4, 2)]);
    // The first is durable already; COW chunk 4 was given to a write that never ended.
    let listed = list(0, &[(0, entry(4, 2)), (1, entry(9, 3)), (3, entry(1, 5))]);
    let before = log.entries().to_vec();
    for appended in [2, 0] {
        assert_eq!(check_record(&listed, &log, ORIGIN_SECTORS), Ok(appended));
        let done = replay_record(&listed, &mut log, ORIGIN_SECTORS, &mut disk, DEVICE);
        assert_eq!(done, Ok(appended));
        let all = [before.as_slice(), &[entry(9, 3), entry(1, 5)]].concat();
        assert_eq!(loaded(&mut disk), all);
    }
    assert_eq!(
        log.allocate(),
        Ok(6),
        "a chunk that holds data is not given out"
    );
}

#[test]
fn the_data_is_durable_before_the_entries_are_written() {
    let (mut disk, mut log) = store_with(&[]);
    let listed = list(0, &[(0, entry(4, 2))]);
    replay_record(&listed, &mut log, ORIGIN_SECTORS, &mut disk, DEVICE).unwrap();
    let is_flush = |e: &Event| matches!(e, Event::Flush);
    let is_durable = |e: &Event| matches!(e, Event::Write { durable: true, .. });
    let flushed = disk.events.iter().position(is_flush).unwrap();
    let written = disk.events.iter().position(is_durable).unwrap();
    assert!(flushed < written, "{:?}", disk.events);
}

#[test]
fn what_is_retired_is_not_appended_again() {
    // A merge removed chunk 4 from the log, and the record still names it below its floor.
    let bytes = {
        let mut bytes = record_of(0, &[(0, entry(4, 2))]);
        let floor = record_write(1, 30, |_| None);
        bytes[floor.offset as usize..][..floor.data.len()].copy_from_slice(&floor.data);
        bytes
    };
    let Ok(FoundRecord::Mine(listed)) = read_record(&bytes, &OWNER) else {
        panic!("not read");
    };
    assert!(listed.is_empty());
    let (_, log) = store_with(&[]);
    assert_eq!(check_record(&listed, &log, ORIGIN_SECTORS), Ok(0));
}

#[test]
fn a_record_that_contradicts_the_log_or_itself_is_refused_and_nothing_is_written() {
    let log = [entry(4, 2), entry(5, 3)];
    let cases: [(u64, &[Entry]); 8] = [
        (0, &[entry(4, 6)]),              // another copy of a chunk
        (0, &[entry(6, 2)]),              // another chunk in a copy
        (0, &[entry(6, 6), entry(6, 7)]), // two copies of one chunk
        (0, &[entry(6, 6), entry(7, 6)]), // two chunks in one copy
        (0, &[entry(6, 1)]),              // a metadata chunk
        (0, &[entry(6, u64::MAX)]),       // behind the end of the COW
        (0, &[entry(u64::MAX, 6)]),       // behind the end of the origin
        (3, &[entry(6, 6)]),              // of a longer log
    ];
    for (floor, entries) in cases {
        let (mut disk, mut metadata) = store_with(&log);
        let entries: Vec<_> = (floor..).zip(entries.iter().copied()).collect();
        let listed = list(floor, &entries);
        let done = replay_record(&listed, &mut metadata, ORIGIN_SECTORS, &mut disk, DEVICE);
        assert!(done.is_err(), "{entries:?}");
        assert_eq!(disk.events, [], "{entries:?}");
    }
}

#[test]
fn more_entries_than_the_store_has_areas_for_are_refused() {
    // 64-byte areas do not exist: a chunk of one sector has areas of 32 entries.
    let mut disk = MemoryDisk::new(vec![0; 35 * 512]);
    let chunk = ChunkSize::new(1).unwrap();
    let mut log = create(&mut disk, DEVICE, chunk, 34, 512).unwrap();
    let entries: Vec<_> = (0..32).map(|n| (n, entry(n, n + 2))).collect();
    disk.events.clear();
    let done = replay_record(&list(0, &entries), &mut log, 64, &mut disk, DEVICE);
    let refused = matches!(done, Err(RecordError::Store(StoreError::Truncated { .. })));
    assert!(refused, "{done:?}");
    assert_eq!(disk.events, []);
}

#[test]
fn a_record_of_another_boot_or_another_store_is_told_apart() {
    let bytes = record_of(0, &[(0, entry(4, 2))]);
    let other_boot = RecordOwner {
        boot: [8; 16],
        ..OWNER
    };
    let other_store = RecordOwner {
        store: [8; 64],
        ..OWNER
    };
    let read = |owner| read_record(&bytes, owner).unwrap();
    assert_eq!(read(&other_boot), FoundRecord::OtherBoot);
    assert_eq!(read(&other_store), FoundRecord::OtherStore);
    let blank = read_record(&vec![0; RECORD_BYTES], &OWNER);
    assert_eq!(blank, Ok(FoundRecord::Blank));
    assert_eq!(read_record(&[], &OWNER), Ok(FoundRecord::Blank));
}

#[test]
fn any_damage_is_noticed_and_none_panics() {
    let entries: Vec<_> = (0..70).map(|n| (n, entry(n, n + 2))).collect();
    let whole = record_of(0, &entries);
    assert_eq!(list(0, &entries), list(0, &entries));
    for at in (0..RECORD_BYTES).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let read = read_record(&bytes, &OWNER);
        assert!(
            matches!(read, Err(RecordError::Damaged { .. })),
            "byte {at}: {read:?}"
        );
    }
    for len in [100, 511, 512, RECORD_BYTES - 1, RECORD_BYTES + 1] {
        let mut bytes = whole.clone();
        bytes.resize(len, 1);
        let read = read_record(&bytes, &OWNER);
        assert!(
            matches!(read, Err(RecordError::Damaged { .. })),
            "{len} bytes: {read:?}"
        );
    }
    // A block in another block's place.
    let mut bytes = whole;
    bytes.copy_within(512..1024, 1536);
    assert!(read_record(&bytes, &OWNER).is_err());
}

#[test]
fn blocks_with_hostile_content_and_right_checksums_are_refused_or_harmless() {
    let mut rng = Rng::new(1);
    let mut word = move || match rng.below(4) {
        0 => rng.next(),
        1 => u64::MAX - rng.below(40) as u64,
        _ => rng.below(60) as u64,
    };
    for _ in 0..2000 {
        let (mut disk, mut log) = store_with(&[entry(4, 2), entry(5, 3)]);
        let mut bytes = OWNER.empty_record();
        for _ in 0..3 {
            let entries: Vec<_> = (0..30).map(|_| entry(word(), word())).collect();
            let first = record_block_of(word());
            let write = record_write(word(), first, |slot| {
                let at = (slot - first) as usize;
                entries.get(at).copied().filter(|_| at.is_multiple_of(9))
            });
            bytes[write.offset as usize..][..write.data.len()].copy_from_slice(&write.data);
        }
        if let Ok(FoundRecord::Mine(listed)) = read_record(&bytes, &OWNER) {
            let _ = replay_record(&listed, &mut log, ORIGIN_SECTORS, &mut disk, DEVICE);
        }
        assert_eq!(loaded(&mut disk), log.entries().to_vec());
    }
}

#[test]
fn a_block_that_is_reused_lists_retired_entries_only() {
    for floor in [0, 1, 29, 30, 1000, 5000] {
        let room = floor..floor + RECORD_ROOM as u64;
        let place = |first: u64| record_write(floor, first, |_| None).offset;
        let mut blocks: Vec<u64> = room.map(record_block_of).collect();
        blocks.dedup();
        let mut places: Vec<u64> = blocks.iter().map(|first| place(*first)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), blocks.len(), "floor {floor}");
        let last = record_slots(*blocks.last().unwrap());
        assert!(last.contains(&(floor + RECORD_ROOM as u64 - 1)));
    }
}

/// 30 entries in the log and six in the record, which go over the end of the first area.
#[test]
fn power_may_go_at_any_instant_of_a_replay() {
    const LOGGED: u64 = 30;
    const ALL: u64 = 36;
    let chunk = ChunkSize::new(1).unwrap();
    // One sector each; the chunk of the second area is 34.
    let place = |n: u64| n + 2 + u64::from(n >= 32);
    let data = |n: u64| vec![n as u8 + 1; 512];
    let listed: Vec<_> = (LOGGED..ALL).map(|n| (n, entry(n, place(n)))).collect();
    let listed = list(LOGGED, &listed);
    let mut ended = false;
    for after in 0.. {
        let devices = SimDevices::new(after);
        let cow = devices.add(80, Fill::Noise);
        let disk = &mut devices.disk();
        let mut log = create(disk, cow, chunk, 80, 512).unwrap();
        for n in 0..ALL {
            let mut buffer = OwnedBuffer::zeroed(512);
            buffer.as_mut_slice().copy_from_slice(&data(n));
            blocking::write_all(disk, cow, place(n) * 512, buffer, n < LOGGED).unwrap();
        }
        let logged: Vec<_> = (0..LOGGED).map(|n| (n, entry(n, place(n)))).collect();
        let logged = list(0, &logged);
        replay_record(&logged, &mut log, 64, disk, cow).unwrap();
        // The process died: the data of the other six is volatile.
        let devices = devices.process_death(after);
        devices.fail(Fault::new(FaultOn::Any, Errno::EIO).after(after));
        let done = replay_record(&listed, &mut log, 64, &mut devices.disk(), cow);
        ended = done.is_ok();
        for seed in 0..60 {
            let keep = match seed {
                0 => Keep::Nothing,
                1 => Keep::Everything,
                seed => Keep::Seeded(seed),
            };
            let crashed = devices.crash(keep);
            let params = LoadParams {
                cow_sectors: 80,
                origin_sectors: Some(64),
                unit: 512,
                block_bytes: 512,
            };
            let Ok(Loaded::Valid(store)) = load(&mut crashed.disk(), cow, &params) else {
                panic!("no store after {after} operations");
            };
            let entries = store.metadata().entries().to_vec();
            assert!(entries.len() as u64 >= if ended { ALL } else { LOGGED });
            for entry in entries {
                let found = crashed.read_now(cow, entry.new * 512, 512);
                assert!(
                    found == data(entry.old),
                    "{entry:?} after {after} operations"
                );
            }
        }
        if ended {
            break;
        }
    }
    assert!(ended);
}
