//! Draws a case from its seed, aiming at the edges of stores.

use std::collections::BTreeMap;

use super::case::{COWS, Case, Compared, Op, PHASES, Phase, Resume, Snap, State, View};
use super::model::{Bytes, Extent, Geometry, Health, Kind, Store};
use crate::content;

/// Longest write in sectors.
const LONGEST: u64 = 2048;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        content::random(self.0) % bound
    }

    fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        match from.len() {
            0 => None,
            len => Some(from[self.below(len as u64) as usize]),
        }
    }
}

struct Generator {
    dice: Dice,
    origin: u64,
    geometry: Vec<Geometry>,
    next: Snap,
    alive: BTreeMap<Snap, Store>,
    write: u64,
    ops: Vec<Op>,
}

impl Case {
    pub fn of_seed(seed: u64) -> Self {
        let mut dice = Dice(content::random(seed ^ 0xd1ff));
        let main = dice.pick(&[1, 8, 8, 32, 128, 1024]).unwrap_or(8);
        let sizes: Vec<u64> = (0..COWS)
            .map(|_| match dice.chance(50) {
                true => main,
                false => dice.pick(&[1, 8, 8, 32, 128]).unwrap_or(8),
            })
            .collect();
        let largest = sizes.iter().max().copied().unwrap_or(8);
        let mut origin = match largest {
            1024 => dice.within(4096..=7168),
            128 => dice.within(2048..=4096),
            _ => dice.within(2048..=3072),
        };
        if dice.chance(30) {
            origin = origin / largest * largest;
        }
        let geometry: Vec<Geometry> = sizes.iter().map(|c| store(&mut dice, *c, origin)).collect();
        let mut generator = Generator {
            dice,
            origin,
            geometry: geometry.clone(),
            next: 0,
            alive: BTreeMap::new(),
            write: 0,
            ops: Vec::new(),
        };
        let mut resume = None;
        let mut phases = Vec::new();
        for number in 0..PHASES {
            let (phase, bytes) = generator.phase(resume.take(), number + 1 == PHASES);
            if let Some(snap) = phase.half_merge {
                let how = match generator.dice.chance(50) {
                    true => Resume::Merge,
                    false => Resume::Snapshot,
                };
                resume = Some((snap, how, bytes));
            }
            phases.push(phase);
        }
        Self {
            seed,
            origin,
            snapshots: geometry,
            phases,
        }
    }
}

/// A COW for `chunk`: ample, tight, or full when an area is.
fn store(dice: &mut Dice, chunk: u64, origin: u64) -> Geometry {
    let kind = dice.pick(&[Kind::P, Kind::P, Kind::P, Kind::PO, Kind::PO, Kind::N]);
    let kind = kind.unwrap_or(Kind::P);
    let all = origin.div_ceil(chunk);
    let area = chunk * 32;
    let ample = if kind == Kind::PO { 3 } else { 6 };
    let mut chunks = match dice.below(10) {
        size if size < ample => 2 + all + all / area + 3,
        6..8 if area <= all => 2 + dice.within(1..=all / area) * (area + 1),
        _ => 2 + dice.within(all / 4 + 1..=all - all / 4),
    };
    // S14: there Linux loses the snapshot when the area fills, and we do not.
    if chunks > 2 && chunks % (area + 1) == 1 {
        chunks += 1;
    }
    Geometry {
        kind,
        chunk,
        cow: chunks * chunk + dice.below(chunk),
    }
}

impl Generator {
    /// And what of the store is compared whose merge is interrupted.
    fn phase(&mut self, resume: Option<(Snap, Resume, Bytes)>, last: bool) -> (Phase, Bytes) {
        let alive: Vec<Snap> = self.alive.keys().copied().collect();
        // Loading forgets an overflow.
        self.reloaded();
        self.check();
        if self.alive.is_empty() {
            self.add();
        }
        for _ in 0..self.dice.within(10..=18) {
            self.op();
        }
        self.end_transient();
        // Some stores shall travel with an area exactly full, or overflowed.
        for snap in self.valid() {
            let keeps = self.alive[&snap].geometry.kind == Kind::PO;
            match self.dice.below(100) {
                0..=29 => self.fill(snap),
                30..=89 if keeps => self.overflow(snap),
                _ => {}
            }
        }
        self.check();
        let half_merge = match last || self.dice.chance(50) {
            true => None,
            false => self.half_merge(),
        };
        let exchange = match last || self.dice.chance(30) {
            true => Vec::new(),
            false => self.states(half_merge),
        };
        let bytes = half_merge.map_or(Bytes::Nothing, |snap| self.merged(snap));
        let phase = Phase {
            alive,
            resume,
            ops: std::mem::take(&mut self.ops),
            half_merge,
            exchange,
        };
        (phase, bytes)
    }

