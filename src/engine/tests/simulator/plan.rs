//! What a run does: devices, stores, and a list of actions. Actions start in order,
//! while earlier ones are still under way.

use std::ops::Range;

use crate::engine::{Discards, MergeWrites, SnapshotId, ViewId};
use crate::io::sim::{Fault, FaultEffect, FaultOn};
use crate::store::Layout;
use crate::units::ChunkSize;

/// Parameters of a store.
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
    /// Exceptions that it has from the start, for the snapshot's last chunks.
    pub filled: usize,
    /// The entries ascend on both sides; otherwise they descend on the origin.
    pub in_order: bool,
    /// There are stale entries after the terminator.
    pub junk: bool,
    pub defer: bool,
    pub discards: Discards,
    /// Chunks that are zeroed at once ahead of the data.
    pub zero_ahead: u64,
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
            in_order: false,
            junk: false,
            defer: false,
            discards: Discards::default(),
            zero_ahead: 0,
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

    /// The same, in the order of the origin: all entries are one run, so that a merge has
    /// few operations.
    pub fn filled_in_order(mut self, entries: usize) -> Self {
        self.in_order = true;
        self.filled(entries)
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

    pub fn zeroed_ahead(mut self, chunks: u64) -> Self {
        self.zero_ahead = chunks;
        self
    }

    /// Its guest's discards zero the store and, with `passdown`, the origin.
    pub fn discards(mut self, passdown: bool) -> Self {
        self.discards = Discards {
            zeroes_cow: true,
            passdown_origin: passdown,
        };
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
    pub effect: FaultEffect,
    pub after: u64,
    pub once: bool,
}

impl PlannedFault {
    pub fn fault(&self, device: crate::io::DeviceId) -> Fault {
        let fault = Fault::of(self.on, self.effect)
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
    /// A write of zeroes.
    Zero {
        view: u32,
        sectors: Range<u64>,
    },
    Discard {
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
    /// Waits until no actor has anything to do.
    Rest,
    /// Reads and compares all views, with nothing under way.
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
    /// The next action starts at one in so many events.
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

    pub fn zero(self, view: u32, sectors: Range<u64>) -> Self {
        self.then(Action::Zero { view, sectors })
    }

    pub fn discard(self, view: u32, sectors: Range<u64>) -> Self {
        self.then(Action::Discard { view, sectors })
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
