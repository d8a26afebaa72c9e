//! What power loss may leave, block by block, for tests that check all images of an
//! instant without building a world for each.

use super::SimDevices;
use super::medium::Medium;
use crate::io::DeviceId;

/// A block whose content power loss decides.
#[derive(Clone, Debug)]
pub struct Possible {
    pub device: DeviceId,
    /// In bytes.
    pub offset: usize,
    /// Each content that may be left, the durable one first; all differ.
    pub versions: Vec<Vec<u8>>,
}

impl SimDevices {
    /// The blocks that power loss now may leave in more than one state, with their
    /// possible contents: the choices that [`SimDevices::crash`] makes.
    pub fn possibilities(&self) -> Vec<Possible> {
        let world = self.world();
        let mut all = Vec::new();
        for ((device, unit), candidates) in world.candidates() {
            let Some(medium) = world.devices.get(&device) else {
                continue;
            };
            let size = medium.unit();
            let offset = usize::try_from(unit)
                .unwrap_or(usize::MAX)
                .saturating_mul(size);
            let end = offset.saturating_add(size);
            let durable = medium
                .durable()
                .get(offset..end)
                .unwrap_or_default()
                .to_vec();
            let mut versions = vec![durable];
            for choice in 0..candidates.count() {
                if let Some(data) = world.candidate(device, unit, &candidates, choice)
                    && !versions.contains(&data)
                {
                    versions.push(data);
                }
            }
            if versions.len() > 1 {
                all.push(Possible {
                    device,
                    offset,
                    versions,
                });
            }
        }
        all
    }

    /// Operations accepted and not completed, by all disks, on one device or all.
    pub fn in_flight(&self, device: Option<DeviceId>) -> usize {
        let world = self.world();
        let on = |op: &&super::disk::InFlight| device.is_none_or(|d| d == op.device);
        world.in_flight.values().filter(on).count()
    }

    /// Bytes that a device writes atomically.
    pub fn block_size(&self, id: DeviceId) -> usize {
        self.world().devices.get(&id).map_or(512, Medium::unit)
    }
}
