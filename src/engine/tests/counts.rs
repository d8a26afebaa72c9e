//! The engine's counters.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::Errno;
use crate::io::sim::{Fault, FaultOn};

fn of(w: &World, s: SnapshotId) -> SnapshotCounts {
    let snapshots = w.engine.status().snapshots;
    let found = snapshots.iter().find(|found| found.snapshot == s);
    found.unwrap().counts
}

#[test]
fn copies_commits_and_flushes_are_counted_once() {
    let (mut w, origin) = world(512);
    let s = w.add_snapshot(1, 8, 1000, "P", false);
    assert_eq!(of(&w, s), SnapshotCounts::default());
    assert_eq!(w.write(origin, 0, 16, 900), Status::Ok);
    let expected = SnapshotCounts {
        copied_chunks: 2,
        commits: 1,
        flushes: 1,
    };
    assert_eq!(of(&w, s), expected);
    // What the snapshot has needs nothing, and a flush of the origin does not concern it.
    assert_eq!(w.write(origin, 0, 16, 901), Status::Ok);
    assert_eq!(w.flush(origin), Status::Ok);
    assert_eq!(of(&w, s), expected);
}

#[test]
fn merged_chunks_batches_and_waits_are_counted_over_several_merges() {
    let (mut w, origin) = world(512);
    for round in 1..=2_u32 {
        let s = w.add_snapshot(round, 8, 1000, "P", false);
        assert_eq!(w.write(origin, 0, 128, 900), Status::Ok);
        hand_over(&mut w, s, MergeWrites::Wait);
        w.settle();
        assert!(w.engine.status().merge.is_none());
        let counts = w.engine.status().counts.merge;
        let round = u64::from(round);
        assert_eq!((counts.chunks, counts.bytes), (16 * round, 65536 * round));
        // A batch of 16 KiB is 4 chunks.
        assert_eq!(counts.batches, 4 * round);
        assert_eq!((counts.write_waits, counts.failures), (0, 0));
    }
}

#[test]
fn a_failure_is_counted_by_device_and_operation_and_with_what_it_ends() {
    let (mut w, origin) = world(512);
    let s = w.add_snapshot(1, 8, 1000, "P", false);
    let fault = Fault::new(FaultOn::Flush, Errno::EIO);
    w.devices.fail(fault.device(w.cows[&s]));
    assert_eq!(w.write(origin, 0, 16, 900), Status::Ok);
    let counts = w.engine.status().counts;
    assert_eq!((counts.invalid_io, counts.invalid_full), (1, 0));
    for device in [
        FailedDevice::Origin,
        FailedDevice::Cow,
        FailedDevice::Record,
    ] {
        let operations = [Operation::Read, Operation::Write, Operation::WriteMetadata];
        for operation in operations {
            assert_eq!(
                counts.failures.get(device, operation),
                0,
                "{device:?} {operation:?}"
            );
        }
        let flushes = u64::from(device == FailedDevice::Cow);
        assert_eq!(counts.failures.get(device, Operation::Flush), flushes);
    }
}
