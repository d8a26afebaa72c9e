//! Corrupt and malicious stores: any byte may have any value.

use proptest::prelude::*;

use super::{DEVICE, MemoryDisk, decode, load_image, params};
use crate::store::{Entry, Loaded, create, load};
use crate::units::ChunkSize;

/// A good store of 120 one-sector chunks with 40 entries, then 0xee.
fn victim() -> Vec<u8> {
    let mut disk = MemoryDisk::new(vec![0xee; 120 * 512]);
    let mut metadata = create(&mut disk, DEVICE, ChunkSize::new(1).unwrap(), 120, 512).unwrap();
    let entries: Vec<Entry> = (0..40)
        .map(|old| Entry {
            old,
            new: metadata.allocate().unwrap(),
        })
        .collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let plan = metadata.plan_append(rest);
        if let Some((offset, len)) = plan.zero_next_area {
            super::apply(&mut disk.image, offset, &vec![0; len as usize]);
        }
        for write in plan.padding.iter().chain(&plan.write) {
            super::apply(&mut disk.image, write.offset, &write.data);
        }
        metadata.apply_append(&rest[..plan.taken]);
        rest = &rest[plan.taken..];
    }
    disk.image
}

/// Loads, and if that works, settles: no panic, bounded reads, and in the end a
/// store whose disk and memory agree.
fn survive(image: Vec<u8>) {
    let mut disk = MemoryDisk::new(image);
    let params = params(&disk.image, 512, Some(100));
    let loaded = load(&mut disk, DEVICE, &params);
    assert!(
        disk.bytes_read <= disk.image.len() + 512,
        "read {} bytes",
        disk.bytes_read
    );
    assert!(disk.largest <= 1 << 20);
    assert!(disk.events.is_empty(), "loading writes nothing");
    if let Ok(Loaded::Valid(store)) = loaded {
        let mut metadata = store.settle(&mut disk, DEVICE).unwrap();
        let decoded = decode(&disk.image);
        assert_eq!(decoded.entries, metadata.entries().to_vec());
        assert!(!decoded.junk);
        for (slot, entry) in metadata.entries().iter().enumerate() {
            assert_eq!(metadata.slot_of(entry.new), Some(slot));
        }
        let mut given = 0;
        while let Ok(new) = metadata.allocate() {
            assert!(metadata.slot_of(new).is_none(), "chunk {new} is in use");
            given += 1;
        }
        assert!(given <= 120);
    }
}

/// Offsets with a meaning: header, area 0 in chunk 1, area 1 in chunk 34.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..16usize,
        512..1024usize,
        (34 * 512)..(35 * 512usize),
        0..(120 * 512usize)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bytes_never_hurt(changes in prop::collection::vec((place(), any::<u8>()), 1..12)) {
        let mut image = victim();
        for (at, byte) in changes {
            image[at] = byte;
        }
        survive(image);
    }

    #[test]
    fn entries_of_any_kind_never_hurt(
        entries in prop::collection::vec((0u64..8, prop_oneof![0u64..12, 30..40u64, any::<u64>()]), 0..32),
        length in 0..120usize,
    ) {
        let mut image = victim();
        for (index, &(old, new)) in entries.iter().enumerate() {
            let at = 512 + index * 16;
            image[at..at + 16].copy_from_slice(&Entry { old, new }.to_bytes());
        }
        survive(image.clone());
        image.truncate(length * 512);
        survive(image);
    }
}

#[test]
fn a_giant_chunk_size_on_a_small_file_allocates_nothing() {
    for sectors in [1u32 << 21, 1 << 20, 1 << 12] {
        let mut image = victim();
        image[12..16].copy_from_slice(&sectors.to_le_bytes());
        let error = load_image(&image).unwrap_err().to_string();
        assert!(
            error.contains("metadata area 0") && error.contains("has 60 KiB"),
            "{error}"
        );
    }
}

#[test]
fn a_large_area_is_read_in_pieces_of_a_mebibyte() {
    let chunk = ChunkSize::new(1 << 13).unwrap(); // 4 MiB
    let mut disk = MemoryDisk::new(vec![0xee; 3 << 22]);
    create(&mut disk, DEVICE, chunk, 3 << 13, 4096).unwrap();
    assert_eq!(disk.largest, 1 << 20);
    *disk.image.get_mut((2 << 22) - 1).unwrap() = 1;
    let params = params(&disk.image, 4096, None);
    let Ok(Loaded::Valid(store)) = load(&mut disk, DEVICE, &params) else {
        panic!("valid")
    };
    assert_eq!(store.junk(), Some((2 << 22) - 4096..2 << 22));
    store.settle(&mut disk, DEVICE).unwrap();
    assert_eq!(disk.largest, 1 << 20);
    assert!(!decode(&disk.image).junk);
}

#[test]
fn a_table_of_duplicates_is_reduced_to_one() {
    let mut image = victim();
    let same = Entry { old: 3, new: 2 }.to_bytes();
    for at in (512..1024)
        .step_by(16)
        .chain((34 * 512..34 * 512 + 400).step_by(16))
    {
        image[at..at + 16].copy_from_slice(&same);
    }
    survive(image.clone());
    let Ok(Loaded::Valid(store)) = load_image(&image) else {
        panic!("valid")
    };
    assert_eq!(
        store.metadata().entries().to_vec(),
        [Entry { old: 3, new: 2 }]
    );
}
