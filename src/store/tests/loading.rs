//! Creating, loading and settling.

use super::{DEVICE, Decoded, Event, MemoryDisk, decode, load_image, load_valid, params};
use crate::store::{Entry, Layout, Loaded, Metadata, StoreError, create, load};
use crate::units::ChunkSize;

const CHUNK: usize = 1024; // 2 sectors: 64 entries in an area of 2 units

fn chunk_size() -> ChunkSize {
    ChunkSize::new(2).unwrap()
}

/// A store of 200 chunks with these bytes laid over area 0 as entries.
fn store(area: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = MemoryDisk::new(vec![0xee; 200 * CHUNK]);
    create(&mut disk, DEVICE, chunk_size(), 400, 512).unwrap();
    let bytes = area
        .iter()
        .flat_map(|&(old, new)| Entry { old, new }.to_bytes());
    for (place, byte) in disk.image[CHUNK..].iter_mut().zip(bytes) {
        *place = byte;
    }
    disk.image
}

fn refusal(area: &[(u64, u64)]) -> StoreError {
    load_image(&store(area)).expect_err("should be refused")
}

fn settle(image: Vec<u8>) -> (MemoryDisk, Metadata) {
    let store = load_valid(&image);
    let mut disk = MemoryDisk::new(image);
    let metadata = store.settle(&mut disk, DEVICE).unwrap();
    (disk, metadata)
}

#[test]
fn creation_never_leaves_a_header_before_a_foreign_area() {
    // A new store replaces an older one, whose first area has entries.
    let mut disk = MemoryDisk::new(store(&[(1, 2), (5, 3)]));
    let before = disk.image.clone();
    create(&mut disk, DEVICE, chunk_size(), 400, 512).unwrap();
    assert_eq!(
        decode(&disk.image),
        Decoded {
            entries: vec![],
            junk: false
        }
    );
    assert_eq!(
        disk.image[2 * CHUNK..],
        before[2 * CHUNK..],
        "data chunks are not touched"
    );

    // Durable images: writes after the last flush may be there or not.
    let mut durable = before;
    let mut volatile: Vec<(u64, Vec<u8>)> = Vec::new();
    for event in &disk.events {
        match event {
            Event::Flush => volatile.drain(..).for_each(|(at, data)| {
                super::apply(&mut durable, at, &data);
            }),
            Event::Write {
                offset,
                data,
                durable: true,
            } => {
                assert_eq!(data.len(), 512, "only a unit is atomic");
                super::apply(&mut durable, *offset, data);
            }
            Event::Write {
                offset,
                data,
                durable: false,
            } => volatile.push((*offset, data.clone())),
        }
        match load_image(&durable).unwrap() {
            Loaded::New => {}
            Loaded::Valid(store) => assert_eq!(store.metadata().entries().to_vec(), []),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(durable, disk.image, "everything is durable at the end");
}

#[test]
fn creation_refuses_what_cannot_hold_a_chunk() {
    let mut disk = MemoryDisk::new(vec![0xee; 4096]);
    let mut attempt = |sectors, unit| create(&mut disk, DEVICE, chunk_size(), sectors, unit);
    let error = attempt(5, 512).unwrap_err();
    assert_eq!(
        error,
        StoreError::TooSmall {
            chunk_sectors: 2,
            needs: 6,
            has: 5
        }
    );
    assert!(matches!(
        attempt(400, 4096),
        Err(StoreError::ChunkBelowBlock { .. })
    ));
    assert_eq!(disk.events, [], "nothing was written");
}

#[test]
fn an_io_error_is_named_with_place_and_reason() {
    for operation in 0..4 {
        let mut disk = MemoryDisk::new(vec![0; 200 * CHUNK]);
        disk.fail_at = Some(operation);
        let error = create(&mut disk, DEVICE, chunk_size(), 400, 512).unwrap_err();
        assert!(error.to_string().contains("Input/output error"), "{error}");
    }
    let mut disk = MemoryDisk::new(store(&[]));
    disk.fail_at = Some(1);
    let error = load(&mut disk, DEVICE, &params(&store(&[]), 512, None)).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Io {
            action: "read",
            offset: 1024,
            len: 1024,
            ..
        }
    ));
}

#[test]
fn a_blank_or_tiny_device_is_new_or_refused() {
    assert!(matches!(load_image(&[0; 4096]), Ok(Loaded::New)));
    assert!(matches!(load_image(&[]), Err(StoreError::Truncated { .. })));
}

#[test]
fn chunks_below_a_block_of_the_devices_are_refused() {
    let image = store(&[]);
    let mut wide = params(&image, 512, None);
    wide.block_bytes = 4096;
    for params in [wide, params(&image, 4096, None)] {
        let error = load(&mut MemoryDisk::new(image.clone()), DEVICE, &params).unwrap_err();
        assert_eq!(
            error,
            StoreError::ChunkBelowBlock {
                chunk_bytes: 1024,
                block_bytes: 4096
            }
        );
    }
}

