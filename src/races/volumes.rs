//! Guests of several views while a volume changes: cuts, handover and merge, pause,
//! removal, clean stop.

use std::sync::Arc;

use shuttle::rand::Rng as _;
use shuttle::thread::{self, JoinHandle};

use super::guest::{Guest, sector, stamps};
use super::oracle::{Oracle, Stamp};
use super::{Kept, prove};
use crate::engine::*;
use crate::executor::{Executor, Output};
use crate::io::sim::{Fill, SimDevices};
use crate::io::{DeviceId, Disk};
use crate::merger::{Merger, MergerSettings};
use crate::mutation::Mutation;
use crate::store;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::ChunkSize;

const SECTORS: usize = 8;
const ONE: ViewId = ViewId(1);
const TWO: ViewId = ViewId(2);

pub fn pick(below: usize) -> usize {
    shuttle::rand::thread_rng().gen_range(0..below)
}

pub struct Volume {
    pub devices: SimDevices,
    pub origin: DeviceId,
    pub engine: Arc<Engine>,
    pub oracle: Oracle,
    control: Kept<Executor>,
    notices: Kept<Executor>,
}

impl Volume {
    pub fn new() -> Self {
        let devices = SimDevices::new(pick(1 << 20) as u64);
        let image = (0..SECTORS).flat_map(|n| sector(n, n as u64)).collect();
        let origin = devices.add(SECTORS as u64, Fill::Image(image));
        let engine = Engine::new(OriginParams {
            device: origin,
            sectors: SECTORS as u64,
        });
        let executor = |role| {
            let disk = Box::new(devices.disk());
            Kept::new(Executor::new(&engine, role, disk).unwrap())
        };
        Self {
            control: executor(PortRole::Control),
            notices: executor(PortRole::Notices),
            oracle: Oracle::new(SECTORS),
            devices,
            origin,
            engine,
        }
    }

    pub fn control(&mut self, request: ControlRequest) -> Result<(), ControlError> {
        self.control.get().drive(request, &mut Vec::new())
    }

    pub fn snapshot(&mut self, snapshot: ViewId, chunk: u64) {
        self.snapshot_of(snapshot, chunk, 40 * chunk);
    }

    fn snapshot_of(&mut self, snapshot: ViewId, chunk: u64, cow_sectors: u64) {
        let device = self.devices.add(cow_sectors, Fill::Noise);
        let disk = &mut self.devices.disk();
        let chunk = ChunkSize::new(chunk).unwrap();
        let record = (pick(2) == 0).then(|| {
            self.devices
                .add(store::RECORD_BYTES as u64 / 512, Fill::Zeroes)
        });
        let store = SnapshotStore {
            device,
            metadata: store::create(disk, device, chunk, cow_sectors, 512).unwrap(),
            sectors: SECTORS as u64,
            keep_on_overflow: false,
            valid: true,
            marked: false,
            record,
            discards: Discards::default(),
            zero_ahead: 0,
        };
        let id = self.oracle.next();
        self.oracle.begin_cut(id);
        let store = Box::new(store);
        self.control(ControlRequest::AddSnapshot { snapshot, store })
            .unwrap();
        self.oracle.cut(id, snapshot);
    }

    fn hand_over(&mut self, snapshot: ViewId, writes: MergeWrites) {
        let id = self.oracle.next();
        self.oracle.begin_handover(id, snapshot);
        self.control(ControlRequest::Handover {
            snapshot,
            writes,
            follow: false,
        })
        .unwrap();
        self.oracle.end_handover(id);
    }

    fn merger(&self) -> Kept<Merger> {
        let disk = Kept::new(self.devices.disk());
        let open = move || {
            let mut disk = disk;
            Ok(Box::new(disk.0.take().unwrap()) as Box<dyn Disk + Send>)
        };
        // One chunk at a time.
        let settings = MergerSettings {
            rate: 0,
            batch_bytes: 512,
        };
        Kept::new(Merger::start(&self.engine, open, settings).unwrap())
    }

    /// The thread that takes the engine's notices, until the returned function ends it.
    fn main_thread(&mut self) -> impl FnOnce() + use<> {
        let mut notices = Kept(self.notices.0.take());
        let waker = notices.get().waker();
        let ended = Arc::new(AtomicBool::new(false));
        let told = ended.clone();
        let thread = thread::spawn(move || {
            loop {
                notices.get().turn(&mut Vec::new());
                // After the turn, which takes back the wake-up that came with it.
                if told.load(Ordering::Acquire) {
                    break;
                }
                notices.get().wait(None);
            }
        });
        move || {
            ended.store(true, Ordering::Release);
            waker.wake();
            thread.join().unwrap();
        }
    }

