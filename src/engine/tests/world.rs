//! One engine with its ports, disks and guest memory, driven one step at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::guest_disk::GuestDisk;
use super::seeded_bugs;
pub use super::stamps::*;
use crate::engine::*;
use crate::io::sim::{Fill, Rng, SimDevices};
use crate::io::{DeviceId, Done};
use crate::store::{self, RECORD_BYTES};
use crate::units::ChunkSize;

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// One thread: a port, its disk, and the data of its requests.
pub struct Actor {
    pub port: Port,
    pub disk: GuestDisk,
    pub completed: Vec<(Slot, Status)>,
    pub control_done: Vec<(u64, Result<(), ControlError>)>,
    pub notices: Vec<Notice>,
}

impl Actor {
    /// The data of a request.
    pub fn data(&self, slot: Slot) -> &[u8] {
        &self.disk.memory.slots[&slot]
    }
}

pub struct World {
    pub devices: SimDevices,
    pub engine: Arc<Engine>,
    pub origin: DeviceId,
    pub actors: Vec<Actor>,
    pub rng: Rng,
    /// COW devices of the snapshots.
    pub cows: BTreeMap<SnapshotId, DeviceId>,
    pub merge_background: bool,
    pub merge_bytes: u64,
    /// Writes are handed in in parts that end at multiples of this number of sectors.
    pub window: Option<u64>,
    /// What follows of them, by actor and slot.
    later: BTreeMap<(usize, Slot), (Request, Vec<u8>)>,
    /// Control requests under way. Without one the control port is not driven: its
    /// thread does something else.
    driven: usize,
}

pub const CONTROL: usize = 0;
pub const MERGER: usize = 1;
pub const NOTICES: usize = 2;

impl World {
    /// An origin whose sector n holds stamp n.
    pub fn new(seed: u64, origin_sectors: u64) -> Self {
        let devices = SimDevices::new(seed);
        let image: Vec<u8> = (0..origin_sectors).flat_map(|n| pattern(n, n)).collect();
        let origin = devices.add(origin_sectors, Fill::Image(image));
        Self::over(devices, origin, seed)
    }

    /// A new process on existing devices.
    pub fn over(devices: SimDevices, origin: DeviceId, seed: u64) -> Self {
        let origin_sectors = devices.sectors(origin);
        let engine = Engine::new(OriginParams {
            device: origin,
            sectors: origin_sectors,
        });
        let mut world = Self {
            devices,
            engine,
            origin,
            actors: Vec::new(),
            rng: Rng::new(seed ^ 0x5eed),
            cows: BTreeMap::new(),
            merge_background: true,
            merge_bytes: 16 << 10,
            window: None,
            later: BTreeMap::new(),
            driven: 0,
        };
        for role in [PortRole::Control, PortRole::Merger, PortRole::Notices] {
            world.add_actor(role);
        }
        world
    }

    /// For a port that the test drives itself.
    pub fn no_wake(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }

    pub fn add_actor(&mut self, role: PortRole) -> usize {
        self.actors.push(Actor {
            port: self.engine.open_port(role, 32, Arc::new(NoWake)),
            disk: GuestDisk::new(self.devices.disk()),
            completed: Vec::new(),
            control_done: Vec::new(),
            notices: Vec::new(),
        });
        self.actors.len() - 1
    }

    /// A new store on a new device full of noise, ready for `AddSnapshot`.
    pub fn new_store(
        &mut self,
        id: SnapshotId,
        chunk: u64,
        cow_sectors: u64,
        kind: &str,
        defer: bool,
    ) -> SnapshotStore {
        let device = self.devices.add(cow_sectors, Fill::Noise);
        self.cows.insert(id, device);
        let chunk = ChunkSize::new(chunk).unwrap();
        let metadata = if kind == "N" {
            store::Metadata::transient(store::Layout::new(chunk), cow_sectors)
        } else {
            store::create(&mut self.devices.disk(), device, chunk, cow_sectors, 512).unwrap()
        };
        SnapshotStore {
            device,
            metadata,
            sectors: self.devices.sectors(self.origin),
            keep_on_overflow: kind == "PO",
            valid: true,
            marked: false,
            record: defer.then(|| self.devices.add(RECORD_BYTES as u64 / 512, Fill::Zeroes)),
            discards: Discards::default(),
            zero_ahead: 0,
        }
    }

    pub fn control(&mut self, id: u64, request: ControlRequest) {
        let mut out = Vec::new();
        self.driven += 1;
        self.actors[CONTROL].port.control(id, request, &mut out);
        self.execute(CONTROL, out);
    }

