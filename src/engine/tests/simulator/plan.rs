//! What a run does: devices, stores, and a list of actions that start one after
//! the other while what came before is still under way.

use std::ops::Range;

use crate::engine::{MergeWrites, SnapshotId, ViewId};
use crate::io::Errno;
use crate::io::sim::{Blow, Fault, FaultOn, Rng};
use crate::store::Layout;
use crate::units::ChunkSize;

/// How a store is made.
#[derive(Clone, Debug)]
pub struct Store {
    pub id: u32,
    /// "P", "PO" or "N".
    pub kind: &'static str,
    /// In sectors.
    pub chunk: u64,
    pub cow_sectors: u64,
    /// Sectors at the origin's end that the snapshot never had.
    pub lacks: u64,
    /// Entries in a metadata area: as many as fit, or fewer.
    pub area: usize,
    /// Exceptions that it has already, for the snapshot's last chunks.
    pub filled: usize,
    /// Stale entries stand behind the terminator.
    pub junk: bool,
    pub defer: bool,
}

impl Store {
    pub fn new(id: u32, kind: &'static str, chunk: u64, cow_sectors: u64) -> Self {
        Self {
            id,
            kind,
            chunk,
            cow_sectors,
            lacks: 0,
            area: chunk as usize * 32,
            filled: 0,
            junk: false,
            defer: false,
        }
    }

    pub fn areas_of(mut self, entries: usize) -> Self {
        self.area = entries;
        self
    }

    pub fn filled(mut self, entries: usize) -> Self {
        self.filled = entries;
        self
    }

    /// The origin grew by so many sectors since it was taken.
    pub fn shorter_by(mut self, sectors: u64) -> Self {
        self.lacks = sectors;
        self
    }

    pub fn deferred(mut self) -> Self {
        self.defer = true;
        self
    }

    pub fn snapshot(&self) -> SnapshotId {
        ViewId(self.id)
    }
}

/// A store's layout with `area` entries in an area.
pub fn layout(chunk_size: ChunkSize, area: usize) -> Layout {
    Layout::with_short_areas(chunk_size, area)
}

/// A fault on the origin (`None`) or a snapshot's store.
#[derive(Clone, Copy, Debug)]
pub struct PlannedFault {
    pub store: Option<u32>,
    pub on: FaultOn,
    pub blow: Blow,
    pub after: u64,
    pub once: bool,
}

impl PlannedFault {
    pub fn fault(&self, device: crate::io::DeviceId) -> Fault {
        let fault = Fault::of(self.on, self.blow)
            .device(device)
            .after(self.after);
        if self.once { fault.once() } else { fault }
    }
}

#[derive(Clone, Debug)]
pub enum Action {
    Write {
        view: u32,
        sectors: Range<u64>,
    },
    /// Acknowledged only when it would survive power loss.
    WriteThrough {
        view: u32,
        sectors: Range<u64>,
    },
    Read {
        view: u32,
        sectors: Range<u64>,
    },
    Flush {
        view: u32,
    },
    Add(Store),
    Remove {
        id: u32,
    },
    Handover {
        id: u32,
        writes: MergeWrites,
        follow: bool,
    },
    Pause,
    Resume,
    MergeWrites(MergeWrites),
    Sync,
    Grow {
        id: u32,
    },
    /// Waits until nothing moves any more.
    Rest,
    /// Everything is read and compared, with nothing under way.
    ReadAll,
    PowerLoss,
    ProcessDeath,
    Fault(PlannedFault),
    Mend,
}

/// A run, apart from its schedule.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub origin_sectors: u64,
    /// Bytes that the devices write atomically.
    pub block: usize,
    pub stores: Vec<Store>,
    pub actions: Vec<Action>,
    /// Bytes in a merge batch.
    pub batch: u64,
    /// One in so many events starts the next action.
    pub hurry: usize,
}

impl Case {
    pub fn new(name: &'static str, origin_sectors: u64) -> Self {
        Self {
            name,
            origin_sectors,
            block: 512,
            stores: Vec::new(),
            actions: Vec::new(),
            batch: 16 << 10,
            hurry: 3,
        }
    }

    pub fn store(mut self, store: Store) -> Self {
        self.stores.push(store);
        self
    }

    /// All stores have areas of `entries` entries.
    pub fn areas_of(mut self, entries: usize) -> Self {
        for store in &mut self.stores {
            store.area = entries;
        }
        for action in &mut self.actions {
            if let Action::Add(store) = action {
                store.area = entries;
            }
        }
        self
    }

    pub fn batch(mut self, bytes: u64) -> Self {
        self.batch = bytes;
        self
    }

    pub fn write(self, view: u32, sectors: Range<u64>) -> Self {
        self.then(Action::Write { view, sectors })
    }

