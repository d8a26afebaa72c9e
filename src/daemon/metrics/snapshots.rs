//! How full snapshots are, what they cost, and the merge.

use super::scene::{Scene, Snapshot};
use crate::control::metrics::{Family, Kind, Unit, Value, labels};
use crate::engine::SnapshotState;
use crate::units::SECTOR_SIZE;

const STATES: [(SnapshotState, &str); 6] = [
    (SnapshotState::Active, "active"),
    (SnapshotState::Overflow, "overflow"),
    (SnapshotState::Invalid, "invalid"),
    (SnapshotState::Merging, "merging"),
    (SnapshotState::MergePaused, "merge-paused"),
    (SnapshotState::MergeFailed, "merge-failed"),
];

const fn bytes(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_SIZE)
}

pub fn snapshots(scene: &Scene) -> Vec<Family> {
    let each = |family: Family, value: fn(&Snapshot) -> u64| {
        scene.snapshots.iter().fold(family, |family, snapshot| {
            let labels = labels([("snapshot", &snapshot.name)]);
            family.sample(labels, Value::Integer(value(snapshot)))
        })
    };
    let size = |name, help, value| each(Family::gauge(name, help).unit(Unit::Bytes), value);
    let count = |name, help, value| each(Family::counter(name, help), value);
    vec![
        info(scene),
        states(scene),
        size(
            "snapback_snapshot_allocated",
            "What is in use of the COW, metadata included",
            |s| bytes(s.status.usage.allocated),
        ),
        size(
            "snapback_snapshot_size",
            "Size of the COW: a snapshot that needs more becomes invalid",
            |s| bytes(s.status.usage.total),
        ),
        size(
            "snapback_snapshot_metadata",
            "The part of the COW in use that is metadata",
            |s| bytes(s.status.usage.metadata),
        ),
        size(
            "snapback_snapshot_chunk",
            "Size of a chunk, the unit of copy-on-write",
            |s| bytes(s.status.chunk_sectors),
        ),
        each(
            Family::gauge(
                "snapback_snapshot_exceptions",
                "Chunks that the snapshot has a copy of",
            ),
            |s| s.status.exceptions,
        ),
        count(
            "snapback_snapshot_copied_chunks",
            "Chunks that were copied from the origin into the COW",
            |s| s.status.counts.copied_chunks,
        ),
        count(
            "snapback_snapshot_commits",
            "Groups of exceptions that were made durable",
            |s| s.status.counts.commits,
        ),
        count(
            "snapback_snapshot_flushes",
            "Flushes of the COW for commits and control requests, and those of guests that took \
             part in one",
            |s| s.status.counts.flushes,
        ),
    ]
}

fn info(scene: &Scene) -> Family {
    let mut family = Family::new(Kind::Info, "snapback_snapshot", "The type of the store");
    for snapshot in &scene.snapshots {
        let letters = snapshot.store_type.letters();
        let labels = labels([("snapshot", &snapshot.name), ("type", letters)]);
        family = family.sample(labels, Value::Integer(1));
    }
    family
}

fn states(scene: &Scene) -> Family {
    let help = "1 for the state that the snapshot is in, 0 for all others";
    let mut family = Family::gauge("snapback_snapshot_state", help);
    for snapshot in &scene.snapshots {
        for (state, name) in STATES {
            let labels = labels([("snapshot", &snapshot.name), ("state", name)]);
            let is = u64::from(snapshot.status.state == state);
            family = family.sample(labels, Value::Integer(is));
        }
    }
    family
}

pub fn merge(scene: &Scene) -> Vec<Family> {
    let counts = &scene.engine.counts.merge;
    let is = |state| {
        let mut snapshots = scene.snapshots.iter();
        u64::from(snapshots.any(|s| s.status.state == state))
    };
    let progress = scene.engine.merge.unwrap_or_default();
    let gauge = |name, help, value| Family::gauge(name, help).value(value);
    let counter = |name, help, value| Family::counter(name, help).value(value);
    vec![
        gauge(
            "snapback_merge_running",
            "1 while there is a merge, also a paused or failed one",
            u64::from(scene.merging),
        ),
        gauge(
            "snapback_merge_paused",
            "1 while the merge is paused",
            is(SnapshotState::MergePaused),
        ),
        gauge(
            "snapback_merge_failed",
            "1 while the merge stands still because of an error",
            is(SnapshotState::MergeFailed),
        ),
        gauge(
            "snapback_merge_chunks_left",
            "Chunks of the merge that are still in the COW",
            progress.chunks_left,
        ),
        gauge(
            "snapback_merge_chunks_done",
            "Chunks of the merge that are in the origin",
            progress.chunks_done,
        ),
        counter(
            "snapback_merge_merged_chunks",
            "Chunks that all merges have brought into the origin",
            counts.chunks,
        ),
        counter(
            "snapback_merge_merged",
            "Bytes that all merges have brought into the origin",
            counts.bytes,
        )
        .unit(Unit::Bytes),
        counter(
            "snapback_merge_batches",
            "Groups of chunks that merges have begun to copy",
            counts.batches,
        ),
        counter(
            "snapback_merge_write_waits",
            "Times that a guest's write waited until its chunks were merged",
            counts.write_waits,
        ),
        counter(
            "snapback_merge_failures",
            "Times that a merge stopped because of an error",
            counts.failures,
        ),
    ]
}