    fn wait_for_the_end_of_the_merge(&mut self) {
        let notices = self.notices.get();
        loop {
            let mut outputs = Vec::new();
            notices.turn(&mut outputs);
            let done = |r: &Output| matches!(r, Output::Notice(Notice::MergeDone { .. }));
            if outputs.iter().any(done) {
                return;
            }
            if outputs.is_empty() {
                notices.wait(None);
            }
        }
    }

    /// A guest that writes and reads at random. No other guest writes its sectors.
    pub fn guest(
        &self,
        view: ViewId,
        own: std::ops::Range<usize>,
        requests: usize,
    ) -> JoinHandle<()> {
        let mut guest = Guest::new(self, view);
        thread::spawn(move || {
            for _ in 0..requests {
                let first = own.start + pick(own.len());
                let end = (first + 1 + pick(3)).min(own.end);
                match pick(8) {
                    0..4 => guest.write(first..end),
                    4 => {
                        // Two under way at once.
                        guest.start(RequestKind::Write { durable: true }, first..first + 1);
                        guest.start(RequestKind::Read, 0..SECTORS);
                        guest.finish();
                    }
                    5 => guest.flush(),
                    _ => drop(guest.read(first..end)),
                }
            }
            guest.read(0..SECTORS);
            guest.close();
        })
    }

    /// A guest that only reads; returns the result of its last read.
    fn reader(&self, view: ViewId) -> JoinHandle<Vec<Stamp>> {
        let mut guest = Guest::new(self, view);
        thread::spawn(move || {
            let shown = guest.read(0..SECTORS);
            let again = guest.read(2..5);
            assert_eq!(again, &shown[2..5], "a snapshot changes");
            guest.close();
            shown
        })
    }

    pub fn look(&self, view: ViewId) -> Vec<Stamp> {
        let mut guest = Guest::new(self, view);
        let shown = guest.read(0..SECTORS);
        guest.close();
        shown
    }

    pub fn at_rest(&mut self) {
        self.control(ControlRequest::Sync).unwrap();
        self.engine.check().unwrap();
    }
}

/// Snapshots are taken while two guests write the origin.
fn cuts() {
    let mut volume = Volume::new();
    let guests = [0..4, 4..8].map(|own| volume.guest(ViewId::ORIGIN, own, 4));
    volume.snapshot(ONE, 2);
    let one = volume.reader(ONE);
    volume.snapshot(TWO, 4);
    let two = volume.look(TWO);
    guests.into_iter().for_each(|g| g.join().unwrap());
    let one = one.join().unwrap();
    volume.oracle.assert_one_moment(&one);
    volume.oracle.assert_one_moment(&two);
    assert_eq!(volume.look(ONE), one);
    assert_eq!(volume.look(TWO), two);
    volume.at_rest();
}

/// Snapshots are taken while guests write, and their stores are too small.
fn full_stores() {
    let mut volume = Volume::new();
    let end_main_thread = volume.main_thread();
    volume.snapshot(TWO, 2);
    let two = volume.reader(TWO);
    let guests = [0..4, 4..8].map(|own| volume.guest(ViewId::ORIGIN, own, 4));
    // Header, one area, and one to three data chunks.
    volume.snapshot_of(ONE, 1, 2 + 1 + pick(3) as u64);
    guests.into_iter().for_each(|g| g.join().unwrap());
    two.join().unwrap();
    volume.at_rest();
    end_main_thread();
}

/// A snapshot's guest writes the chunks that the origin's guest overwrites.
fn snapshot_writes() {
    let mut volume = Volume::new();
    // It carries out the commits that a clean stop asks for.
    let end_main_thread = volume.main_thread();
    volume.snapshot(ONE, 2);
    let origin = volume.guest(ViewId::ORIGIN, 0..8, 4);
    let guests = [0..4, 4..8].map(|own| volume.guest(ONE, own, 3));
    guests.into_iter().for_each(|g| g.join().unwrap());
    origin.join().unwrap();
    volume.look(ONE);
    volume.look(ViewId::ORIGIN);
    volume.at_rest();
    end_main_thread();
}

/// A snapshot is removed while its guest and the origin's guest write and read.
fn removal() {
    let mut volume = Volume::new();
    volume.snapshot(ONE, 2);
    volume.snapshot(TWO, 1);
    let origin = volume.guest(ViewId::ORIGIN, 0..8, 3);
    let mut going = Guest::new(&volume, ONE);
    going.may_fail = true;
    let going = thread::spawn(move || {
        for _ in 0..5 {
            let first = pick(SECTORS - 1);
            match pick(2) {
                0 => going.write(first..first + 2),
                _ => drop(going.read(first..first + 2)),
            }
        }
        going.close();
    });
    let snapshot = ONE;
    volume
        .control(ControlRequest::RemoveSnapshot {
            snapshot,
            force: false,
        })
        .unwrap();
    origin.join().unwrap();
    going.join().unwrap();
    let left = volume.engine.status().snapshots;
    assert_eq!(left.iter().map(|s| s.snapshot).collect::<Vec<_>>(), [TWO]);
    volume.oracle.assert_one_moment(&volume.look(TWO));
    volume.at_rest();
}