    pub fn write_through(self, view: u32, sectors: Range<u64>) -> Self {
        self.then(Action::WriteThrough { view, sectors })
    }

    pub fn read(self, view: u32, sectors: Range<u64>) -> Self {
        self.then(Action::Read { view, sectors })
    }

    pub fn flush(self, view: u32) -> Self {
        self.then(Action::Flush { view })
    }

    pub fn handover(self, id: u32, writes: MergeWrites, follow: bool) -> Self {
        self.then(Action::Handover { id, writes, follow })
    }

    pub fn rest(self) -> Self {
        self.then(Action::Rest)
    }

    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }
}

/// What random worlds may contain.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub crashes: bool,
    pub faults: bool,
}

/// A random world; the seed gives everything.
pub fn random(seed: u64, weather: Weather) -> Case {
    let mut rng = Rng::new(seed ^ 0x0dd_ba11);
    let mut lengths = Rng::new(seed ^ 0x5_4021);
    let block = if rng.one_in(5) { 4096 } else { 512 };
    let grain = block as u64 / 512;
    let origin = grain * (8 + rng.below(if block == 512 { 50 } else { 12 }) as u64);
    let mut case = Case::new("random", origin);
    case.block = block;
    case.batch = 512 << rng.below(7);
    case.hurry = 1 + rng.below(8);
    let mut next = 1;
    let deferred = rng.one_in(3);
    let short = rng.one_in(2);
    let mut store = |rng: &mut Rng| {
        let chunk = grain << rng.below(3);
        let kind = ["P", "P", "P", "PO", "N"][rng.below(5)];
        let small = rng.one_in(5);
        let area = if short {
            2 + rng.below(3)
        } else {
            chunk as usize * 32
        };
        let cow = if small {
            chunk * (3 + rng.below(5) as u64)
        } else {
            origin + origin / area.min(8) as u64 + 14 * chunk
        };
        let mut store = Store::new(next, kind, chunk, cow).areas_of(area);
        next += 1;
        store.defer = deferred;
        if lengths.one_in(3) {
            store.lacks = grain * lengths.below((origin / grain).min(20) as usize) as u64;
        }
        if kind != "N" && !small && rng.one_in(2) {
            let most = (origin - store.lacks).div_ceil(chunk) as usize;
            store.filled = rng.below(most + 1);
            if !short {
                store.filled = store.filled.min(area - rng.below(3));
            }
            if most > area && rng.one_in(2) {
                store.filled = area - 1 - rng.below(area.min(3));
            }
        }
        store.junk = store.filled > 0 && rng.one_in(6);
        store
    };
    for _ in 0..rng.below(3) {
        let made = store(&mut rng);
        case.stores.push(made);
    }
    for _ in 0..10 + rng.below(40) {
        let view = rng.below(4) as u32;
        let id = 1 + rng.below(4) as u32;
        let start = grain * rng.below((origin / grain) as usize) as u64;
        let most = if rng.one_in(4) { 20 } else { 4 };
        let len = grain * (1 + rng.below(most) as u64);
        let sectors = start..(start + len).min(origin);
        let writes = [MergeWrites::Wait, MergeWrites::Redirect][rng.below(2)];
        let action = match rng.below(40) {
            0..=14 => Action::Write { view, sectors },
            15..=17 => Action::WriteThrough { view, sectors },
            18..=23 => Action::Read { view, sectors },
            24..=26 => Action::Flush { view },
            27 | 28 => {
                let mut made = store(&mut rng);
                made.filled = 0;
                made.junk = false;
                Action::Add(made)
            }
            29 => Action::Remove { id },
            30 | 31 => {
                let follow = rng.one_in(2);
                Action::Handover { id, writes, follow }
            }
            32 => [Action::Pause, Action::Resume, Action::Resume][rng.below(3)].clone(),
            33 => Action::MergeWrites(writes),
            34 => Action::Sync,
            35 => Action::Grow { id },
            36 => [Action::Rest, Action::ReadAll][rng.below(2)].clone(),
            37 if weather.crashes => Action::PowerLoss,
            38 if weather.crashes => Action::ProcessDeath,
            39 if weather.faults && rng.one_in(2) => Action::Fault(PlannedFault {
                store: [None, Some(id), Some(id)][rng.below(3)],
                on: [FaultOn::Any, FaultOn::Read, FaultOn::Write, FaultOn::Flush][rng.below(4)],
                blow: [
                    Blow::Error(Errno::EIO),
                    Blow::Error(Errno::ENOSPC),
                    Blow::Short,
                ][rng.below(3)],
                after: rng.below(8) as u64,
                once: rng.one_in(2),
            }),
            39 if weather.faults => Action::Mend,
            _ => Action::Read { view, sectors },
        };
        case.actions.push(action);
    }
    case
}
