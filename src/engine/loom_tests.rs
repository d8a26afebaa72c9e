//! The engine under loom: every order in which threads may run (up to a number of
//! preemptions) and every value that the memory model lets a load return. The disks
//! are relaxed atomics, so a read finds its data only if the engine orders the two.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::registrations::{Registrations, WRITE};
use super::views::Config;
use super::*;
use crate::io::sim::{Fill, SimDevices};
use crate::io::{Buffer, DeviceId, Op, OpKind, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store;
use crate::units::ChunkSize;

const ORIGIN: DeviceId = DeviceId(0);
const COW: DeviceId = DeviceId(1);
const SNAPSHOT: ViewId = ViewId(1);
/// Chunks of one sector on either device.
const CHUNKS: usize = 8;
const COW_CHUNKS: usize = 40;
const STACK: usize = 64 << 10; // words

/// Explores `model` and prints the number of executions. `preemptions`: how often a
/// thread may be stopped although it could continue; `None`: no limit.
fn explore(
    name: &str,
    preemptions: Option<usize>,
    model: impl Fn() + Copy + Send + Sync + 'static,
) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    let start = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // The engine needs more stack than loom's first thread has.
        let thread = thread::Builder::new().stack_size(STACK);
        thread.spawn(model).unwrap().join().unwrap();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("loom: {name}: {runs} executions, {:.1?}", start.elapsed());
}

/// The model passes, and fails with each of these bugs.
pub(super) fn prove(
    name: &str,
    preemptions: Option<usize>,
    model: impl Fn() + Copy + Send + Sync + 'static,
    bugs: &[Mutation],
) {
    explore(name, preemptions, model);
    for bug in bugs {
        let found = mutation::with(Some(*bug), || {
            catch_unwind(AssertUnwindSafe(|| explore(name, preemptions, model)))
        });
        assert!(found.is_err(), "{name} lets {bug:?} live");
        println!("loom: {name}: {bug:?} dies");
    }
}

pub(super) fn spawn<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let builder = thread::Builder::new().stack_size(STACK);
    builder.spawn(body).unwrap()
}

/// Leaked when a model fails, because it cannot be dropped outside of loom's execution.
struct Kept<T>(Option<T>);

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}

/// Ends a thread's wait, and nothing else.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify();
    }
}

/// Both devices, with one number for each chunk.
#[derive(Clone)]
struct Disks(Arc<[AtomicU64; CHUNKS + COW_CHUNKS]>);

