//! Every image that power loss or the death of the process can leave at an instant is
//! decoded and checked.

use super::content::{Content, End, Stamps};
use super::counts;
use super::decoder::{Decoded, decode, listed};
use super::sim::{Sim, Verdict};
use crate::engine::tests::world::stamp_at;
use crate::engine::{SnapshotId, SnapshotState, ViewId};
use crate::io::DeviceId;
use crate::io::sim::{Keep, Possible, Rng};

/// How much is checked after each event.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// At most so many images of power loss.
    pub states: usize,
    /// At one in so many instants production code recovers from an image; 0: never.
    pub recover: usize,
}

impl Depth {
    /// Every subset of twelve blocks.
    pub const FULL: Self = Self {
        states: 1 << 12,
        recover: 40,
    };
    pub const SHALLOW: Self = Self {
        states: 24,
        recover: 40,
    };
    const RECOVERED: Self = Self {
        states: 8,
        recover: 0,
    };
    const NONE: Self = Self {
        states: 0,
        recover: 0,
    };
}

/// One snapshot's store, and what its image is checked against.
struct StoreFrame {
    id: SnapshotId,
    /// Index into the images.
    image: usize,
    /// That of its record, which the next start takes over.
    record: Option<usize>,
    /// Length of the snapshot.
    sectors: usize,
    /// Entries in an area.
    area: usize,
    must_be_valid: bool,
    given_up: bool,
    /// `None`: its view is not checked.
    allowed: Option<Vec<Stamps>>,
    merging: bool,
}

/// What all images of one instant are checked against. Image 0 is the origin's.
struct Frame {
    devices: Vec<DeviceId>,
    stores: Vec<StoreFrame>,
    /// What the origin view shows when no store is merged into it.
    origin: Vec<Stamps>,
}

impl Frame {
    fn new(sim: &Sim, end: End) -> Self {
        let handed_over = sim.handed_over();
        let merging = sim.record.merging.map(|m| m.snapshot);
        let status = sim.w.engine.status();
        let mut devices = vec![sim.origin()];
        let mut stores = Vec::new();
        for (id, recorded) in &sim.record.snapshots {
            if recorded.kind == "N" || !recorded.valid {
                continue;
            }
            let state = status
                .snapshots
                .iter()
                .find(|s| s.snapshot == *id)
                .map(|s| s.state);
            let content = match (&handed_over, merging == Some(*id)) {
                (Some(content), true) => Some(content),
                (None, true) => sim.views.get(&ViewId::ORIGIN).map(|v| &v.content),
                _ => sim.views.get(id).map(|v| &v.content),
            };
            stores.push(StoreFrame {
                id: *id,
                image: devices.len(),
                // Power loss takes the record away.
                record: recorded
                    .record
                    .filter(|_| end == End::Process)
                    .map(|_| devices.len() + 1),
                sectors: recorded.sectors as usize,
                area: recorded.area,
                must_be_valid: state.is_some_and(|s| s != SnapshotState::Invalid),
                given_up: sim.given_up.contains(id),
                allowed: content.map(|c: &Content| c.after(end)),
                merging: merging == Some(*id),
            });
            devices.push(recorded.device);
            devices.extend(recorded.record.filter(|_| end == End::Process));
        }
        // A merge without entries may end before its handover is reported.
        let over = handed_over.as_ref().filter(|_| merging.is_none());
        let origin = over
            .unwrap_or(&sim.views[&ViewId::ORIGIN].content)
            .after(end);
        Self {
            devices,
            stores,
            origin,
        }
    }

