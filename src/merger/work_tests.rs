//! The merge loop over the real engine and a simulated disk.

use std::sync::Arc;

use super::*;
use crate::engine::{
    ControlRequest, Engine, MergeStatus, MergeWrites, OriginParams, PortRole, SnapshotStore, ViewId,
};
use crate::io::sim::{Fault, FaultOn, Fill, SimDevices};
use crate::io::{DeviceId, Errno, OwnedBuffer, blocking};
use crate::store::{self, Entry};
use crate::units::ChunkSize;

const CHUNKS: u64 = 64;
const CHUNK: u64 = 4096;
const SNAPSHOT: ViewId = ViewId(1);

/// A volume whose snapshot of every second chunk (bytes 0xaa) was handed over.
struct World {
    devices: SimDevices,
    origin: DeviceId,
    engine: Arc<Engine>,
    notices: Executor,
    control: Executor,
}

impl World {
    fn new() -> Self {
        let devices = SimDevices::new(7);
        let chunk_size = ChunkSize::new(CHUNK / 512).unwrap();
        let origin = devices.add(CHUNKS * CHUNK / 512, Fill::Zeroes);
        let cow_sectors = 4 * CHUNKS * CHUNK / 512;
        let cow = devices.add(cow_sectors, Fill::Zeroes);
        let mut disk = devices.disk();
        let mut metadata = store::create(&mut disk, cow, chunk_size, cow_sectors, 512).unwrap();
        for old in (0..CHUNKS).step_by(2) {
            let entries = [Entry {
                old,
                new: metadata.allocate().unwrap(),
            }];
            devices.write_now(cow, entries[0].new * CHUNK, &[0xaa; CHUNK as usize]);
            if let Some(write) = metadata.plan_append(&entries).write {
                let mut buffer = OwnedBuffer::zeroed(write.data.len());
                buffer.as_mut_slice().copy_from_slice(&write.data);
                blocking::write_all(&mut disk, cow, write.offset, buffer, true).unwrap();
            }
            metadata.apply_append(&entries);
        }
        let engine = Engine::new(OriginParams {
            device: origin,
            sectors: CHUNKS * CHUNK / 512,
        });
        let port = |role| Executor::new(&engine, role, Box::new(devices.disk())).unwrap();
        let (notices, mut control) = (port(PortRole::Notices), port(PortRole::Control));
        let store = SnapshotStore {
            device: cow,
            metadata,
            sectors: CHUNKS * CHUNK / 512,
            keep_on_overflow: false,
            valid: true,
            marked: false,
            record: None,
            discards: crate::engine::Discards::default(),
            zero_ahead: 0,
        };
        let mut drive = |request| control.drive(request, &mut Vec::new()).unwrap();
        drive(ControlRequest::AddSnapshot {
            snapshot: SNAPSHOT,
            store: Box::new(store),
        });
        drive(ControlRequest::Handover {
            snapshot: SNAPSHOT,
            writes: MergeWrites::Wait,
            follow: false,
        });
        Self {
            devices,
            origin,
            engine,
            notices,
            control,
        }
    }

    fn work(&self, rate: u64, batch: u64) -> MergeWork {
        let disk = Box::new(self.devices.disk());
        let executor = Executor::new(&self.engine, PortRole::Merger, disk).unwrap();
        MergeWork::new(executor, RateLimiter::new(rate, batch))
    }

    fn run(&mut self, work: &mut MergeWork) -> (Result<(), MergeFailure>, Vec<MergeStatus>) {
        let mut shown = Vec::new();
        let result = run_to_end(
            &self.engine,
            work,
            &mut self.notices,
            |_, _| {},
            |s| shown.push(s),
        );
        (result, shown)
    }

    fn assert_merged(&self) {
        for (chunk, bytes) in self
            .devices
            .durable(self.origin)
            .chunks(CHUNK as usize)
            .enumerate()
        {
            let expected = if chunk % 2 == 0 { 0xaa } else { 0 };
            assert!(bytes.iter().all(|&b| b == expected), "chunk {chunk}");
        }
    }
}

#[test]
fn it_ends_with_everything_in_the_origin_durably_and_says_so() {
    let mut world = World::new();
    let mut work = world.work(0, 4 * CHUNK);
    let (result, shown) = world.run(&mut work);
    assert_eq!(result, Ok(()));
    let last = shown.last().unwrap();
    assert_eq!((last.chunks_done, last.chunks_left), (CHUNKS / 2, 0));
    assert!(shown.is_sorted_by_key(|s| s.chunks_done));
    world.assert_merged();
    assert_eq!(world.run(&mut work).0, Err(MergeFailure::NoMerge));
}

#[test]
fn an_origin_that_cannot_be_written_ends_it_with_the_reason() {
    let mut world = World::new();
    let fault = Fault::new(FaultOn::Write, Errno::EIO);
    world.devices.fail(fault.device(world.origin));
    let mut work = world.work(0, CHUNK);
    let (result, _) = world.run(&mut work);
    assert!(matches!(result, Err(MergeFailure::Failed(_))), "{result:?}");
}

