//! What a view may show: for each sector every value that a read, the death of
//! the process or power loss may leave.
//!
//! Values are stamps, handed out in ascending order; two writes to one sector of
//! a view are never under way at once, so a larger stamp is a later write.

use smallvec::SmallVec;

pub type Stamps = SmallVec<[u64; 4]>;

/// One sector of one view.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Ascending.
    stamps: Stamps,
    /// The newest that was acknowledged: a flush covers it.
    acked: u64,
    /// The newest that was acknowledged or seen: reads show no older one.
    seen: u64,
    /// The newest that a flush has covered: power loss leaves no older one.
    durable: u64,
    /// Of the stamps up to here exactly one is there; which, was not seen yet.
    cut: u64,
    /// Writes that a handover may have let by before or after it: possible until
    /// something at least as new as `wild_until` replaces them.
    wild: Stamps,
    wild_until: u64,
    /// A write failed: no flush promises what it left.
    doubtful: bool,
}

impl Cell {
    fn new(stamp: u64) -> Self {
        Self {
            stamps: SmallVec::from_slice(&[stamp]),
            acked: stamp,
            seen: stamp,
            durable: stamp,
            cut: 0,
            wild: Stamps::new(),
            wild_until: 0,
            doubtful: false,
        }
    }

    fn from(&self, floor: u64) -> impl Iterator<Item = u64> {
        let wild: &[u64] = if floor < self.wild_until {
            &self.wild
        } else {
            &[]
        };
        let settled = self.stamps.iter().copied().filter(move |s| *s >= floor);
        settled.chain(wild.iter().copied())
    }

    fn floor(&self, end: End) -> u64 {
        match end {
            End::Process => self.seen,
            End::Power | End::ProcessDeferred => self.durable,
        }
    }

    /// `stamp` was seen by a read that nothing older could answer.
    fn seen(&mut self, stamp: u64) {
        if stamp <= self.cut && !self.wild.contains(&stamp) && !self.doubtful {
            let cut = self.cut;
            self.stamps.retain(|s| *s > cut || *s == stamp);
            self.durable = self.durable.max(stamp);
            self.cut = 0;
        }
        self.seen = self.seen.max(stamp);
    }
}

/// What happened to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Power,
    Process,
    /// Of the process, for a view whose entries wait in memory for a flush.
    ProcessDeferred,
}

/// The content of one view.
#[derive(Clone, Debug)]
pub struct Content(Vec<Cell>);

impl Content {
    pub fn new(stamps: impl Iterator<Item = u64>) -> Self {
        Self(stamps.map(Cell::new).collect())
    }

    fn range(&mut self, sector: u64, sectors: u64) -> &mut [Cell] {
        &mut self.0[sector as usize..(sector + sectors) as usize]
    }

    /// A write that may or may not be there from now on.
    pub fn start_write(&mut self, sector: u64, sectors: u64, stamp: u64) {
        for cell in self.range(sector, sectors) {
            cell.stamps.push(stamp);
        }
    }

    /// A write that a handover, which ended when stamp `until` was next, may have
    /// let by before or after it.
    pub fn wild_write(&mut self, sector: u64, sectors: u64, stamp: u64, until: u64) {
        for cell in self.range(sector, sectors) {
            cell.wild.push(stamp);
            cell.wild_until = until;
        }
    }

    /// The write is acknowledged; `durable`: with the promise of a flush.
    pub fn end_write(&mut self, sector: u64, sectors: u64, stamp: u64, durable: bool) {
        for cell in self.range(sector, sectors) {
            cell.acked = cell.acked.max(stamp);
            cell.seen = cell.seen.max(stamp);
            if durable {
                cell.durable = cell.durable.max(stamp);
            }
        }
    }

    /// The write failed: any part of it may be there, for any time.
    pub fn fail_write(&mut self, sector: u64, sectors: u64) {
        for cell in self.range(sector, sectors) {
            cell.doubtful = true;
        }
    }

    /// What a read that is submitted now must find.
    pub fn floors(&self, sector: u64, sectors: u64) -> Vec<u64> {
        let cells = &self.0[sector as usize..(sector + sectors) as usize];
        cells.iter().map(|c| c.seen).collect()
    }