/// Handover and merge while two guests write; another snapshot must not change.
fn merge_under(writes: MergeWrites) {
    let mut volume = Volume::new();
    volume.snapshot(ONE, 1);
    let before = volume.guest(ViewId::ORIGIN, 0..8, 3);
    before.join().unwrap();
    volume.snapshot(TWO, 2);
    let two = volume.look(TWO);
    let mut merger = volume.merger();
    let guests = [0..4, 4..8].map(|own| volume.guest(ViewId::ORIGIN, own, 3));
    let reader = volume.reader(TWO);
    volume.hand_over(ONE, writes);
    let or_over = |result| assert!(matches!(result, Ok(()) | Err(ControlError::NoMerge)));
    or_over(volume.control(ControlRequest::PauseMerge));
    let other = match writes {
        MergeWrites::Wait => MergeWrites::Redirect,
        MergeWrites::Redirect => MergeWrites::Wait,
    };
    if pick(2) == 0 {
        or_over(volume.control(ControlRequest::SetMergeWrites(other)));
    }
    or_over(volume.control(ControlRequest::ResumeMerge));
    volume.wait_for_the_end_of_the_merge();
    guests.into_iter().for_each(|g| g.join().unwrap());
    assert_eq!(reader.join().unwrap(), two);
    assert_eq!(volume.look(TWO), two);
    let shown = volume.look(ViewId::ORIGIN);
    merger.0.take().unwrap().stop();
    volume.at_rest();
    let held = volume.devices.current(volume.origin);
    assert_eq!(
        stamps(0, &held),
        shown,
        "the origin is not what its view shows"
    );
}

/// The merger's thread is stopped at any moment; another one continues.
fn merger_stops() {
    let mut volume = Volume::new();
    volume.snapshot(ONE, 1);
    volume.guest(ViewId::ORIGIN, 0..8, 3).join().unwrap();
    let mut first = volume.merger();
    let stopper = thread::spawn(move || {
        for _ in 0..pick(20) {
            thread::yield_now();
        }
        first.0.take().unwrap().stop();
    });
    volume.hand_over(ONE, MergeWrites::Wait);
    stopper.join().unwrap();
    let mut second = volume.merger();
    second.get().set_rate(0);
    volume.wait_for_the_end_of_the_merge();
    second.0.take().unwrap().stop();
    let shown = volume.look(ViewId::ORIGIN);
    assert_eq!(shown, (0..SECTORS as u64).collect::<Vec<_>>());
    volume.at_rest();
}

#[test]
fn shuttle_a_snapshot_is_one_moment_of_the_origin_and_stays_it() {
    let bugs = [
        Mutation::CutNotDrained,
        Mutation::SnapshotReadsNotDrained,
        Mutation::EndNotTold,
        Mutation::StaleConfiguration,
        Mutation::RegisteredAfterLookUp,
        Mutation::OriginWriteBeforeCopy,
    ];
    prove("cuts", cuts, &bugs);
}

#[test]
fn shuttle_a_store_that_is_full_at_once_holds_nobody_up() {
    prove("full stores", full_stores, &[Mutation::IoToWhoeverCalls]);
}

#[test]
fn shuttle_a_snapshot_and_its_origin_are_written_at_once() {
    let bugs = [
        Mutation::PublishedBeforeWritten,
        Mutation::PatchDropped,
        Mutation::CopyOutWaiterForgotten,
    ];
    prove("snapshot writes", snapshot_writes, &bugs);
}

#[test]
fn shuttle_a_removed_snapshot_fails_its_guest_and_nobody_else() {
    let bugs = [Mutation::EndNotTold, Mutation::RemovalNotDrained];
    prove("removal", removal, &bugs);
}

#[test]
fn shuttle_a_merge_under_waiting_writers_loses_nothing() {
    let bugs = [
        Mutation::HandoverNotDrained,
        Mutation::MergeWaiterForgotten,
        Mutation::UnmergedWriteReachesOrigin,
        Mutation::MergeSkipsCopyOut,
    ];
    prove("merge, wait", || merge_under(MergeWrites::Wait), &bugs);
}

#[test]
fn shuttle_a_merge_under_redirected_writers_loses_nothing() {
    let bugs = [
        Mutation::FenceSkipped,
        Mutation::MergeWritesNotDrained,
        Mutation::RegisteredAfterLookUp,
    ];
    prove(
        "merge, redirect",
        || merge_under(MergeWrites::Redirect),
        &bugs,
    );
}

#[test]
fn shuttle_a_stopped_merger_ends_and_another_goes_on() {
    prove("merger's stop", merger_stops, &[Mutation::StopHeardOnce]);
}
