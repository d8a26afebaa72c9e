//! What requests cost: operations, durable steps and bytes. A durable step is a flush or
//! a durable write; on a real disk each of them costs as much as many plain writes.

use super::helpers::*;
use super::world::*;
use crate::engine::*;
use crate::io::DeviceId;
use crate::io::sim::{Logged, LoggedKind};

/// In sectors.
const CHUNK: u64 = 8;
const DEPTH: u64 = 32;

fn durable_steps(log: &[Logged], device: DeviceId) -> u64 {
    let steps = log.iter().filter(|l| {
        l.device == device
            && matches!(
                l.kind,
                LoggedKind::Flush | LoggedKind::Write { durable: true }
            )
    });
    steps.count() as u64
}

fn bytes_written(log: &[Logged], device: DeviceId) -> u64 {
    log.iter()
        .filter(|l| l.device == device && matches!(l.kind, LoggedKind::Write { .. }))
        .map(|l| l.len)
        .sum()
}

/// Writes to `DEPTH` chunks from `first`, at once.
fn write_chunks(w: &mut World, actor: usize, first: u64, sectors: u64) -> Vec<Logged> {
    w.devices.take_log();
    for n in 0..DEPTH {
        start_write(w, actor, n as Slot, ((first + n) * CHUNK, sectors), 900);
    }
    w.settle();
    assert_done(w, actor, 0..DEPTH as Slot);
    submitted(w)
}

#[test]
fn first_writes_that_are_under_way_together_share_their_durable_steps() {
    let (mut w, origin) = world(DEPTH * 20 * CHUNK);
    let s = w.add_snapshot(1, CHUNK, DEPTH * 24 * CHUNK, "P", false);
    let view = w.add_actor(PortRole::View(s));
    let cow = w.cows[&s];
    // So that groups do not begin where a block of the log does.
    start_write(&mut w, origin, 0, (0, 5), 900);
    w.settle();
    assert_done(&mut w, origin, [0]);
    for (actor, turn) in [(origin, 0), (origin, 1), (view, 2), (view, 3)] {
        let log = write_chunks(&mut w, actor, 1 + turn * DEPTH, CHUNK);
        let steps = durable_steps(&log, cow);
        assert!(
            steps * 10 <= DEPTH,
            "{steps} durable steps for {DEPTH} writes"
        );
        let written = bytes_written(&log, cow);
        let data = DEPTH * CHUNK * 512;
        assert!(
            written <= data + 4096,
            "{written} bytes for {data} bytes of data"
        );
        let reads = count(&log, LoggedKind::Read, w.origin) as u64;
        let copied = if actor == origin { DEPTH } else { 0 };
        assert_eq!(reads, copied, "reads of the origin");
    }
}

#[test]
fn a_request_to_chunks_that_are_settled_is_one_operation() {
    let (mut w, origin) = world(DEPTH * CHUNK);
    let s = w.add_snapshot(1, CHUNK, DEPTH * 4 * CHUNK, "P", false);
    let view = w.add_actor(PortRole::View(s));
    for actor in [origin, view] {
        write_chunks(&mut w, actor, 0, 3);
        let log = write_chunks(&mut w, actor, 0, 3);
        assert_eq!(log.len() as u64, DEPTH, "operations for {DEPTH} writes");
        assert!(
            log.iter()
                .all(|l| l.kind == LoggedKind::Write { durable: false } && l.len == 3 * 512)
        );
        w.devices.take_log();
        assert!(w.read(actor, 5, 2).is_ok());
        assert_eq!(submitted(&w).len(), 1, "operations for a read");
    }
}

/// Zeroes ahead of the data are written once, in pieces of many chunks.
#[test]
fn zeroes_ahead_of_the_data_are_a_few_large_writes() {
    let piece = 64 * CHUNK * 512;
    let (mut w, origin) = world(DEPTH * 20 * CHUNK);
    let snapshot = ViewId(1);
    let mut store = w.new_store(snapshot, CHUNK, DEPTH * 24 * CHUNK, "P", false);
    store.zero_ahead = piece;
    let store = Box::new(store);
    w.control_wait(ControlRequest::AddSnapshot { snapshot, store })
        .unwrap();
    let cow = w.cows[&snapshot];
    let turns = 10;
    let mut written = 0;
    let mut pieces = 0;
    for turn in 0..turns {
        let log = write_chunks(&mut w, origin, turn * DEPTH, CHUNK);
        written += bytes_written(&log, cow);
        pieces += log.iter().filter(|l| l.len == piece).count() as u64;
    }
    let data = turns * DEPTH * CHUNK * 512;
    assert!(pieces >= data / piece, "{pieces} pieces for {data} bytes");
    let most = 2 * data + 2 * piece + turns * 4096;
    assert!(written <= most, "{written} bytes for {data} bytes of data");
}

/// Eight snapshots read the old chunk once.
#[test]
fn a_copy_out_to_several_snapshots_reads_the_origin_once() {
    let (mut w, origin) = world(DEPTH * CHUNK);
    let cows: Vec<DeviceId> = (1..=8)
        .map(|n| {
            let s = w.add_snapshot(n, CHUNK, DEPTH * 4 * CHUNK, "P", false);
            w.cows[&s]
        })
        .collect();
    let log = write_chunks(&mut w, origin, 0, 1);
    assert_eq!(count(&log, LoggedKind::Read, w.origin) as u64, DEPTH);
    for cow in cows {
        let steps = durable_steps(&log, cow);
        assert!(
            steps * 10 <= DEPTH,
            "{steps} durable steps for {DEPTH} writes"
        );
    }
}

#[test]
fn a_merge_takes_few_durable_steps_and_writes_each_chunk_once() {
    let chunks = 4096;
    let (mut w, origin) = world(chunks * CHUNK);
    let s = w.add_snapshot(1, CHUNK, 2 * chunks * CHUNK, "P", false);
    let cow = w.cows[&s];
    for n in 0..chunks / DEPTH {
        write_chunks(&mut w, origin, n * DEPTH, CHUNK);
    }
    w.merge_bytes = 16 << 20;
    w.devices.take_log();
    hand_over(&mut w, s, MergeWrites::Wait);
    w.settle();
    assert!(w.engine.status().merge.is_none(), "the merge does not end");
    let log = submitted(&w);
    let steps = durable_steps(&log, cow) + durable_steps(&log, w.origin);
    println!("{steps} durable steps for {chunks} merged chunks");
    // However many areas they are in: as many as the removals and their steps.
    assert!(steps <= 12, "{steps} durable steps for {chunks} chunks");
    assert_eq!(bytes_written(&log, w.origin), chunks * CHUNK * 512);
    // Removed entries are overwritten with copies of one that stays, then zeroed.
    let metadata = chunks * 16;
    let written = bytes_written(&log, cow);
    assert!(
        written <= 3 * metadata + 16 * 4096,
        "{written} bytes for {metadata} bytes of entries"
    );
}