    fn judge(&self, images: &[Vec<u8>]) -> Verdict {
        let origin = &images[0];
        let mut merged = false;
        for store in &self.stores {
            let fail = |e: String| Err(format!("{:?}: {e}", store.id));
            match decode(&images[store.image], store.sectors, store.area) {
                Err(e) => return fail(e),
                Ok(Decoded::Invalid) if store.must_be_valid => {
                    return fail("invalid without a reason".into());
                }
                Ok(Decoded::Invalid) => {}
                Ok(Decoded::Valid { .. }) if store.given_up => {
                    return fail("given up, and valid again".into());
                }
                Ok(Decoded::Valid { chunk, entries }) => {
                    merged |= store.merging;
                    let Some(allowed) = &store.allowed else {
                        continue;
                    };
                    let mut at = vec![None; allowed.len().div_ceil(chunk)];
                    let recorded = store.record.map(|image| listed(&images[image]));
                    for (old, new) in recorded.unwrap_or_default() {
                        at[old] = Some(new);
                    }
                    for (old, new) in entries {
                        at[old] = Some(new);
                    }
                    for (sector, allowed) in allowed.iter().enumerate() {
                        // A copy is used up to the snapshot's end only.
                        let copy = at[sector / chunk].filter(|_| sector < store.sectors);
                        let (image, at) = match copy {
                            Some(new) => (store.image, new * chunk + sector % chunk),
                            None => (0, sector),
                        };
                        let seen = match held(&images[image], at, sector) {
                            Ok(seen) => seen,
                            Err(e) => return fail(e),
                        };
                        if !allowed.contains(&seen) {
                            return fail(format!(
                                "sector {sector} would show {seen}, allowed {allowed:?}"
                            ));
                        }
                    }
                }
            }
        }
        if !merged {
            for (sector, allowed) in self.origin.iter().enumerate() {
                let seen = held(origin, sector, sector).map_err(|e| format!("the origin: {e}"))?;
                if !allowed.contains(&seen) {
                    return Err(format!(
                        "the origin's sector {sector} would hold {seen}, allowed {allowed:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The stamp that a view shows in its sector `place` if it lies in sector `at` of `image`.
fn held(image: &[u8], at: usize, place: usize) -> Result<u64, String> {
    let sector = image.get(at * 512..at * 512 + 512);
    sector.map_or(Ok(u64::MAX), |s| stamp_at(place as u64, s))
}

/// The images of one instant, one after the other.
struct Walk<'a> {
    frame: &'a Frame,
    images: Vec<Vec<u8>>,
    /// With the index of their image.
    blocks: Vec<(usize, Possible)>,
}

impl Walk<'_> {
    fn choose(&mut self, block: usize, version: usize) {
        let (image, possible) = &self.blocks[block];
        let data = &possible.versions[version];
        self.images[*image][possible.offset..possible.offset + data.len()].copy_from_slice(data);
    }

    fn versions(&self, block: usize) -> usize {
        self.blocks[block].1.versions.len()
    }

    fn judge(&self) -> Verdict {
        self.frame.judge(&self.images)
    }

    fn all(&mut self) -> Result<u64, String> {
        let mut digits = vec![0; self.blocks.len()];
        let mut states = 0;
        loop {
            self.judge()?;
            states += 1;
            let mut at = 0;
            loop {
                if at == digits.len() {
                    return Ok(states);
                }
                digits[at] = (digits[at] + 1) % self.versions(at);
                self.choose(at, digits[at]);
                if digits[at] != 0 {
                    break;
                }
                at += 1;
            }
        }
    }

    /// All blocks lost, all kept, each one lost, each one kept, and random subsets.
    fn some(&mut self, most: usize, rng: &mut Rng) -> Result<u64, String> {
        let blocks = self.blocks.len();
        let mut states = 0;
        for newest in [false, true] {
            for odd in (0..blocks).map(Some).chain([None]) {
                if states >= most as u64 && odd.is_some() {
                    continue;
                }
                for block in 0..blocks {
                    let last = self.versions(block) - 1;
                    let last = if newest != (odd == Some(block)) {
                        last
                    } else {
                        0
                    };
                    self.choose(block, last);
                }
                self.judge()?;
                states += 1;
            }
        }
        while states < most as u64 {
            for block in 0..blocks {
                let version = rng.below(self.versions(block));
                self.choose(block, version);
            }
            self.judge()?;
            states += 1;
        }
        Ok(states)
    }
}

impl Sim {
    /// The oracles on what is durable now.
    pub fn check(&mut self) -> Verdict {
        let depth = self.depth;
        if depth.states == 0 {
            return Ok(());
        }
        self.after_power_loss(depth.states)
            .map_err(|e| format!("after power loss: {e}"))?;
        if self.rng.one_in(8) {
            self.after_process_death()
                .map_err(|e| format!("after process death: {e}"))?;
        }
        if depth.recover > 0 && self.rng.one_in(depth.recover) {
            self.try_recovery()?;
        }
        Ok(())
    }

    fn after_power_loss(&mut self, most: usize) -> Verdict {
        let frame = Frame::new(self, End::Power);
        let images: Vec<_> = frame
            .devices
            .iter()
            .map(|d| self.w.devices.durable(*d))
            .collect();
        let place = |p: Possible| Some((frame.devices.iter().position(|d| *d == p.device)?, p));
        let blocks: Vec<_> = self
            .w
            .devices
            .possibilities()
            .into_iter()
            .filter_map(place)
            .collect();
        let sizes = blocks.iter().map(|b| b.1.versions.len());
        let total = sizes.fold(1usize, usize::saturating_mul);
        let mut walk = Walk {
            frame: &frame,
            images,
            blocks,
        };
        let states = if total <= most {
            walk.all()?
        } else {
            walk.some(most.min(64), &mut self.rng)?
        };
        counts::add(&counts::STATES, states);
        Ok(())
    }

    fn after_process_death(&mut self) -> Verdict {
        let frame = Frame::new(self, End::Process);
        let devices = self.w.devices.process_death(self.rng.next());
        let images: Vec<_> = frame.devices.iter().map(|d| devices.current(*d)).collect();
        counts::add(&counts::STATES, 1);
        frame.judge(&images)
    }

    /// Production code recovers from what is left, on a copy.
    fn try_recovery(&mut self) -> Verdict {
        let seed = self.rng.next();
        let (end, devices) = match self.rng.below(4) {
            // A later process cannot know what a failed flush lost.
            0 if self.faulty.is_empty() => (End::Process, self.w.devices.process_death(seed)),
            1 => (End::Power, self.w.devices.crash(Keep::Nothing)),
            2 => (End::Power, self.w.devices.crash(Keep::Everything)),
            _ => (End::Power, self.w.devices.crash(Keep::Seeded(seed))),
        };
        let mut next = self.restarted(devices, seed);
        next.depth = if self.rng.one_in(2) {
            Depth::RECOVERED
        } else {
            Depth::NONE
        };
        next.trace
            .push(format!("{end:?} ends, and all begins again"));
        let recovered = next.begin_again(self, end).and_then(|()| {
            // A guest continues to write, and the power fails again.
            next.after_recovery()
        });
        counts::add(&counts::RECOVERIES, 1);
        if recovered.is_err() {
            self.trace = std::mem::take(&mut next.trace);
        }
        recovered.map_err(|e| format!("recovery after {end:?}: {e}"))
    }

    fn after_recovery(&mut self) -> Verdict {
        let sectors = self.views[&ViewId::ORIGIN].content.len();
        let sector = self.rng.below(sectors as usize) as u64;
        let grain = self.w.devices.block_size(self.origin()) as u64 / 512;
        let first = sector / grain * grain;
        self.write(0, first..(first + grain).min(sectors), false);
        self.flush(0);
        self.collect()?;
        self.finish()?;
        self.after_power_loss(16)
    }
}