    /// What a flush that is submitted now covers.
    pub fn covered(&self) -> Vec<u64> {
        self.0.iter().map(|c| c.acked).collect()
    }

    pub fn flushed(&mut self, floors: &[u64]) {
        for (cell, floor) in self.0.iter_mut().zip(floors) {
            cell.durable = cell.durable.max(*floor);
        }
    }

    /// Judges a read, and learns from it.
    pub fn read(&mut self, sector: u64, floors: &[u64], seen: &[u64]) -> Result<(), String> {
        let first = sector;
        for (n, (floor, stamp)) in floors.iter().zip(seen).enumerate() {
            let cell = &mut self.0[sector as usize + n];
            if !cell.from(*floor).any(|s| s == *stamp) {
                let allowed: Stamps = cell.from(*floor).collect();
                let sector = first + n as u64;
                return Err(format!(
                    "sector {sector} shows {stamp}, allowed {allowed:?}"
                ));
            }
            cell.seen(*stamp);
        }
        Ok(())
    }

    /// The content of a snapshot whose cut was between `before` (a copy of then)
    /// and now. The cut is durable: whatever it holds, power loss leaves it.
    pub fn at_cut(before: &Self, now: &Self) -> Self {
        let cells = before.0.iter().zip(&now.0);
        let cell = |(before, now): (&Cell, &Cell)| {
            let doubtful = before.doubtful || now.doubtful;
            let floor = if doubtful {
                before.durable
            } else {
                before.seen
            };
            let mut stamps: Stamps = before.from(floor).collect();
            stamps.extend(now.from(floor));
            stamps.sort_unstable();
            stamps.dedup();
            Cell {
                acked: stamps[0],
                seen: stamps[0],
                durable: stamps[0],
                cut: stamps[stamps.len() - 1],
                stamps,
                wild: Stamps::new(),
                wild_until: 0,
                doubtful,
            }
        };
        Self(cells.map(cell).collect())
    }

    /// What each sector may hold after the end of the process or the power.
    pub fn after(&self, end: End) -> Vec<Stamps> {
        let cells = self.0.iter();
        cells.map(|c| c.from(c.floor(end)).collect()).collect()
    }

    /// The daemon starts again and sees this; nothing that was under way comes later.
    pub fn restarted(&mut self, end: End, seen: &[u64]) -> Result<(), String> {
        for (n, (cell, stamp)) in self.0.iter_mut().zip(seen).enumerate() {
            let floor = cell.floor(end);
            if !cell.from(floor).any(|s| s == *stamp) {
                let allowed: Stamps = cell.from(floor).collect();
                return Err(format!("sector {n} shows {stamp}, allowed {allowed:?}"));
            }
            match end {
                End::Power => *cell = Cell::new(*stamp),
                _ if cell.wild.contains(stamp) => {
                    (cell.seen, cell.acked) = (cell.durable, cell.durable);
                }
                _ => {
                    cell.seen(*stamp);
                    (cell.seen, cell.acked) = (*stamp, *stamp);
                    cell.stamps.retain(|s| *s <= *stamp);
                }
            }
        }
        Ok(())
    }

    /// The last `filled` chunks hold other values, as a store that was filled
    /// beforehand has them.
    pub fn overlay(&mut self, filled: usize, chunk: u64, offset: u64) {
        let chunks = self.len().div_ceil(chunk);
        let first = (chunks - filled as u64) * chunk;
        for (n, cell) in (0..).zip(&mut self.0) {
            if n >= first {
                *cell = Cell::new(n + offset);
            }
        }
    }

    /// Without what lies behind `sectors`.
    pub fn cut_short(&mut self, sectors: u64) {
        self.0.truncate(sectors as usize);
    }

    /// What a merge view shows that this, a snapshot's content, is handed over to:
    /// behind the snapshot's end what `origin` has.
    pub fn over(&self, origin: &Self) -> Self {
        let rest = origin.0.iter().skip(self.0.len());
        Self(self.0.iter().chain(rest).cloned().collect())
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