    /// Runs until the control request has ended.
    pub fn control_wait(&mut self, request: ControlRequest) -> Result<(), ControlError> {
        self.control(u64::MAX, request);
        for _ in 0..100_000 {
            if let Some(at) = self.actors[CONTROL]
                .control_done
                .iter()
                .position(|(id, _)| *id == u64::MAX)
            {
                return self.actors[CONTROL].control_done.remove(at).1;
            }
            self.step();
        }
        panic!("the control request does not end");
    }

    pub fn add_snapshot(
        &mut self,
        id: u32,
        chunk: u64,
        cow_sectors: u64,
        kind: &str,
        defer: bool,
    ) -> SnapshotId {
        let id = ViewId(id);
        let store = Box::new(self.new_store(id, chunk, cow_sectors, kind, defer));
        self.control_wait(ControlRequest::AddSnapshot {
            snapshot: id,
            store,
        })
        .unwrap();
        id
    }

    /// A snapshot of the origin's first `sectors`, taken before the origin grew.
    pub fn add_shorter(&mut self, id: u32, chunk: u64, sectors: u64, kind: &str) -> SnapshotId {
        let snapshot = ViewId(id);
        let mut store = self.new_store(snapshot, chunk, 1000, kind, false);
        store.sectors = sectors;
        let store = Box::new(store);
        self.control_wait(ControlRequest::AddSnapshot { snapshot, store })
            .unwrap();
        snapshot
    }

    pub fn submit(&mut self, actor: usize, mut request: Request, mut data: Vec<u8>) {
        let mut more = false;
        if let (Some(window), RequestKind::Write { .. }) = (self.window, request.kind) {
            let now = request.sectors.min(window - request.sector % window);
            let later = Request {
                sector: request.sector + now,
                sectors: request.sectors - now,
                ..request
            };
            let rest = data.split_off(now as usize * 512);
            request.sectors = now;
            more = later.sectors > 0;
            if more {
                self.later.insert((actor, request.slot), (later, rest));
            }
        }
        self.submit_part(actor, request, data, more);
    }

    /// See [`Port::request_part`].
    pub fn submit_part(&mut self, actor: usize, mut request: Request, data: Vec<u8>, more: bool) {
        seeded_bugs::spoil_request(&mut request);
        self.actors[actor]
            .disk
            .memory
            .slots
            .insert(request.slot, data);
        let mut out = Vec::new();
        self.actors[actor]
            .port
            .request_part(request, more, &mut out);
        self.execute(actor, out);
    }

    /// See [`Port::give_up`].
    pub fn give_up(&mut self, actor: usize, slot: Slot) {
        let mut out = Vec::new();
        self.actors[actor].port.give_up(slot, &mut out);
        self.execute(actor, out);
    }

    /// Hands in what follows in this slot. False: nothing.
    fn go_on(&mut self, actor: usize, slot: Slot, status: Status) -> bool {
        match self.later.remove(&(actor, slot)) {
            Some((request, data)) if status == Status::Ok => {
                self.submit(actor, request, data);
                true
            }
            _ => false,
        }
    }

    /// Submits a request and waits for its end; returns the data of a read.
    pub fn wait_for(
        &mut self,
        actor: usize,
        kind: RequestKind,
        sector: u64,
        data: Vec<u8>,
    ) -> (Status, Vec<u8>) {
        let sectors = data.len() as u64 / 512;
        self.submit(
            actor,
            Request {
                slot: 15,
                kind,
                sector,
                sectors,
            },
            data,
        );
        for _ in 0..1_000_000 {
            if let Some(at) = self.actors[actor]
                .completed
                .iter()
                .position(|(s, _)| *s == 15)
            {
                let status = self.actors[actor].completed.remove(at).1;
                return (
                    status,
                    self.actors[actor].disk.memory.slots.remove(&15).unwrap(),
                );
            }
            self.step();
        }
        panic!("{kind:?} at sector {sector} does not end");
    }

    pub fn write(&mut self, actor: usize, sector: u64, sectors: u64, stamp: u64) -> Status {
        let kind = RequestKind::Write { durable: false };
        self.wait_for(actor, kind, sector, data_of(sector, sectors, stamp))
            .0
    }

    pub fn read(&mut self, actor: usize, sector: u64, sectors: u64) -> Result<Vec<u64>, Status> {
        match self.wait_for(
            actor,
            RequestKind::Read,
            sector,
            vec![0; sectors as usize * 512],
        ) {
            (Status::Ok, data) => Ok(stamps_from(sector, &data)),
            (status, _) => Err(status),
        }
    }