    fn op(&mut self) {
        let valid = self.valid();
        let snap = self.dice.pick(&valid);
        let any: Vec<Snap> = self.alive.keys().copied().collect();
        match (self.dice.below(100), snap) {
            (0..=29, _) => {
                let extent = self.extent(None);
                self.write(None, extent);
            }
            (30..=59, _) => {
                if let Some(snap) = self.dice.pick(&any) {
                    let extent = self.extent(Some(snap));
                    self.write(Some(snap), extent);
                }
            }
            (60..=67, Some(snap)) => self.fill(snap),
            (68..=74, snap) => self.burst(snap),
            (75..=81, _) => self.add(),
            (82..=84, _) => {
                if let Some(snap) = self.dice.pick(&any) {
                    self.alive.remove(&snap);
                    self.ops.push(Op::Remove(snap));
                }
            }
            (85..=88, _) => {
                self.end_transient();
                self.reloaded();
                self.ops.push(Op::Reload);
            }
            (89..=92, _) => {
                self.end_transient();
                let valid = self.valid();
                if let Some(snap) = self.dice.pick(&valid) {
                    let bytes = self.merged(snap);
                    self.ops.push(Op::Merge(snap, bytes));
                }
            }
            (93..=96, _) => self.check(),
            _ => {}
        }
    }

    fn valid(&self) -> Vec<Snap> {
        let valid = self
            .alive
            .iter()
            .filter(|(_, s)| s.health == Health::Valid)
            .map(|(i, _)| *i);
        valid.collect()
    }

    /// A transient store does not outlive its device; only we would keep its name.
    fn end_transient(&mut self) {
        let transient: Vec<Snap> = self
            .alive
            .iter()
            .filter(|(_, s)| s.geometry.kind == Kind::N)
            .map(|(i, _)| *i)
            .collect();
        for snap in transient {
            self.alive.remove(&snap);
            self.ops.push(Op::Remove(snap));
        }
    }

    fn reloaded(&mut self) {
        for store in self.alive.values_mut() {
            if store.health == Health::Overflow {
                store.health = Health::Valid;
            }
        }
    }

    fn add(&mut self) {
        if self.next < COWS {
            let store = Store::new(self.geometry[self.next]);
            self.alive.insert(self.next, store);
            self.ops.push(Op::Add(self.next));
            self.next += 1;
        }
    }

    fn extent(&mut self, view: View) -> Extent {
        let chunk = match view {
            Some(snap) => self.geometry[snap].chunk,
            None => {
                let chunks: Vec<u64> = self.alive.values().map(|s| s.geometry.chunk).collect();
                self.dice.pick(&chunks).unwrap_or(8)
            }
        };
        let chunks = self.origin.div_ceil(chunk);
        let first = self.dice.below(chunks) * chunk;
        let (sector, count) = match self.dice.below(10) {
            // A part of a chunk.
            0..=2 => {
                let skip = self.dice.below(chunk);
                (first + skip, 1 + self.dice.below(chunk - skip))
            }
            // Whole chunks.
            3..=4 => (first, chunk * (1 + self.dice.below(3))),
            // Anything.
            5..=7 => (
                first + self.dice.below(chunk),
                1 + self.dice.below(chunk * 6),
            ),
            8 => (first, 1 + self.dice.below(LONGEST)),
            // The end of the device.
            _ => {
                let count = 1 + self.dice.below(chunk * 2);
                (self.origin.saturating_sub(count), count)
            }
        };
        let sector = sector.min(self.origin - 1);
        Extent {
            sector,
            count: count.min(self.origin - sector).min(LONGEST),
        }
    }

    fn write(&mut self, view: View, extent: Extent) {
        self.write += 1;
        self.ops.push(Op::Write(view, extent, self.write));
        self.applied(view, extent);
    }

    fn applied(&mut self, view: View, extent: Extent) {
        match view {
            None => self.alive.values_mut().for_each(|s| s.copy_out(extent)),
            Some(snap) => {
                if let Some(store) = self.alive.get_mut(&snap) {
                    store.write(extent);
                }
            }
        }
    }

