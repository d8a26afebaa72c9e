//! What each view may show, in whatever order the requests under way take effect.
//!
//! A sector is a register whose writes have numbers. A read may return the value from
//! before it began, or that of a write that it overlaps. A value that was read while no
//! write was under way stays. A handover is a write of the whole snapshot to the
//! origin; a cut is a read of the whole origin into the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::ViewId;

pub type Stamp = u64;
type Values = BTreeSet<Stamp>;

/// A write under way.
#[derive(Clone)]
struct Write {
    values: Values,
    /// The values of the writes that it overlaps, which may come after it.
    met: Values,
}

/// A read under way: what it may return, and whether it overlaps no write.
#[derive(Clone)]
struct Read {
    may: Values,
    alone: bool,
}

#[derive(Clone, Default)]
struct Sector {
    allowed: Values,
    writes: BTreeMap<u64, Write>,
    reads: BTreeMap<u64, Read>,
}

impl Sector {
    fn new(allowed: Values) -> Self {
        Self {
            allowed,
            ..Self::default()
        }
    }

    fn begin_write(&mut self, id: u64, values: Values) {
        let mut met = Values::new();
        for write in self.writes.values_mut() {
            write.met.extend(&values);
            met.extend(&write.values);
        }
        for read in self.reads.values_mut() {
            read.may.extend(&values);
            read.alone = false;
        }
        self.allowed.extend(&values);
        self.writes.insert(id, Write { values, met });
    }

    fn end_write(&mut self, id: u64) {
        let write = self.writes.remove(&id).unwrap();
        self.allowed = &write.values | &write.met;
    }

    fn begin_read(&mut self, id: u64) {
        let read = Read {
            may: self.allowed.clone(),
            alone: self.writes.is_empty(),
        };
        self.reads.insert(id, read);
    }

    fn end_read(&mut self, id: u64) -> Read {
        self.reads.remove(&id).unwrap()
    }
}

/// A guest's write to the origin, for the check of a cut.
struct Told {
    sector: usize,
    stamp: Stamp,
    begun: u64,
    ended: Option<u64>,
}

#[derive(Default)]
struct State {
    views: BTreeMap<ViewId, Vec<Sector>>,
    next: u64,
    told: Vec<Told>,
}

/// Shared by all threads of a run. Its lock is not a scheduling point.
#[derive(Clone, Default)]
pub struct Oracle(Arc<Mutex<State>>);

impl Oracle {
    /// An origin whose sector n holds n.
    pub fn new(sectors: usize) -> Self {
        let oracle = Self::default();
        let origin = (0..sectors as u64).map(|n| Sector::new([n].into()));
        oracle
            .state()
            .views
            .insert(ViewId::ORIGIN, origin.collect());
        oracle
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A number for the next operation and the value that it writes, distinct from the
    /// origin's first content.
    pub fn next(&self) -> u64 {
        let mut state = self.state();
        state.next += 1;
        1000 + state.next
    }

    pub fn begin_write(&self, view: ViewId, id: u64, sectors: std::ops::Range<usize>) {
        let mut state = self.state();
        for sector in sectors {
            state.next += 1;
            let begun = state.next;
            state.views.get_mut(&view).unwrap()[sector].begin_write(id, [id].into());
            if view == ViewId::ORIGIN {
                state.told.push(Told {
                    sector,
                    stamp: id,
                    begun,
                    ended: None,
                });
            }
        }
    }

    pub fn end_write(&self, view: ViewId, id: u64, sectors: std::ops::Range<usize>) {
        let mut state = self.state();
        state.next += 1;
        let now = state.next;
        for sector in sectors {
            state.views.get_mut(&view).unwrap()[sector].end_write(id);
        }
        for told in state.told.iter_mut().filter(|t| t.stamp == id) {
            told.ended = Some(now);
        }
    }

    pub fn begin_read(&self, view: ViewId, id: u64, sectors: std::ops::Range<usize>) {
        let mut state = self.state();
        let view = state.views.get_mut(&view).unwrap();
        view[sectors].iter_mut().for_each(|s| s.begin_read(id));
    }

    pub fn end_read(&self, view: ViewId, id: u64, first: usize, shown: &[Stamp]) {
        let mut state = self.state();
        for (sector, value) in (first..).zip(shown) {
            let s = &mut state.views.get_mut(&view).unwrap()[sector];
            let Read { may, alone } = s.end_read(id);
            assert!(
                may.contains(value),
                "sector {sector} of {view:?} shows {value}, but may show {may:?}"
            );
            if alone {
                s.allowed = [*value].into();
            }
        }
    }

    /// A cut begins; ends with [`Self::cut`].
    pub fn begin_cut(&self, id: u64) {
        let mut state = self.state();
        let origin = state.views.get_mut(&ViewId::ORIGIN).unwrap();
        origin.iter_mut().for_each(|s| s.begin_read(id));
    }

    pub fn cut(&self, id: u64, snapshot: ViewId) {
        let mut state = self.state();
        let origin = state.views.get_mut(&ViewId::ORIGIN).unwrap();
        let sectors = origin.iter_mut().map(|s| Sector::new(s.end_read(id).may));
        let sectors = sectors.collect();
        state.views.insert(snapshot, sectors);
    }

    pub fn begin_handover(&self, id: u64, snapshot: ViewId) {
        let mut state = self.state();
        let brought = state.views.remove(&snapshot).unwrap();
        let origin = state.views.get_mut(&ViewId::ORIGIN).unwrap();
        for (sector, from) in origin.iter_mut().zip(brought) {
            sector.begin_write(id, from.allowed);
        }
    }

    pub fn end_handover(&self, id: u64) {
        let mut state = self.state();
        let origin = state.views.get_mut(&ViewId::ORIGIN).unwrap();
        origin.iter_mut().for_each(|s| s.end_write(id));
    }

    /// A snapshot shows the origin at one moment: if it contains a write, it contains
    /// every write that had ended before that one began. Each sector has one writer.
    pub fn assert_one_moment(&self, shown: &[Stamp]) {
        let state = self.state();
        let place = |sector: usize, stamp| {
            let of = state.told.iter().filter(|t| t.sector == sector);
            of.clone().position(|t| t.stamp == stamp)
        };
        let is_in = |t: &Told| match place(t.sector, shown[t.sector]) {
            Some(last) => place(t.sector, t.stamp).unwrap() <= last,
            None => false,
        };
        let (inside, outside): (Vec<_>, Vec<_>) = state.told.iter().partition(|t| is_in(t));
        for (i, o) in inside
            .iter()
            .flat_map(|i| outside.iter().map(move |o| (i, o)))
        {
            assert!(
                o.ended.is_none_or(|ended| ended > i.begun),
                "the snapshot has write {} and not {}, which ended before",
                i.stamp,
                o.stamp
            );
        }
    }
}