    pub fn flush(&mut self, actor: usize) -> Status {
        self.wait_for(actor, RequestKind::Flush, 0, Vec::new()).0
    }

    pub fn execute(&mut self, index: usize, commands: Vec<Command>) {
        for command in commands {
            let actor = &mut self.actors[index];
            match actor.disk.carry_out(&actor.port, command) {
                Some(Execution::Complete { slot, status }) => {
                    if self.go_on(index, slot, status) {
                        continue;
                    }
                    self.actors[index].completed.push((slot, status));
                }
                Some(Execution::ControlDone { id, result }) => {
                    if index == CONTROL {
                        self.driven -= 1;
                    }
                    actor.control_done.push((id, result));
                }
                Some(Execution::Notice(notice)) => actor.notices.push(notice),
                Some(other @ (Execution::Submit(_) | Execution::Refuse(_))) => {
                    unreachable!("{other:?}")
                }
                None => {}
            }
        }
    }

    /// Drives one actor, chosen by the seed, one step. False if it had nothing to do.
    pub fn step(&mut self) -> bool {
        let index = self.rng.below(self.actors.len());
        let disk = self.rng.one_in(2);
        self.turn(index, disk)
    }

    /// Drives one actor that has something to do, chosen by the seed, one step. False if
    /// no actor has.
    pub fn advance(&mut self) -> bool {
        let turns = 2 * self.actors.len();
        let first = self.rng.below(turns);
        (first..first + turns).any(|n| self.turn(n % turns / 2, n % 2 == 0))
    }

    /// Completes one disk operation of an actor, or processes its inbox.
    fn turn(&mut self, index: usize, disk: bool) -> bool {
        if index == CONTROL && self.driven == 0 {
            return false;
        }
        let mut out = Vec::new();
        let mut moved = false;
        if disk {
            let mut done = Vec::new();
            if !self.actors[index].disk.step(&mut done) {
                return false;
            }
            moved = true;
            for Done {
                tag,
                result,
                buffer,
            } in done
            {
                let actor = &mut self.actors[index];
                actor.port.io_done(tag, result, buffer, &mut out);
            }
        } else {
            self.actors[index].port.take_inbox(&mut out);
            if index == MERGER {
                let bytes = self.merge_bytes;
                let background = if self.merge_background { bytes } else { 0 };
                let step = self.actors[index]
                    .port
                    .merge_step(background, bytes, &mut out);
                moved |= matches!(step, MergeStep::Started { .. });
            }
        }
        moved |= !out.is_empty();
        if moved {
            self.execute(index, out);
            self.engine.check().unwrap();
        }
        moved
    }

    /// Runs until no actor has anything to do.
    pub fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..2_000_000 {
            idle = if self.step() { 0 } else { idle + 1 };
            if idle > 40 * self.actors.len() {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }

    /// As [`settle`](Self::settle), but does not drive these actors at all.
    pub fn settle_without(&mut self, held: &[usize]) {
        for _ in 0..200_000 {
            let mut moved = false;
            for index in (0..self.actors.len()).filter(|n| !held.contains(n)) {
                moved |= self.turn(index, false);
                moved |= self.turn(index, true);
            }
            if !moved {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }

    /// Processes one actor's inbox and one of its disk operations.
    pub fn step_actor(&mut self, index: usize) -> bool {
        let inbox = self.turn(index, false);
        self.turn(index, true) || inbox
    }

    /// The content of a snapshot as the origin and the store give it, without the engine.
    pub fn offline_view(devices: &SimDevices, origin: DeviceId, cow: DeviceId) -> Option<Vec<u8>> {
        let mut image = devices.read_now(origin, 0, devices.sectors(origin) * 512);
        let params = store::LoadParams {
            cow_sectors: devices.sectors(cow),
            origin_sectors: Some(devices.sectors(origin)),
            unit: 512,
            block_bytes: 512,
        };
        match store::load(&mut devices.disk(), cow, &params).expect("the store loads") {
            store::Loaded::Valid(valid) => {
                assert_eq!(valid.junk(), None, "bytes after the terminator");
                let bytes = valid.metadata().layout().chunk_size.bytes();
                for e in valid.metadata().entries() {
                    let at = (e.old * bytes) as usize;
                    let len = (bytes as usize).min(image.len() - at);
                    let data = devices.read_now(cow, e.new * bytes, len as u64);
                    image[at..at + len].copy_from_slice(&data);
                }
                Some(image)
            }
            _ => None,
        }
    }
}
