//! Helper functions for the tests of single guarantees.

use super::world::*;
use crate::engine::*;
use crate::io::DeviceId;
use crate::io::sim::{Keep, Logged, LoggedEvent, LoggedKind, SimDevices};
use crate::store::{self, Entry, Metadata};

/// A world with an origin whose sector n holds stamp n, and the origin view's port.
pub fn world(sectors: u64) -> (World, usize) {
    let mut w = World::new(7, sectors);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    (w, origin)
}

/// The stamps of a whole view or origin.
pub fn stamps(bytes: &[u8]) -> Vec<u64> {
    stamps_from(0, bytes)
}

/// The stamps that the origin device holds now.
pub fn origin_now(w: &World) -> Vec<u64> {
    stamps(&w.devices.current(w.origin))
}

pub fn numbers(sectors: u64) -> Vec<u64> {
    (0..sectors).collect()
}

/// The operations that were submitted since the last call.
pub fn submitted(w: &World) -> Vec<Logged> {
    let log = w.devices.take_log().into_iter();
    log.filter(|l| l.event == LoggedEvent::Submitted).collect()
}

pub fn count(log: &[Logged], kind: LoggedKind, device: DeviceId) -> usize {
    let of = log.iter().filter(|l| l.kind == kind && l.device == device);
    of.count()
}

/// Submits a write and does not wait for it.
pub fn start_write(
    w: &mut World,
    actor: usize,
    slot: Slot,
    (sector, sectors): (u64, u64),
    stamp: u64,
) {
    let request = Request {
        slot,
        kind: RequestKind::Write { durable: false },
        sector,
        sectors,
    };
    w.submit(actor, request, data_of(sector, sectors, stamp));
}

/// Asserts that the requests in these slots have succeeded and no other has ended.
pub fn assert_done(w: &mut World, actor: usize, slots: impl IntoIterator<Item = Slot>) {
    let mut done = std::mem::take(&mut w.actors[actor].completed);
    done.sort_unstable_by_key(|(slot, _)| *slot);
    let all: Vec<(Slot, Status)> = slots.into_iter().map(|s| (s, Status::Ok)).collect();
    assert_eq!(done, all);
}

pub fn hand_over(w: &mut World, snapshot: SnapshotId, writes: MergeWrites) {
    let request = ControlRequest::Handover {
        snapshot,
        writes,
        follow: false,
    };
    w.control_wait(request).unwrap();
}

pub fn state_of(w: &World, snapshot: SnapshotId) -> SnapshotState {
    let status = w.engine.status();
    let mut of = status.snapshots.iter().filter(|s| s.snapshot == snapshot);
    of.next().unwrap().state
}

/// Some of the states that power loss at this instant may leave.
pub fn cuts(seed: u64) -> [Keep<'static>; 4] {
    let seeded = Keep::Seeded(seed);
    [Keep::Nothing, Keep::Everything, seeded, Keep::Seeded(!seed)]
}

/// Loads and settles a store; `None` if it is invalid.
pub fn load(devices: &SimDevices, origin: DeviceId, cow: DeviceId) -> Option<Metadata> {
    let params = store::LoadParams {
        cow_sectors: devices.sectors(cow),
        origin_sectors: Some(devices.sectors(origin)),
        unit: 512,
        block_bytes: 512,
    };
    let mut disk = devices.disk();
    match store::load(&mut disk, cow, &params).expect("the store loads") {
        store::Loaded::Valid(valid) => Some(valid.settle(&mut disk, cow).unwrap()),
        _ => None,
    }
}

pub fn entries(devices: &SimDevices, origin: DeviceId, cow: DeviceId) -> Vec<Entry> {
    let metadata = load(devices, origin, cow).expect("the store is valid");
    metadata.entries().to_vec()
}

/// A new process on the devices that power loss left, with these persistent snapshots.
pub fn restart(devices: SimDevices, origin: DeviceId, cows: &[(SnapshotId, DeviceId)]) -> World {
    let mut w = World::over(devices, origin, 11);
    for (snapshot, device) in cows {
        let metadata = load(&w.devices, origin, *device).expect("the store is valid");
        let store = Box::new(SnapshotStore {
            device: *device,
            metadata,
            sectors: w.devices.sectors(origin),
            keep_on_overflow: false,
            valid: true,
            marked: false,
            record: None,
            discards: Discards::default(),
            zero_ahead: 0,
        });
        w.cows.insert(*snapshot, *device);
        w.control_wait(ControlRequest::AddSnapshot {
            snapshot: *snapshot,
            store,
        })
        .unwrap();
    }
    w
}