#[test]
fn a_limited_merge_takes_its_time() {
    let mut world = World::new();
    let start = Instant::now();
    // 128 KiB in all; the first batch is free, every other is paid for before.
    let mut work = world.work(512 << 10, CHUNK);
    assert_eq!(world.run(&mut work).0, Ok(()));
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
    world.assert_merged();
}

#[test]
fn a_paused_merge_waits_and_a_resumed_one_goes_on() {
    let mut world = World::new();
    world
        .control
        .drive(ControlRequest::PauseMerge, &mut Vec::new())
        .unwrap();
    let mut work = world.work(0, CHUNK);
    for _ in 0..20 {
        assert_eq!(work.step(Instant::now(), false).started_bytes, 0);
    }
    assert!(work.is_at_rest());
    world
        .control
        .drive(ControlRequest::ResumeMerge, &mut Vec::new())
        .unwrap();
    assert_eq!(world.run(&mut work).0, Ok(()));
    world.assert_merged();
}

#[test]
fn a_stop_finishes_the_running_batch_and_starts_no_other() {
    let world = World::new();
    let mut work = world.work(0, 4 * CHUNK);
    assert_eq!(work.step(Instant::now(), false).started_bytes, 4 * CHUNK);
    let mut turns = 0;
    while !work.is_at_rest() {
        assert_eq!(work.step(Instant::now(), true).started_bytes, 0);
        work.executor().wait(Some(Duration::from_millis(1)));
        turns += 1;
        assert!(turns < 1000, "the batch does not end");
    }
    let status = world.engine.status().merge.unwrap();
    assert_eq!(
        (status.chunks_done, status.chunks_left),
        (4, CHUNKS / 2 - 4)
    );
}

#[test]
fn the_thread_merges_stops_in_the_middle_and_shows_its_rate() {
    let mut world = World::new();
    let devices = world.devices.clone();
    let open = move || -> std::io::Result<Box<dyn crate::io::Disk + Send>> {
        Ok(Box::new(devices.disk()))
    };
    let slow = crate::merger::MergerSettings {
        rate: 1,
        batch_bytes: CHUNK,
    };
    let merger = crate::merger::Merger::start(&world.engine, open.clone(), slow).unwrap();
    let start = Instant::now();
    while world.engine.status().merge.unwrap().chunks_done == 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    let stop = Instant::now();
    merger.stop();
    assert!(
        stop.elapsed() < Duration::from_secs(1),
        "a rate limit does not hold up a stop"
    );
    assert_eq!(world.engine.status().merge.unwrap().chunks_done, 1);

    let merger = crate::merger::Merger::start(&world.engine, open, slow).unwrap();
    merger.set_rate(0);
    let start = Instant::now();
    while world.engine.status().merge.is_some() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the new rate is not taken up"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    world.notices.turn(&mut Vec::new());
    world.assert_merged();
}

/// Why [`run_to_end`] ended without a merged origin.
#[derive(Debug, PartialEq, Eq)]
enum MergeFailure {
    Failed(String),
    NoMerge,
}

/// Merges on the caller's thread until everything is in the origin, durably.
/// `notices` has the notice port of the same engine, whose snapshot was handed
/// over; notices that are not about the merge go to `other`. `progress` is
/// called about ten times a second and once at the end.
fn run_to_end(
    engine: &Engine,
    work: &mut MergeWork,
    notices: &mut Executor,
    mut other: impl FnMut(&mut Executor, Notice),
    mut progress: impl FnMut(MergeStatus),
) -> Result<(), MergeFailure> {
    let mut last = MergeStatus::default();
    let mut shown: Option<Instant> = None;
    let mut outputs = Vec::new();
    loop {
        // Looked at before the notices: the end of a merge is told with it.
        let under_way = engine.status().merge;
        last = under_way.unwrap_or(last);
        notices.turn(&mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Notice(Notice::MergeDone { .. }) => {
                    last.chunks_done = last.chunks_done.saturating_add(last.chunks_left);
                    last.chunks_left = 0;
                    progress(last);
                    return Ok(());
                }
                Output::Notice(Notice::MergeFailed { stop, .. }) => {
                    return Err(MergeFailure::Failed(stop.failure.to_string()));
                }
                Output::Notice(notice) => other(notices, notice),
                Output::ControlDone { .. } => {}
            }
        }
        if under_way.is_none() {
            return Err(MergeFailure::NoMerge);
        }
        let now = Instant::now();
        let stepped = work.step(now, false);
        if shown.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_millis(100)) {
            shown = Some(now);
            progress(last);
        }
        if notices.is_idle() {
            let waker = notices.waker();
            let fd = std::os::fd::AsFd::as_fd(&*waker);
            work.executor()
                .wait_also(&[fd], Some(stepped.again.unwrap_or(GUARD)));
        } else {
            notices.wait(Some(Duration::from_millis(1)));
        }
    }
}
