#![allow(clippy::unwrap_used)]

use super::*;
use crate::daemon::identity::device_names::DeviceNames;
use crate::daemon::identity::{OriginIdentity, StorageKind};
use crate::daemon::state::SnapshotRecord;

const DISK: u64 = 1 << 20;

fn state(blocks: BlockSizes) -> VolumeState {
    let mut state = VolumeState::new(OriginIdentity {
        path: "/disk.img".into(),
        size: DISK,
        kind: StorageKind::Device(DeviceNames {
            hardware: None,
            names: Vec::new(),
            boot: None,
        }),
    });
    state.blocks = blocks;
    state
}

fn origin(block_size: u32, limits: Limits) -> Origin<'static> {
    Origin {
        path: "/disk.img",
        size: DISK,
        block_size,
        limits,
    }
}

/// Of a file on a file system with blocks of 4 KiB.
const FILE: Limits = Limits {
    physical_block: 4096,
    alignment_offset: 0,
    minimum_io: 0,
    optimal_io: 0,
    discard_granularity: 4096,
};

fn sizes(logical: u32, physical: u32, granularity: u32, opt_io: u32) -> BlockSizes {
    let some = |size| Some(size).filter(|size| *size != 0);
    BlockSizes {
        logical: some(logical),
        physical: some(physical),
        discard_granularity: some(granularity),
        opt_io: some(opt_io),
    }
}

#[test]
fn without_options_guests_see_what_the_device_has() {
    let of = |block_size, limits| topology(origin(block_size, limits), &state(sizes(0, 0, 0, 0)));
    let file = Topology {
        physical: 4096,
        min_io: 4096,
        discard_granularity: 4096,
        ..Topology::of_blocks(512)
    };
    assert_eq!(of(512, FILE), Ok(file));
    // A RAID of disks with large physical blocks, and a partition of it.
    let raid = Limits {
        physical_block: 4096,
        alignment_offset: 3584,
        minimum_io: 64 << 10,
        optimal_io: 256 << 10,
        discard_granularity: 1 << 20,
    };
    let seen = Topology {
        logical: 512,
        physical: 4096,
        alignment_offset: 3584,
        min_io: 64 << 10,
        opt_io: 256 << 10,
        discard_granularity: 1 << 20,
    };
    assert_eq!(of(512, raid), Ok(seen));
    // Nothing is known.
    let blank = Topology {
        discard_granularity: 4096,
        ..Topology::of_blocks(4096)
    };
    assert_eq!(of(4096, Limits::default()), Ok(blank));
}

/// A device may say anything.
#[test]
fn what_no_field_can_hold_is_left_out() {
    let odd = Limits {
        physical_block: 3 << 20,
        alignment_offset: 100,
        minimum_io: 1000,
        optimal_io: 33_553_920,
        discard_granularity: 1 << 30,
    };
    let of = |limits| topology(origin(512, limits), &state(sizes(0, 0, 0, 0))).unwrap();
    let plain = Topology {
        discard_granularity: 4096,
        ..Topology::of_blocks(512)
    };
    let seen = of(odd);
    assert_eq!(seen.opt_io, 33_553_920, "a multiple of 512");
    assert_eq!(Topology { opt_io: 0, ..seen }, plain);
    let large = Limits {
        physical_block: 4096,
        minimum_io: 64 << 20,
        optimal_io: 33_553_920,
        ..FILE
    };
    let seen = of(large);
    assert_eq!((seen.min_io, seen.opt_io), (4096, 0));
}

#[test]
fn options_go_before_what_the_device_has() {
    let device = Limits {
        minimum_io: 64 << 10,
        optimal_io: 1 << 20,
        ..FILE
    };
    let all = sizes(4096, 16384, 65536, 12288);
    let seen = topology(origin(512, device), &state(all)).unwrap();
    let want = Topology {
        logical: 4096,
        physical: 16384,
        alignment_offset: 0,
        min_io: 16384,
        opt_io: 12288,
        discard_granularity: 65536,
    };
    assert_eq!(seen, want);
    // What is not given follows the logical block size.
    let seen = topology(origin(512, FILE), &state(sizes(32768, 0, 0, 0))).unwrap();
    assert_eq!(seen, Topology::of_blocks(32768));
    let none = BlockSizes {
        opt_io: Some(0),
        ..BlockSizes::default()
    };
    let seen = topology(origin(512, device), &state(none)).unwrap();
    assert_eq!(seen.opt_io, 0);
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_what_would() {
    for (block_size, asked, words) in [
        (512, sizes(1000, 0, 0, 0), ["1000", "512 to 32768"]),
        (512, sizes(65536, 0, 0, 0), ["65536", "512 to 32768"]),
        (512, sizes(0, 4 << 20, 0, 0), ["4194304", "512 to 2097152"]),
        (512, sizes(0, 0, 8 << 20, 0), ["8388608", "512 to 4194304"]),
        (
            4096,
            sizes(512, 0, 0, 0),
            ["/disk.img", "give 4096 or more"],
        ),
        (
            512,
            sizes(4096, 2048, 0, 0),
            ["2048 is smaller", "give 4096 or more"],
        ),
        (
            4096,
            sizes(0, 0, 512, 0),
            ["512 is smaller", "give 4096 or more"],
        ),
        (
            4096,
            sizes(0, 0, 0, 512),
            ["--opt-io 512", "a multiple of it"],
        ),
    ] {
        let error = topology(origin(block_size, FILE), &state(asked)).unwrap_err();
        let error = error.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn disk_and_snapshots_are_whole_blocks() {
    let mut state = state(sizes(4096, 0, 0, 0));
    let odd = Origin {
        size: DISK + 512,
        ..origin(512, FILE)
    };
    let error = topology(odd, &state).unwrap_err().to_string();
    assert!(error.contains("truncate -s %4096"), "{error}");
    let spec = serde_json::from_str(r#"{"name":"s","cow":"/s.cow","chunk_size":4096}"#);
    state.snapshots.push(SnapshotRecord {
        spec: spec.unwrap(),
        valid: true,
        length: Some(DISK - 512),
        id: None,
        store: None,
        unflushed: None,
    });
    let error = topology(origin(512, FILE), &state).unwrap_err().to_string();
    assert!(error.contains("snapshot s has 1023.5 KiB"), "{error}");
}

#[test]
fn another_block_size_under_a_guest_is_remarked() {
    let mut state = state(sizes(4096, 0, 0, 0));
    let before = BlockSizes::default();
    assert_eq!(remark(&before, &state, 512, 4096), None, "no guest");
    state.guest_attached = true;
    let text = remark(&before, &state, 512, 4096).unwrap();
    assert!(text.contains("--logical-block-size 512"), "{text}");
    assert_eq!(remark(&before, &state, 4096, 4096), None, "the same");
    assert_eq!(remark(&state.blocks, &state, 512, 4096), None, "the same");
}
