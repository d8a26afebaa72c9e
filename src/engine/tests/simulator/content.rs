//! What a view may show: for each sector every value that a read, the death of
//! the process or power loss may leave.
//!
//! Values are stamps, assigned in ascending order; two writes to one sector of
//! a view are never under way at once, so a larger stamp is a later write.

use smallvec::SmallVec;

pub type Stamps = SmallVec<[u64; 4]>;

/// From this stamp on the lowest bit says whether the write was one of zeroes.
pub const FIRST_STAMP: u64 = 1000;

/// What the disk holds for a stamp.
fn value(stamp: u64) -> u64 {
    if stamp >= FIRST_STAMP && !stamp.is_multiple_of(2) {
        0
    } else {
        stamp
    }
}

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
    /// Exactly one of the stamps up to this one is present; no read has shown which.
    cut: u64,
    /// Writes that may have come before or after a handover: possible until a stamp of
    /// at least `unordered_until` replaces them.
    unordered: Stamps,
    unordered_until: u64,
    /// Zeroes of discards that each read may show or not: a discard that is passed down
    /// may miss a copy-out that is under way.
    hints: Stamps,
    /// A write failed: no flush guarantees what it left.
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
            unordered: Stamps::new(),
            unordered_until: 0,
            hints: Stamps::new(),
            doubtful: false,
        }
    }

    fn from(&self, floor: u64) -> impl Iterator<Item = u64> {
        let unordered: &[u64] = if floor < self.unordered_until {
            &self.unordered
        } else {
            &[]
        };
        let known = self.stamps.iter().chain(&self.hints);
        let settled = known.copied().filter(move |s| *s >= floor);
        settled.chain(unordered.iter().copied())
    }

    /// The stamp that explains `seen` and restricts the model least: of several zeroes
    /// the newest, which implies nothing about what a flush or a cut has kept.
    fn explain(&self, floor: u64, seen: u64) -> Option<u64> {
        let fits = |s: &u64| value(*s) == seen;
        let hint = self.hints.iter().copied().find(|s| *s >= floor && fits(s));
        hint.or_else(|| self.from(floor).filter(fits).max())
    }

    fn floor(&self, end: End) -> u64 {
        match end {
            End::Process => self.seen,
            End::Power => self.durable,
        }
    }

    /// A read has shown `stamp`, and no later read may show an older one.
    fn seen(&mut self, stamp: u64) {
        if self.hints.contains(&stamp) {
            return;
        }
        if stamp <= self.cut && !self.unordered.contains(&stamp) && !self.doubtful {
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

    /// A discard through a view whose reads may miss it again.
    pub fn hint(&mut self, sector: u64, sectors: u64, stamp: u64) {
        for cell in self.range(sector, sectors) {
            cell.hints.push(stamp);
        }
    }

    /// A write that may have come before or after a handover, which ended when `until`
    /// was the next stamp.
    pub fn unordered_write(&mut self, sector: u64, sectors: u64, stamp: u64, until: u64) {
        for cell in self.range(sector, sectors) {
            cell.unordered.push(stamp);
            cell.unordered_until = until;
        }
    }

    /// The write is acknowledged; `durable`: with the guarantee of a flush.
    pub fn end_write(&mut self, sector: u64, sectors: u64, stamp: u64, durable: bool) {
        for cell in self.range(sector, sectors) {
            cell.acked = cell.acked.max(stamp);
            cell.seen = cell.seen.max(stamp);
            if durable {
                cell.durable = cell.durable.max(stamp);
            }
        }
    }

    /// The write failed: any part of it may be present, and may still appear or vanish.
    pub fn fail_write(&mut self, sector: u64, sectors: u64) {
        for cell in self.range(sector, sectors) {
            cell.doubtful = true;
        }
    }

    /// The oldest stamps that a read submitted now may show.
    pub fn floors(&self, sector: u64, sectors: u64) -> Vec<u64> {
        let cells = &self.0[sector as usize..(sector + sectors) as usize];
        cells.iter().map(|c| c.seen).collect()
    }

    /// The newest stamps that a flush submitted now covers.
    pub fn covered(&self) -> Vec<u64> {
        self.0.iter().map(|c| c.acked).collect()
    }

    pub fn flushed(&mut self, floors: &[u64]) {
        for (cell, floor) in self.0.iter_mut().zip(floors) {
            cell.durable = cell.durable.max(*floor);
        }
    }

    /// Checks a read, and restricts the model by what it showed.
    pub fn read(&mut self, sector: u64, floors: &[u64], seen: &[u64]) -> Result<(), String> {
        let first = sector;
        for (n, (floor, stamp)) in floors.iter().zip(seen).enumerate() {
            let cell = &mut self.0[sector as usize + n];
            let Some(explained) = cell.explain(*floor, *stamp) else {
                let allowed: Stamps = cell.from(*floor).collect();
                let sector = first + n as u64;
                return Err(format!(
                    "sector {sector} shows {stamp}, allowed {allowed:?}"
                ));
            };
            cell.seen(explained);
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
                unordered: Stamps::new(),
                unordered_until: 0,
                hints: Stamps::new(),
                doubtful,
            }
        };
        Self(cells.map(cell).collect())
    }

    /// What each sector may hold after the end of the process or the power.
    pub fn after(&self, end: End) -> Vec<Stamps> {
        let cells = self.0.iter();
        cells
            .map(|c| c.from(c.floor(end)).map(value).collect())
            .collect()
    }

    /// After a new start the view shows `seen`; nothing that was under way arrives later.
    pub fn restarted(&mut self, end: End, seen: &[u64]) -> Result<(), String> {
        for (n, (cell, stamp)) in self.0.iter_mut().zip(seen).enumerate() {
            let floor = cell.floor(end);
            let Some(stamp) = &cell.explain(floor, *stamp) else {
                let allowed: Stamps = cell.from(floor).collect();
                return Err(format!("sector {n} shows {stamp}, allowed {allowed:?}"));
            };
            match end {
                End::Power => *cell = Cell::new(*stamp),
                _ if cell.unordered.contains(stamp) || cell.hints.contains(stamp) => {
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

    /// Drops what lies beyond `sectors`.
    pub fn cut_short(&mut self, sectors: u64) {
        self.0.truncate(sectors as usize);
    }

    /// What the merge view shows after the handover of this snapshot: beyond the
    /// snapshot's end the content of `origin`.
    pub fn over(&self, origin: &Self) -> Self {
        let rest = origin.0.iter().skip(self.0.len());
        Self(self.0.iter().chain(rest).cloned().collect())
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
