//! Power loss and process death. Both make a new world from an old one, which stays
//! unchanged, so that recovery can be tested at every instant of a run.

use std::collections::BTreeMap;

use super::SimDevices;
use super::World;
use super::disk::InFlight;
use super::medium::Medium;
use super::rng::Rng;
use crate::io::DeviceId;

/// Which version power loss leaves in each unsettled block.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// Only what was durable.
    Nothing,
    /// The newest version everywhere, unfinished writes included.
    Everything,
    /// Any, by this seed.
    Seeded(u64),
    /// For the n-th of [`SimDevices::unsettled`]: 0 the durable version, k the k-th
    /// version since. Missing choices count as 0.
    Choice(&'a [usize]),
}

/// A block that power loss may leave in more than one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    pub device: DeviceId,
    /// In bytes.
    pub offset: u64,
    /// Versions besides the durable one, unfinished writes included.
    pub versions: usize,
}

/// The versions of a unit: landed on the medium, or carried by operations under way.
pub(super) struct Candidates {
    landed: usize,
    under_way: Vec<u64>,
}

impl Candidates {
    /// Versions besides the durable one.
    pub(super) fn count(&self) -> usize {
        self.landed + self.under_way.len()
    }
}

impl World {
    pub(super) fn candidates(&self) -> BTreeMap<(DeviceId, u64), Candidates> {
        let mut all = BTreeMap::new();
        for (device, medium) in &self.devices {
            for (unit, landed) in medium.unsettled() {
                all.insert(
                    (*device, unit),
                    Candidates {
                        landed,
                        under_way: Vec::new(),
                    },
                );
            }
        }
        for (number, op) in &self.in_flight {
            for unit in op.units_under_way() {
                let entry = all.entry((op.device, unit));
                entry
                    .or_insert_with(|| Candidates {
                        landed: 0,
                        under_way: Vec::new(),
                    })
                    .under_way
                    .push(*number);
            }
        }
        all
    }

    pub(super) fn candidate(
        &self,
        device: DeviceId,
        unit: u64,
        candidates: &Candidates,
        choice: usize,
    ) -> Option<Vec<u8>> {
        let medium = self.devices.get(&device)?;
        if choice < candidates.landed {
            return medium.version(unit, choice).map(<[u8]>::to_vec);
        }
        let op = candidates.under_way.get(choice - candidates.landed)?;
        self.in_flight.get(op)?.unit_data(unit, medium.unit())
    }
}

impl SimDevices {
    /// The blocks that power loss now may leave in more than one state, in order.
    pub fn unsettled(&self) -> Vec<Unsettled> {
        let world = self.world();
        let all = world.candidates();
        let place = |((device, unit), c): (&(DeviceId, u64), &Candidates)| {
            let block = world.devices.get(device).map_or(0, Medium::unit);
            let offset = unit.saturating_mul(u64::try_from(block).unwrap_or(u64::MAX));
            Unsettled {
                device: *device,
                offset,
                versions: c.landed + c.under_way.len(),
            }
        };
        all.iter().map(place).collect()
    }

    /// The world after power loss at this instant: same devices, all content
    /// durable, nothing in flight, no faults, an empty log.
    pub fn crash(&self, keep: Keep<'_>) -> Self {
        let world = self.world();
        let mut rng = Rng::new(if let Keep::Seeded(seed) = keep {
            seed
        } else {
            0
        });
        let next = |m: &Medium| Medium::new(m.durable().to_vec(), m.unit());
        let alive = world.devices.iter().filter(|(_, m)| !m.removed);
        let mut devices: BTreeMap<_, _> = alive.map(|(id, m)| (*id, next(m))).collect();
        for (n, ((device, unit), candidates)) in world.candidates().iter().enumerate() {
            let versions = candidates.landed + candidates.under_way.len();
            let choice = match keep {
                Keep::Nothing => 0,
                Keep::Everything => versions,
                Keep::Seeded(_) => rng.below(versions + 1),
                Keep::Choice(choices) => choices.get(n).copied().unwrap_or(0),
            };
            let data = choice
                .checked_sub(1)
                .and_then(|c| world.candidate(*device, *unit, candidates, c));
            if let (Some(data), Some(medium)) = (data, devices.get_mut(device)) {
                let at = usize::try_from(*unit)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(medium.unit());
                medium.put(at, &data);
            }
        }
        Self::with_devices(rng.next(), devices, world.next_device)
    }

    /// The world after the death of the process, while the kernel continues: completed
    /// writes are there and still unflushed; of those in flight any part is there.
    pub fn process_death(&self, seed: u64) -> Self {
        let world = self.world();
        let mut rng = Rng::new(seed);
        let mut devices = world.devices.clone();
        devices.retain(|_, m| !m.removed);
        for (number, op) in &world.in_flight {
            let Some(medium) = devices.get_mut(&op.device) else {
                continue;
            };
            for unit in op.units_under_way().filter(|_| rng.one_in(2)) {
                if let Some(data) = InFlight::unit_data(op, unit, medium.unit()) {
                    medium.land(*number, unit, &data);
                }
            }
        }
        for medium in devices.values_mut() {
            medium.adopt();
        }
        let next = Self::with_devices(rng.next(), devices, world.next_device);
        // Writes of the dead process must not be taken for those of a new operation.
        next.world().next_op = world.next_op;
        next
    }
}