#[test]
fn a_store_cut_short_says_how_much_is_missing() {
    let full: Vec<(u64, u64)> = (0..64).map(|n| (n, n + 2)).collect();
    let mut image = store(&full);
    image.truncate(66 * CHUNK);
    let error = load_image(&image).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Truncated {
                needs: 134,
                has: 132,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("metadata area 1 in chunk 66"),
        "{error}"
    );

    let mut image = store(&[(4, 2), (5, 100)]);
    image.truncate(100 * CHUNK);
    let error = load_image(&image).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Truncated {
                needs: 202,
                has: 200,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("entry 1"), "{error}");
}

#[test]
fn corrupt_entries_are_refused() {
    assert!(matches!(
        refusal(&[(0, 1)]),
        StoreError::NotData { slot: 0, .. }
    ));
    assert!(matches!(
        refusal(&[(0, 2), (1, 66)]),
        StoreError::NotData { slot: 1, .. }
    ));
    assert!(matches!(
        refusal(&[(0, 2), (0, 3)]),
        StoreError::TwoCopies { old: 0, .. }
    ));
    assert!(matches!(
        refusal(&[(0, 2), (1, 2)]),
        StoreError::SharedCopy { new: 2, .. }
    ));
    assert!(matches!(
        refusal(&[(0, u64::MAX)]),
        StoreError::Truncated { .. }
    ));
}

#[test]
fn old_chunks_are_held_against_the_origin_rounded_up() {
    let image = store(&[(5, 2)]);
    let attempt = |sectors| {
        load(
            &mut MemoryDisk::new(image.clone()),
            DEVICE,
            &params(&image, 512, Some(sectors)),
        )
    };
    assert!(matches!(attempt(11), Ok(Loaded::Valid(_))));
    assert!(matches!(
        attempt(10),
        Err(StoreError::BeyondOrigin {
            origin_chunks: 5,
            ..
        })
    ));
}

#[test]
fn origin_chunk_zero_is_an_entry_and_the_terminators_old_chunk_is_nothing() {
    let store = load_valid(&store(&[(0, 2), (7, 0)]));
    assert_eq!(
        store.metadata().entries().to_vec(),
        [Entry { old: 0, new: 2 }]
    );
    assert_eq!(
        store.junk(),
        Some(1024..1536),
        "but it is stale, and cleared"
    );
}

#[test]
fn holes_and_disorder_of_older_kernels_load() {
    let image = store(&[(9, 40), (1, 3), (7, 70)]);
    let mut metadata = settle(image).1;
    let slots = [40, 3, 70, 2, 41].map(|new| metadata.slot_of(new));
    assert_eq!(slots, [Some(0), Some(1), Some(2), None, None]);
    assert_eq!(metadata.allocate(), Ok(71), "above every chunk in use");
    assert_eq!(
        settle(store(&[(9, 65)])).1.allocate(),
        Ok(67),
        "66 is metadata"
    );
}

#[test]
fn stale_bytes_after_the_terminator_never_revive() {
    // Slot 1 terminates; slot 2 and slot 40 (in the other unit) are stale.
    let mut area = vec![(3, 2), (0, 0), (8, 4)];
    area.resize(40, (0, 0));
    area.push((9, 5));
    let image = store(&area);
    assert_eq!(load_valid(&image).junk(), Some(1024..2048));
    assert!(decode(&image).junk);

    let (disk, metadata) = settle(image);
    let kept = vec![Entry { old: 3, new: 2 }];
    assert_eq!(metadata.entries().to_vec(), kept);
    assert_eq!(
        decode(&disk.image),
        Decoded {
            entries: kept,
            junk: false
        }
    );
    let order: Vec<(Option<u64>, bool)> = disk
        .events
        .iter()
        .map(|event| match event {
            Event::Write {
                offset, durable, ..
            } => (Some(*offset), *durable),
            Event::Flush => (None, true),
        })
        .collect();
    assert_eq!(
        order,
        [
            (None, true),
            (Some(1536), false),
            (None, true),
            (Some(1024), true)
        ]
    );
    assert!(load_valid(&disk.image).is_clean());
}

#[test]
fn what_a_cut_removal_left_twice_is_dropped_once() {
    let image = store(&[(5, 7), (1, 3), (5, 7), (2, 4), (1, 3), (9, 9)]);
    let store = load_valid(&image);
    assert_eq!(store.duplicates(), [2, 4]);
    assert_eq!(store.metadata().entries().len(), 4);
    let (disk, metadata) = settle(image);
    let decoded = decode(&disk.image);
    assert_eq!(
        (decoded.entries, decoded.junk),
        (metadata.entries().to_vec(), false)
    );
    let mut olds: Vec<u64> = metadata.entries().iter().map(|e| e.old).collect();
    olds.sort_unstable();
    assert_eq!(olds, [1, 2, 5, 9]);
    for (slot, entry) in metadata.entries().iter().enumerate() {
        assert_eq!(metadata.slot_of(entry.new), Some(slot));
    }
    assert!(load_valid(&disk.image).is_clean());
}

