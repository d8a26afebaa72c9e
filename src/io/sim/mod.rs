//! Simulated devices: deterministic, in memory, and with all the freedom that real
//! devices have.
//!
//! One seed decides the order of completions and how far unfinished writes got;
//! operations only advance inside [`Disk::reap`](crate::io::Disk::reap) or
//! [`SimDisk::step`], never in `submit`. All disks of one [`SimDevices`] see the
//! same devices. `docs/crash-model.md` is the contract in full.
//!
//! What may happen, and what may not:
//! - completions come in any order, and a write may become visible unit by unit
//!   before it completes (so that an overlapping read sees a mix);
//! - a flush makes durable exactly what its promise covers (rule 4 of
//!   [`crate::io`]) and nothing else;
//! - power loss ([`SimDevices::crash`]) leaves in each logical block its durable
//!   content or any version written since, finished or not; blocks don't tear;
//! - a transfer may stop short, and is then continued by the same rule as on real
//!   disks (`transfer.rs`);
//! - a failed write may have written any of its blocks; a failed flush may lose
//!   any of what it covered, and no later flush brings that back;
//! - nothing else is ever lost, misdirected or corrupted.

mod crash;
mod disk;
mod fault;
mod medium;
mod possible;
mod rng;
#[cfg(test)]
mod tests;

pub use crash::{Keep, Unsettled};
pub use disk::SimDisk;
pub use fault::{Fault, FaultEffect, FaultOn};
pub use possible::Possible;
pub use rng::Rng;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DeviceId, Errno, Tag, Zeroing};
use crate::units::SECTOR_SIZE;
use fault::Faults;
use medium::Medium;

/// What a new device holds.
#[derive(Clone, Debug)]
pub enum Fill {
    Zeroes,
    Byte(u8),
    /// Pseudo-random bytes, so that code which relies on zeroes in unwritten space fails.
    Noise,
    /// These bytes, and zeroes behind them.
    Image(Vec<u8>),
}

/// What an operation is, without its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedKind {
    Read,
    Write { durable: bool },
    Flush,
    Zero(Zeroing),
}

/// What happened to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedEvent {
    Submitted,
    Reaped(Result<(), Errno>),
}

/// One line of the log. Offset and length in bytes (0 for a flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    pub event: LoggedEvent,
    pub kind: LoggedKind,
    pub device: DeviceId,
    pub offset: u64,
    pub len: u64,
    /// Number of the [`SimDisk`], in the order of [`SimDevices::disk`].
    pub disk: u32,
    pub tag: Tag,
}

/// A set of simulated devices. Clones share it.
#[derive(Clone, Debug)]
pub struct SimDevices {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct World {
    rng: Rng,
    /// Counts submissions and reaps, so that "before" has a meaning.
    clock: u64,
    next_device: u32,
    next_disk: u32,
    next_op: u64,
    devices: BTreeMap<DeviceId, Medium>,
    in_flight: BTreeMap<u64, disk::InFlight>,
    faults: Faults,
    log: Vec<Logged>,
}

impl SimDevices {
    /// No devices yet; `seed` decides everything that is left open.
    pub fn new(seed: u64) -> Self {
        Self::with_devices(seed, BTreeMap::new(), 0)
    }

    fn with_devices(seed: u64, devices: BTreeMap<DeviceId, Medium>, next_device: u32) -> Self {
        let world = World {
            rng: Rng::new(seed),
            clock: 1,
            next_device,
            next_disk: 0,
            next_op: 0,
            devices,
            in_flight: BTreeMap::new(),
            faults: Faults::default(),
            log: Vec::new(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device of `sectors` with 512-byte blocks.
    pub fn add(&self, sectors: u64, fill: Fill) -> DeviceId {
        self.add_with_blocks(sectors, fill, 512)
    }

    /// Adds a device whose logical block (unit of atomicity and alignment) has
    /// `block` bytes: 512 ..= 65536, a power of two.
    pub fn add_with_blocks(&self, sectors: u64, fill: Fill, block: usize) -> DeviceId {
        assert!(
            block.is_power_of_two() && (512..=65536).contains(&block),
            "block size {block}"
        );
        let len = usize::try_from(sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX);
        let mut world = self.world();
        let image = match fill {
            Fill::Zeroes => vec![0; len],
            Fill::Byte(byte) => vec![byte; len],
            Fill::Noise => {
                let mut image = vec![0; len];
                Rng::new(world.rng.next()).fill(&mut image);
                image
            }
            Fill::Image(mut image) => {
                image.resize(len, 0);
                image
            }
        };
        let id = DeviceId(world.next_device);
        world.next_device += 1;
        world.devices.insert(id, Medium::new(image, block));
        id
    }

    /// New operations on the device fail with ENODEV; tests can still read its content.
    pub fn remove(&self, id: DeviceId) {
        if let Some(medium) = self.world().devices.get_mut(&id) {
            medium.removed = true;
        }
    }

    /// Grows (with zeroes) or shrinks a device.
    pub fn resize(&self, id: DeviceId, sectors: u64) {
        let len = usize::try_from(sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX);
        if let Some(medium) = self.world().devices.get_mut(&id) {
            medium.resize(len);
        }
    }

    /// Truncates the file behind this device. Writes under way beyond the new end have no
    /// effect; [`super::cut`] describes what happens to later operations.
    pub fn cut(&self, id: DeviceId, sectors: u64) {
        let len = usize::try_from(sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX);
        if let Some(medium) = self.world().devices.get_mut(&id) {
            medium.cut(len);
        }
    }

    /// One thread's access. It completes what it has in flight when dropped.
    pub fn disk(&self) -> SimDisk {
        let mut world = self.world();
        let number = world.next_disk;
        world.next_disk += 1;
        SimDisk::new(self.clone(), number)
    }

    /// What a read would see now, flushed or not; cut off at the device's end.
    pub fn read_now(&self, id: DeviceId, offset: u64, len: u64) -> Vec<u8> {
        let world = self.world();
        let image = world
            .devices
            .get(&id)
            .map(Medium::current)
            .unwrap_or_default();
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(image.len());
        image
            .get(at(offset)..at(offset.saturating_add(len)))
            .unwrap_or_default()
            .to_vec()
    }

    /// Writes bytes durably, bypassing queues and faults.
    pub fn write_now(&self, id: DeviceId, offset: u64, data: &[u8]) {
        if let Some(medium) = self.world().devices.get_mut(&id) {
            medium.put(usize::try_from(offset).unwrap_or(usize::MAX), data);
        }
    }

    /// The whole content.
    pub fn current(&self, id: DeviceId) -> Vec<u8> {
        self.read_now(id, 0, u64::MAX)
    }

    /// What certainly survives power loss: the content as of the last flush.
    pub fn durable(&self, id: DeviceId) -> Vec<u8> {
        self.world()
            .devices
            .get(&id)
            .map(|m| m.durable().to_vec())
            .unwrap_or_default()
    }

    /// Size in sectors; 0 for an unknown device.
    pub fn sectors(&self, id: DeviceId) -> u64 {
        let len = self.world().devices.get(&id).map_or(0, Medium::len);
        u64::try_from(len).unwrap_or(u64::MAX) / SECTOR_SIZE
    }

    /// Injects a fault for operations submitted from now on.
    pub fn fail(&self, fault: Fault) {
        self.world().faults.push(fault);
    }

    /// Everything works again.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// Everything submitted and reaped since the last call, in order.
    pub fn take_log(&self) -> Vec<Logged> {
        std::mem::take(&mut self.world().log)
    }
}