    /// Fills the store's present area exactly, if one write can.
    fn fill(&mut self, snap: Snap) {
        let Some(store) = self.alive.get(&snap) else {
            return;
        };
        let geometry = store.geometry;
        let area = geometry.area();
        let goal = (area - store.entries.len() as u64 % area).min(store.room());
        let first = self.dice.below(self.origin.div_ceil(geometry.chunk)) * geometry.chunk;
        let count = (1..=LONGEST / geometry.chunk)
            .map(|chunks| chunks * geometry.chunk)
            .map(|count| Extent {
                sector: first,
                count: count.min(self.origin - first),
            })
            .find(|extent| store.missing(*extent) == goal);
        let Some(extent) = count else {
            return;
        };
        let view = self.dice.chance(50).then_some(snap);
        self.write(view, extent);
        self.check();
        if self.dice.chance(50) {
            self.end_transient();
            self.reloaded();
            self.ops.push(Op::Reload);
            self.check();
        }
    }

    /// Overflows the store by its own view, if one write can.
    fn overflow(&mut self, snap: Snap) {
        let Some(store) = self.alive.get(&snap) else {
            return;
        };
        let sector = self.dice.below(self.origin / 4);
        let extent = Extent {
            sector,
            count: LONGEST.min(self.origin - sector),
        };
        if store.missing(extent) > store.room() {
            self.write(Some(snap), extent);
        }
    }

    /// Several writes at once, where no store can run full.
    fn burst(&mut self, view: View) {
        let zones = self.dice.within(3..=8);
        let zone = self.origin / zones;
        let mut writes = Vec::new();
        for number in 0..zones {
            let skip = self.dice.below(zone);
            let extent = Extent {
                sector: number * zone + skip,
                count: 1 + self.dice.below((zone - skip).min(256)),
            };
            self.write += 1;
            writes.push((extent, self.write));
        }
        let touched: Vec<Snap> = match view {
            Some(snap) => vec![snap],
            None => self.alive.keys().copied().collect(),
        };
        let need = |store: &Store| writes.iter().map(|(e, _)| store.missing(*e)).sum::<u64>();
        if touched.iter().any(|snap| {
            self.alive[snap].health == Health::Valid
                && need(&self.alive[snap]) > self.alive[snap].room()
        }) {
            return;
        }
        for snap in &touched {
            if let Some(store) = self.alive.get_mut(snap)
                && store.health != Health::Invalid
            {
                store.unordered();
            }
        }
        for (extent, _) in &writes {
            self.applied(view, *extent);
        }
        self.ops.push(Op::Burst(view, writes));
    }

    /// Merges `snap` in the model; what is determined of its store then.
    fn merged(&mut self, snap: Snap) -> Bytes {
        let Some(merging) = self.alive.remove(&snap) else {
            return Bytes::Nothing;
        };
        for store in self.alive.values_mut() {
            let before = (store.entries.len(), store.health);
            for chunk in &merging.entries {
                let sector = chunk * merging.geometry.chunk;
                store.copy_out(Extent {
                    sector,
                    count: merging.geometry.chunk.min(self.origin - sector),
                });
            }
            // M02: we take several runs at once, so copy-outs come in another order.
            if (store.entries.len(), store.health) != before {
                store.unordered();
            }
        }
        merging.bytes
    }

    /// A snapshot whose merge can be interrupted: long enough, and no other
    /// snapshot is or becomes invalid, so that ours can start without its memory.
    fn half_merge(&mut self) -> Option<Snap> {
        let mut candidates = Vec::new();
        for snap in self.valid() {
            let store = &self.alive[&snap];
            if store.entries.len() < 3 || store.entries.len() as u64 * store.geometry.chunk < 300 {
                continue;
            }
            let saved = self.alive.clone();
            self.merged(snap);
            if self.alive.values().all(|s| s.health == Health::Valid) {
                candidates.push(snap);
            }
            self.alive = saved;
        }
        self.dice.pick(&candidates)
    }

    fn states(&self, half_merge: Option<Snap>) -> Vec<(Snap, State)> {
        let states = self.alive.iter().map(|(snap, store)| match half_merge {
            Some(merging) if merging == *snap => (*snap, State::HalfMerged),
            _ => (*snap, state(store)),
        });
        states.collect()
    }

    fn check(&mut self) {
        let compared = self.alive.iter().map(|(snap, store)| Compared {
            snap: *snap,
            bytes: store.bytes,
        });
        self.ops.push(Op::Check(compared.collect()));
    }
}

fn state(store: &Store) -> State {
    let entries = store.entries.len() as u64;
    let area = store.geometry.area();
    match store.health {
        Health::Invalid => State::Invalid,
        Health::Overflow => State::Overflowed,
        Health::Valid if entries == 0 => State::Fresh,
        Health::Valid if store.geometry.kind == Kind::N => State::PartFilled,
        Health::Valid if entries.is_multiple_of(area) => State::ExactlyFullArea,
        Health::Valid if entries > area => State::SeveralAreas,
        Health::Valid => State::PartFilled,
    }
}