#[test]
fn settling_ends_right_however_often_it_fails() {
    let mut area = vec![
        (5, 7),
        (1, 3),
        (5, 7),
        (2, 4),
        (1, 3),
        (9, 9),
        (0, 0),
        (6, 6),
    ];
    area.resize(63, (0, 0));
    area.push((8, 8));
    let original = store(&area);
    for failing in 0..7 {
        let mut disk = MemoryDisk::new(original.clone());
        disk.fail_at = Some(failing);
        let result = load_valid(&original).settle(&mut disk, DEVICE);
        assert_eq!(
            result.is_err(),
            !disk.events.is_empty() && failing < disk.events.len()
        );
        let (disk, metadata) = settle(disk.image);
        assert_eq!(metadata.entries().len(), 4, "failed at {failing}");
        assert_eq!(decode(&disk.image).entries, metadata.entries().to_vec());
        assert!(!decode(&disk.image).junk);
    }
}

#[test]
fn the_last_slot_of_an_area_needs_the_next_area() {
    // 66 chunks: header, area 0 and 64 data chunks, but no area 1.
    let layout = Layout::new(chunk_size());
    let count = |sectors| {
        let mut metadata = Metadata::fresh(layout, sectors, 512);
        let mut given = 0;
        while let Ok(new) = metadata.allocate() {
            assert!(layout.is_data(new) && (new + 1) * 2 <= sectors);
            if given % 3 == 0 {
                metadata.apply_append(&[Entry { old: new, new }]);
            }
            given += 1;
        }
        assert_eq!(given, layout.capacity(sectors));
        given
    };
    let counts = [4, 5, 6, 128, 132, 133, 134, 135, 136].map(count);
    assert_eq!(counts, [0, 0, 1, 62, 63, 63, 64, 64, 65]);
}

#[test]
fn a_grown_device_has_room_again_and_never_shrinks() {
    let layout = Layout::new(chunk_size());
    let mut metadata = Metadata::fresh(layout, 6, 512);
    assert_eq!(metadata.allocate(), Ok(2));
    assert!(metadata.allocate().is_err());
    metadata.set_cow_sectors(8);
    metadata.set_cow_sectors(1);
    assert_eq!(metadata.allocate(), Ok(3));
    assert!(metadata.allocate().is_err());
    assert_eq!(metadata.usage().total, 8);
}

#[test]
fn a_transient_store_starts_at_chunk_zero_and_writes_nothing() {
    let mut metadata = Metadata::transient(Layout::new(chunk_size()), 7);
    assert_eq!(metadata.usage().allocated, 0);
    let entries: Vec<Entry> = (0..3)
        .map(|n| Entry {
            old: 10 - n,
            new: metadata.allocate().unwrap(),
        })
        .collect();
    assert!(metadata.allocate().is_err());
    let plan = metadata.plan_append(&entries);
    assert_eq!(
        (plan.zero_next_area, plan.write, plan.taken),
        (None, None, 3)
    );
    metadata.apply_append(&entries);
    assert_eq!(
        [0, 1, 2, 3].map(|new| metadata.slot_of(new)),
        [Some(0), Some(1), Some(2), None]
    );
    let usage = metadata.usage();
    assert_eq!([usage.allocated, usage.total, usage.metadata], [6, 7, 0]);
    assert!(metadata.invalidate_write().is_none() && metadata.is_transient());
}

#[test]
fn use_shown_while_merging_is_the_kernels() {
    // 70 entries: 64 in area 0, 6 in area 1.
    let layout = Layout::new(chunk_size());
    let mut metadata = Metadata::fresh(layout, 400, 512);
    let entries: Vec<Entry> = (0..70)
        .map(|old| Entry {
            old,
            new: metadata.allocate().unwrap(),
        })
        .collect();
    metadata.apply_append(&entries);
    let shown = |metadata: &Metadata| (metadata.usage().allocated, metadata.usage().metadata);
    assert_eq!(shown(&metadata), ((70 + 3) * 2, 6));
    for (left, allocated, areas) in [(66, 69, 3), (64, 67, 3), (63, 65, 2), (1, 3, 2), (0, 2, 2)] {
        let tail: Vec<usize> = (left..metadata.entries().len()).collect();
        let plan = metadata.plan_removal(&tail);
        assert!(plan.moves.is_empty() && plan.new_len == left);
        metadata.apply_removal(&plan);
        assert_eq!(
            shown(&metadata),
            (allocated * 2, areas * 2),
            "{left} entries left"
        );
    }
}