impl Disks {
    fn new() -> Self {
        Self(Arc::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    fn at(&self, device: DeviceId, offset: u64) -> &AtomicU64 {
        let chunk = usize::try_from(offset / 512).unwrap();
        &self.0[if device == ORIGIN {
            chunk
        } else {
            CHUNKS + chunk
        }]
    }

    /// Carries out an operation at once; returns its buffer.
    fn carry_out(&self, op: Op) -> Option<Buffer> {
        match op.kind {
            OpKind::Read { offset, mut buffer } => {
                for at in (0..buffer.len()).step_by(512) {
                    let from = self.at(op.device, offset + at as u64);
                    let value = from.load(Ordering::Relaxed);
                    buffer.write_at(at, &value.to_le_bytes());
                }
                Some(buffer)
            }
            OpKind::Write { offset, buffer, .. } => {
                for at in (0..buffer.len()).step_by(512) {
                    let to = self.at(op.device, offset + at as u64);
                    to.store(number_at(&buffer, at), Ordering::Relaxed);
                }
                Some(buffer)
            }
            OpKind::Zero { offset, len, .. } => {
                for offset in (offset..offset + len).step_by(512) {
                    self.at(op.device, offset).store(0, Ordering::Relaxed);
                }
                None
            }
            OpKind::Flush => None,
        }
    }
}

fn number_at(buffer: &Buffer, offset: usize) -> u64 {
    let mut value = [0; 8];
    assert!(buffer.read_at(offset, &mut value));
    u64::from_le_bytes(value)
}

/// The data of an actor's one request, a sector whose first number counts.
#[derive(Default)]
struct Memory {
    value: u64,
    /// The operation that was translated last reads into it.
    reads: bool,
}

impl Memory {
    fn buffer(&self) -> Buffer {
        let mut buffer = OwnedBuffer::zeroed(512);
        buffer.as_mut_slice()[..8].copy_from_slice(&self.value.to_le_bytes());
        Buffer::Owned(buffer)
    }
}

impl SlotData for Memory {
    fn read_buffer(&mut self, _: SlotRange) -> Option<Buffer> {
        self.reads = true;
        Some(self.buffer())
    }

    fn write_op(&mut self, _: SlotRange, offset: u64, durable: bool) -> Option<OpKind> {
        let buffer = self.buffer();
        Some(OpKind::Write {
            offset,
            buffer,
            durable,
        })
    }

    /// Chunks are of one sector, so no write is of a part of one.
    fn lay_over(&mut self, _: &mut Buffer, _: Patch) -> bool {
        false
    }
}

/// A thread's port, which carries out commands at once.
struct Actor {
    port: Kept<Port>,
    bell: Arc<Bell>,
    disks: Disks,
    memory: Memory,
    ended: Option<Status>,
    done: Option<Result<(), ControlError>>,
    notices: usize,
}

impl Actor {
    fn new(engine: &Arc<Engine>, disks: &Disks, role: PortRole) -> Self {
        let bell = Arc::new(Bell::default());
        Self {
            port: Kept(Some(engine.open_port(role, 1, bell.clone()))),
            bell,
            disks: disks.clone(),
            memory: Memory::default(),
            ended: None,
            done: None,
            notices: 0,
        }
    }

    fn port(&mut self) -> &mut Port {
        self.port.0.as_mut().unwrap()
    }

    fn execute(&mut self, mut commands: Vec<Command>) {
        while !commands.is_empty() {
            for command in std::mem::take(&mut commands) {
                match command.execution(&mut self.memory) {
                    Execution::Submit(op) => {
                        let (tag, buffer) = (op.tag, self.disks.carry_out(op));
                        if let (true, Some(read)) =
                            (std::mem::take(&mut self.memory.reads), &buffer)
                        {
                            self.memory.value = number_at(read, 0);
                        }
                        self.port().io_done(tag, Ok(()), buffer, &mut commands);
                    }
                    Execution::Refuse(done) => panic!("{done:?}"),
                    Execution::Complete { status, .. } => self.ended = Some(status),
                    Execution::ControlDone { result, .. } => self.done = Some(result),
                    Execution::Notice(_) => self.notices += 1,
                }
            }
        }
    }

    /// Sleeps until it is woken, and carries out the commands in its inbox.
    fn wait(&mut self) {
        self.bell.0.wait();
        let mut commands = Vec::new();
        self.port().take_inbox(&mut commands);
        self.execute(commands);
    }

    fn request(&mut self, kind: RequestKind, chunk: u64) {
        let (slot, sectors) = (0, 1);
        let request = Request {
            slot,
            kind,
            sector: chunk,
            sectors,
        };
        let mut commands = Vec::new();
        self.port().request(request, &mut commands);
        self.execute(commands);
        while self.ended.is_none() {
            self.wait();
        }
        assert_eq!(self.ended.take(), Some(Status::Ok));
    }

    fn write(&mut self, chunk: u64, value: u64) {
        self.memory.value = value;
        self.request(RequestKind::Write { durable: false }, chunk);
    }

    fn read(&mut self, chunk: u64) -> u64 {
        self.request(RequestKind::Read, chunk);
        self.memory.value
    }

    fn control(&mut self, request: ControlRequest) {
        let mut commands = Vec::new();
        self.port().control(1, request, &mut commands);
        self.execute(commands);
        while self.done.is_none() {
            self.wait();
        }
        assert_eq!(self.done.take(), Some(Ok(())));
    }

    /// Starts a batch if there is one, as the merger's thread does.
    fn merge_step(&mut self) -> MergeStep {
        let mut commands = Vec::new();
        let step = self.port().merge_step(1 << 20, 1 << 20, &mut commands);
        self.execute(commands);
        step
    }
}

struct Volume {
    engine: Arc<Engine>,
    disks: Disks,
    control: Actor,
}

impl Volume {
    fn new() -> Self {
        let engine = Engine::new(OriginParams {
            device: ORIGIN,
            sectors: CHUNKS as u64,
        });
        let disks = Disks::new();
        let control = Actor::new(&engine, &disks, PortRole::Control);
        Self {
            engine,
            disks,
            control,
        }
    }

    fn actor(&self, role: PortRole) -> Actor {
        Actor::new(&self.engine, &self.disks, role)
    }

    fn origin(&self) -> Actor {
        self.actor(PortRole::View(ViewId::ORIGIN))
    }
}

/// A snapshot without metadata on disk.
fn transient() -> ControlRequest {
    let layout = store::Layout::new(ChunkSize::new(1).unwrap());
    add(store::Metadata::transient(layout, COW_CHUNKS as u64))
}

fn persistent() -> ControlRequest {
    let devices = SimDevices::new(1);
    let cow = devices.add(COW_CHUNKS as u64, Fill::Zeroes);
    let chunk = ChunkSize::new(1).unwrap();
    let disk = &mut devices.disk();
    add(store::create(disk, cow, chunk, COW_CHUNKS as u64, 512).unwrap())
}

fn add(metadata: store::Metadata) -> ControlRequest {
    let store = SnapshotStore {
        device: COW,
        metadata,
        sectors: CHUNKS as u64,
        keep_on_overflow: false,
        valid: true,
        marked: false,
        record: None,
        discards: Discards::default(),
        zero_ahead: 0,
    };
    ControlRequest::AddSnapshot {
        snapshot: SNAPSHOT,
        store: Box::new(store),
    }
}

// ---- the rule of engine/registrations.rs, in full

#[test]
fn loom_a_request_sees_the_change_or_the_change_sees_the_request() {
    let model = || {
        let engine = Volume::new().engine;
        let registrations = Arc::new(Registrations::new(1, Arc::default()));
        let (theirs, registered) = (engine.clone(), registrations.clone());
        let before = engine.shared.epoch.load(Ordering::Relaxed);
        let request = spawn(move || {
            registered.register(0, WRITE, 3, 4);
            theirs.shared.epoch.load(Ordering::Acquire) != before
        });
        let changed = Config::new(before + 1, Default::default());
        engine.shared.publish(Arc::new(changed));
        let seen = registrations.any(WRITE, |start, end| (start, end) == (3, 4));
        assert!(request.join().unwrap() || seen);
    };
    let bugs = [Mutation::RegistrationUnfenced, Mutation::ChangeUnfenced];
    prove("register against publish", None, model, &bugs);
}

// ---- whole ports on the whole engine

#[test]
fn loom_a_snapshot_never_shows_what_an_origin_write_brought() {
    let model = || {
        let mut volume = Volume::new();
        let mut origin = volume.origin();
        origin.write(0, 5);
        volume.control.control(transient());
        let mut snapshot = volume.actor(PortRole::View(SNAPSHOT));
        let reader = spawn(move || snapshot.read(0));
        origin.write(0, 9);
        assert_eq!(origin.read(0), 9);
        assert_eq!(reader.join().unwrap(), 5);
        volume.engine.check().unwrap();
    };
    let bugs = [
        Mutation::RegistrationUnfenced,
        Mutation::RegisteredAfterLookUp,
        Mutation::EndUnfenced,
        Mutation::EndNotTold,
        Mutation::ChangeUnfenced,
        Mutation::SnapshotReadsNotDrained,
    ];
    prove("copy-out against a snapshot's read", Some(3), model, &bugs);
}

#[test]
fn loom_two_origin_writes_save_a_chunk_once_and_before_either() {
    let model = || {
        let mut volume = Volume::new();
        let (mut one, mut two) = (volume.origin(), volume.origin());
        one.write(0, 5);
        volume.control.control(transient());
        let other = spawn(move || two.write(0, 6));
        one.write(0, 7);
        other.join().unwrap();
        assert_eq!(volume.actor(PortRole::View(SNAPSHOT)).read(0), 5);
        assert!([6, 7].contains(&one.read(0)));
        assert_eq!(volume.engine.status().snapshots[0].exceptions, 1);
        volume.engine.check().unwrap();
    };
    let bugs = [
        Mutation::CopyOutWaiterForgotten,
        Mutation::OriginWriteBeforeCopy,
    ];
    prove("two writes, one copy-out", Some(3), model, &bugs);
}

#[test]
fn loom_a_new_snapshot_is_a_cut_between_the_writes_of_a_guest() {
    let model = || {
        let mut volume = Volume::new();
        let mut origin = volume.origin();
        let writer = spawn(move || {
            origin.write(0, 1);
            origin.write(1, 2);
        });
        volume.control.control(transient());
        let mut snapshot = volume.actor(PortRole::View(SNAPSHOT));
        let shown = [snapshot.read(0), snapshot.read(1)];
        writer.join().unwrap();
        assert!([[0, 0], [1, 0], [1, 2]].contains(&shown), "{shown:?}");
        assert_eq!([snapshot.read(0), snapshot.read(1)], shown);
        volume.engine.check().unwrap();
    };
    let bugs = [
        Mutation::RegistrationUnfenced,
        Mutation::RegisteredAfterLookUp,
        Mutation::EndUnfenced,
        Mutation::EndNotTold,
        Mutation::ChangeUnfenced,
        Mutation::CutNotDrained,
    ];
    prove("a cut against writes", Some(3), model, &bugs);
}

#[test]
fn loom_a_redirected_write_is_in_what_its_batch_merges() {
    let model = || {
        let mut volume = Volume::new();
        let mut origin = volume.origin();
        volume.control.control(persistent());
        origin.write(0, 1);
        volume.control.control(ControlRequest::Handover {
            snapshot: SNAPSHOT,
            writes: MergeWrites::Redirect,
            follow: false,
        });
        assert_eq!(origin.read(0), 0, "the snapshot's content is back");
        let mut merger = volume.actor(PortRole::Merger);
        let writer = spawn(move || {
            origin.write(0, 2);
            origin
        });
        assert!(matches!(merger.merge_step(), MergeStep::Started { .. }));
        let mut seen = 0;
        while volume
            .engine
            .status()
            .merge
            .is_some_and(|m| m.chunks_left > 0)
        {
            // A notice of its own step does not wake it.
            if merger.notices == seen {
                merger.wait();
            }
            seen = merger.notices;
            merger.merge_step();
        }
        assert_eq!(writer.join().unwrap().read(0), 2);
        assert!(volume.engine.status().merge.is_none());
        volume.engine.check().unwrap();
    };
    let bugs = [
        Mutation::RegistrationUnfenced,
        Mutation::ChangeUnfenced,
        Mutation::EndUnfenced,
        Mutation::EndNotTold,
        Mutation::FenceSkipped,
        Mutation::MergeWritesNotDrained,
    ];
    prove(
        "a merge batch against a redirected write",
        Some(3),
        model,
        &bugs,
    );
}

#[test]
fn loom_what_is_left_in_an_inbox_is_taken_out() {
    let model = || {
        let mut volume = Volume::new();
        volume.control.control(persistent());
        volume.origin().write(0, 1);
        volume.control.control(ControlRequest::Handover {
            snapshot: SNAPSHOT,
            writes: MergeWrites::Wait,
            follow: false,
        });
        let mut merger = volume.actor(PortRole::Merger);
        let waiting = spawn(move || {
            while merger.notices < 2 {
                merger.wait();
            }
        });
        // Each notifies the merger.
        volume.control.control(ControlRequest::ResumeMerge);
        volume.control.control(ControlRequest::ResumeMerge);
        waiting.join().unwrap();
    };
    prove(
        "inbox against wake",
        Some(3),
        model,
        &[Mutation::InboxFlagClearedLate],
    );
}
