//! A small volume behind a ring: an origin, perhaps with a snapshot, on simulated devices.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::engine::*;
use crate::executor::{Executor, Output};
use crate::io::sim::{Fill, Rng, SimDevices};
use crate::io::{DeviceId, Disk};
use crate::store;
use crate::units::ChunkSize;
use crate::vhost::{Backend, Requests};
use crate::virtio_blk::{BlkDevice, Capacity, MAX_DISCARD_SECTORS, Topology};

/// Sectors of the disk, also those of a snapshot.
pub const SECTORS: u64 = 128;
/// Sectors of a chunk.
pub const CHUNK: u64 = 8;
/// Room for every chunk.
const COW_SECTORS: u64 = 24 * CHUNK;
const SNAPSHOT: ViewId = ViewId(1);

/// Which view the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Origin,
    OriginWithSnapshot,
    Snapshot,
    ReadOnly,
}

pub struct Volume {
    pub view: View,
    devices: SimDevices,
    origin: DeviceId,
    engine: Arc<Engine>,
    notices: Executor,
}

/// What the disk shows at first.
pub fn initial() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = vec![0; SECTORS as usize * 512];
        Rng::new(7).fill(&mut bytes);
        bytes
    })
}

impl Volume {
    pub fn new(view: View, seed: u64) -> Self {
        let devices = SimDevices::new(seed);
        let origin = devices.add(SECTORS, Fill::Image(initial().to_vec()));
        let engine = Engine::new(OriginParams {
            device: origin,
            sectors: SECTORS,
        });
        let disk = Box::new(devices.disk());
        let mut volume = Self {
            view,
            notices: Executor::new(&engine, PortRole::Notices, disk).unwrap(),
            devices,
            origin,
            engine,
        };
        if matches!(view, View::OriginWithSnapshot | View::Snapshot) {
            volume.add_snapshot();
        }
        volume
    }

    fn add_snapshot(&mut self) {
        let device = self.devices.add(COW_SECTORS, Fill::Zeroes);
        let disk = &mut self.devices.disk();
        let chunk = ChunkSize::new(CHUNK).unwrap();
        let store = Box::new(SnapshotStore {
            device,
            metadata: store::create(disk, device, chunk, COW_SECTORS, 512).unwrap(),
            sectors: SECTORS,
            keep_on_overflow: false,
            valid: true,
            marked: false,
            record: None,
            discards: Discards::default(),
            zero_ahead: 0,
        });
        let snapshot = SNAPSHOT;
        self.control(ControlRequest::AddSnapshot { snapshot, store });
    }

    fn control(&mut self, request: ControlRequest) {
        let disk = Box::new(self.devices.disk());
        let mut control = Executor::new(&self.engine, PortRole::Control, disk).unwrap();
        control.drive(request, &mut Vec::new()).unwrap();
    }

    /// What the guest's view is for the engine.
    pub fn means(&self) -> Means {
        Means {
            engine: Arc::clone(&self.engine),
            devices: self.devices.clone(),
            view: match self.view {
                View::Snapshot => SNAPSHOT,
                _ => ViewId::ORIGIN,
            },
        }
    }

    pub fn device(&self, block_size: u32) -> BlkDevice {
        BlkDevice {
            capacity: Capacity::new(SECTORS),
            topology: Topology::of_blocks(block_size),
            read_only: self.view == View::ReadOnly,
            serial: "fuzz".into(),
            num_queues: 1,
            max_discard_sectors: MAX_DISCARD_SECTORS,
        }
    }

    /// Does the work of the daemon's main thread.
    pub fn turn(&mut self) -> bool {
        let mut outputs: Vec<Output> = Vec::new();
        self.notices.turn(&mut outputs);
        let busy = !self.notices.is_idle();
        if busy {
            self.notices.wait(None);
        }
        busy || !outputs.is_empty()
    }

    /// What the guest's view shows, and what every other one shows. No request is under way.
    pub fn shown(&mut self) -> (Vec<u8>, Option<Vec<u8>>) {
        self.engine.check().unwrap();
        match self.view {
            View::Origin | View::ReadOnly => (self.devices.current(self.origin), None),
            View::OriginWithSnapshot => {
                let origin = self.devices.current(self.origin);
                (origin, Some(self.read(SNAPSHOT)))
            }
            View::Snapshot => {
                let origin = self.devices.current(self.origin);
                (self.read(SNAPSHOT), Some(origin))
            }
        }
    }

    /// Reads all of a view through a port of its own.
    fn read(&mut self, view: ViewId) -> Vec<u8> {
        super::reader::read_all(&self.engine, &self.devices, view)
    }
}

/// The source of disks and ports for workers.
pub struct Means {
    engine: Arc<Engine>,
    devices: SimDevices,
    view: ViewId,
}

impl Backend for Means {
    fn disk(&self) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(self.devices.disk()))
    }

    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        let role = PortRole::View(self.view);
        Box::new(self.engine.open_port(role, slots, wake))
    }
}
