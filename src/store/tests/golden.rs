//! Stores that a Linux kernel wrote (`images/golden`).

use std::fs::File;
use std::io::Read;

use super::{DEVICE, MemoryDisk, apply, decode, load_image, load_valid, params};
use crate::store::{Entry, Layout, Loaded, Metadata, Usage, ValidStore, create, load};
use crate::units::ChunkSize;

const SECTORS: u64 = 4096;

fn image(name: &str) -> Vec<u8> {
    let path = format!("{}/images/golden/{name}.img.gz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(File::open(path).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(bytes.len() as u64, SECTORS * 512);
    bytes
}

fn stores() -> [(&'static str, &'static str, [u64; 3]); 4] {
    [
        ("g1-cow-P8", "g1-origin", [144, 4096, 16]),
        ("g1-cow-P1", "g1-origin", [109, 4096, 5]),
        ("g1-cow-PO32", "g1-origin", [256, 4096, 64]),
        ("g2-cow-P8-area0-full", "g2-origin", [2072, 4096, 24]),
    ]
}

/// The snapshot's content, as runs of sectors that are not all `0x11`.
fn view(origin: &[u8], cow: &[u8], store: &ValidStore) -> Vec<(usize, usize, u8)> {
    let mut content = origin.to_vec();
    let chunk = store.metadata().layout().chunk_size.bytes() as usize;
    for Entry { old, new } in store.metadata().entries() {
        let (old, new) = (old as usize * chunk, new as usize * chunk);
        content[old..old + chunk].copy_from_slice(&cow[new..new + chunk]);
    }
    let mut runs: Vec<(usize, usize, u8)> = Vec::new();
    for (sector, bytes) in content.chunks(512).enumerate() {
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "sector {sector} is torn"
        );
        match (bytes[0], runs.last_mut()) {
            (0x11, _) => {}
            (byte, Some((start, count, of))) if *start + *count == sector && *of == byte => {
                *count += 1;
            }
            (byte, _) => runs.push((sector, 1, byte)),
        }
    }
    runs
}

#[test]
fn views_are_what_the_kernel_printed() {
    let expected: [&[(usize, usize, u8)]; 4] = [
        &[(160, 8, 0x33), (241, 1, 0x44)],
        &[(5, 1, 0x66)],
        &[(3000, 8, 0x77)],
        &[],
    ];
    for ((cow, origin, _), expected) in stores().into_iter().zip(expected) {
        let (cow_image, origin) = (image(cow), image(origin));
        let store = load_valid(&cow_image);
        assert!(store.is_clean(), "{cow}");
        assert_eq!(view(&origin, &cow_image, &store), expected, "{cow}");
    }
}

#[test]
fn usage_is_what_the_kernel_printed() {
    for (cow, _, [allocated, total, metadata]) in stores() {
        let usage = load_valid(&image(cow)).metadata().usage();
        assert_eq!(
            usage,
            Usage {
                allocated,
                total,
                metadata
            },
            "{cow}"
        );
    }
    let fresh = load_valid(&image("g2-cow-P8-fresh"));
    assert_eq!(
        fresh.metadata().usage(),
        Usage {
            allocated: 16,
            total: SECTORS,
            metadata: 16
        }
    );
}

#[test]
fn entries_fit_their_origin() {
    for (cow, ..) in stores() {
        let image = image(cow);
        let params = params(&image, 512, Some(SECTORS));
        let loaded = load(&mut MemoryDisk::new(image), DEVICE, &params);
        assert!(matches!(loaded, Ok(Loaded::Valid(_))), "{cow}: {loaded:?}");
    }
}

#[test]
fn an_invalidated_store_loads_as_invalid() {
    let loaded = load_image(&image("g2-cow-P8-invalid")).unwrap();
    let chunk_size = ChunkSize::new(8).unwrap();
    assert!(matches!(loaded, Loaded::Invalid { chunk_size: found } if found == chunk_size));
}

#[test]
fn invalidating_writes_the_kernels_bytes() {
    // Both were the same blank device when they were made.
    let mut fresh = image("g2-cow-P8-fresh");
    let write = load_valid(&fresh).metadata().invalidate_write().unwrap();
    apply(&mut fresh, write.offset, &write.data);
    assert_eq!(fresh[..4096], image("g2-cow-P8-invalid")[..4096]);
    assert!(matches!(load_image(&fresh), Ok(Loaded::Invalid { .. })));
}

#[test]
fn creation_leaves_the_kernels_bytes() {
    for unit in [512, 4096] {
        let mut blank = vec![0xee; (SECTORS * 512) as usize];
        blank[..4096].fill(0);
        let mut disk = MemoryDisk::new(blank);
        create(&mut disk, DEVICE, ChunkSize::new(8).unwrap(), SECTORS, unit).unwrap();
        assert!(disk.image == image("g2-cow-P8-fresh"), "unit {unit}");
    }
}

/// The same exceptions, taken one at a time and in groups, give the same chunk
/// numbers and the same bytes everywhere.
#[test]
fn writing_a_golden_log_again_gives_the_same_bytes() {
    for (cow, ..) in stores() {
        let golden = image(cow);
        let log = load_valid(&golden).metadata().entries().to_vec();
        let chunk_size = load_valid(&golden).metadata().layout().chunk_size;
        assert_eq!(decode(&golden).entries, log);
        for group in [1, 7, 1000] {
            let mut again = golden.clone();
            let layout = Layout::new(chunk_size);
            let mut metadata = Metadata::fresh(layout, SECTORS, 512);
            let area0 = layout.chunk_offset(1) as usize;
            again[area0..area0 + chunk_size.bytes() as usize].fill(0);
            for group in log.chunks(group) {
                for entry in group {
                    assert_eq!(metadata.allocate(), Ok(entry.new), "{cow}");
                }
                let mut rest = group;
                while !rest.is_empty() {
                    let plan = metadata.plan_append(rest);
                    if let Some((offset, len)) = plan.zero_next_area {
                        apply(&mut again, offset, &vec![0; len as usize]);
                    }
                    for write in plan.padding.iter().chain(&plan.write) {
                        apply(&mut again, write.offset, &write.data);
                    }
                    let (taken, left) = rest.split_at(plan.taken);
                    metadata.apply_append(taken);
                    rest = left;
                }
            }
            assert!(again == golden, "{cow} in groups of {group}");
            assert_eq!(
                metadata.usage(),
                load_valid(&golden).metadata().usage(),
                "{cow}"
            );
        }
    }
}

#[test]
fn a_store_with_a_full_area_goes_on_in_the_next() {
    let mut image = image("g2-cow-P8-area0-full");
    let mut disk = MemoryDisk::new(image.clone());
    let mut metadata = load_valid(&image).settle(&mut disk, DEVICE).unwrap();
    assert_eq!(disk.events, [super::Event::Flush], "nothing to repair");
    let new = metadata.allocate().unwrap();
    assert_eq!(new, 259, "258 is metadata");
    let entry = Entry { old: 300, new };
    let plan = metadata.plan_append(&[entry]);
    assert_eq!(
        (plan.zero_next_area, plan.taken, plan.padding),
        (None, 1, None)
    );
    let write = plan.write.unwrap();
    assert_eq!(write.offset, 258 * 4096);
    apply(&mut image, write.offset, &write.data);
    assert_eq!(decode(&image).entries.last(), Some(&entry));
    assert_eq!(decode(&image).entries.len(), 257);
}
