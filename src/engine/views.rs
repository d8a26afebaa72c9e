//! The mode of each view, published as one immutable configuration, and where a read
//! finds its data.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{Discards, MergeWrites, ViewId};
use super::registrations::{COW, READ_ORIGIN};
use super::table::{Exception, ExceptionTable};
use crate::io::DeviceId;
use crate::mutation::{self, Mutation};
use crate::sync::atomic::AtomicBool;
use crate::units::ChunkSize;

/// The part of a snapshot that every thread may read.
#[derive(Debug)]
pub(super) struct SharedSnapshot {
    pub id: ViewId,
    pub device: DeviceId,
    pub chunk_size: ChunkSize,
    /// Length of the snapshot; the origin may be longer.
    pub sectors: u64,
    /// Length of the origin when the snapshot was added, which its table covers and its
    /// copies reach. The origin may have grown since.
    pub covers: u64,
    pub table: ExceptionTable,
    /// Acknowledged writes may have entries that are not durable yet.
    pub defer_commits: bool,
    pub discards: Discards,
    /// A flush of the merging store failed, or the snapshot is invalid: from then on
    /// every flush of the store fails, including those under way.
    pub flush_failed: AtomicBool,
}

/// Sectors of a request that lie together on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// `None`: the origin.
    pub device: Option<DeviceId>,
    /// Sector on that device.
    pub device_sector: u64,
    /// First sector in view addresses.
    pub sector: u64,
    pub sectors: u64,
}

impl Extent {
    /// Sectors of the origin, which are the view's sectors of the same number.
    pub const fn of_origin(sector: u64, sectors: u64) -> Self {
        Self {
            device: None,
            device_sector: sector,
            sector,
            sectors,
        }
    }
}

impl SharedSnapshot {
    /// Splits `start .. end` into runs by where the data is. After the snapshot's end
    /// (in a merge view) that is the origin, even in a chunk that has a copy.
    pub fn resolve(&self, start: u64, end: u64, mut each: impl FnMut(Extent)) {
        let cs = self.chunk_size;
        let chunk = cs.chunk_of(start);
        if start < end && end <= self.sectors && cs.chunk_of(end - 1) == chunk {
            // The usual request of a guest with small blocks.
            return each(self.extent(self.table.get(chunk), start, end));
        }
        self.resolve_many(start, end, each);
    }

    /// Sectors of one chunk.
    fn extent(&self, exception: Exception, start: u64, end: u64) -> Extent {
        let cs = self.chunk_size;
        let inside = start & (cs.sectors() - 1);
        let (device, device_sector) = match exception.cow_chunk() {
            Some(cow) => (Some(self.device), cs.first_sector(cow) | inside),
            None => (None, start),
        };
        Extent {
            device,
            device_sector,
            sector: start,
            sectors: end - start,
        }
    }

    fn resolve_many(&self, start: u64, end: u64, mut each: impl FnMut(Extent)) {
        let cs = self.chunk_size;
        let mut run: Option<Extent> = None;
        let mut at = start;
        while at < end {
            let chunk = cs.chunk_of(at);
            let mut stop = cs.first_sector(chunk.saturating_add(1)).min(end);
            let mut exception = self.table.get(chunk);
            if stop > self.sectors && !mutation::is(Mutation::CopyShownBehindSnapshot) {
                if at < self.sectors {
                    stop = self.sectors;
                } else {
                    exception = Exception::NONE;
                }
            }
            let next = self.extent(exception, at, stop);
            match &mut run {
                Some(r)
                    if r.device == next.device
                        && r.device_sector + r.sectors == next.device_sector =>
                {
                    r.sectors += next.sectors;
                }
                _ => {
                    if let Some(r) = run.replace(next) {
                        each(r);
                    }
                }
            }
            at = stop;
        }
        if let Some(r) = run {
            each(r);
        }
    }

    /// The snapshot's chunks in `start .. end`, without those after its end.
    pub fn chunks(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        let end = if mutation::is(Mutation::CopyOutBehindSnapshot) {
            end
        } else {
            end.min(self.sectors)
        };
        if start >= end {
            return 0..0;
        }
        self.chunk_size.chunk_of(start)..self.chunk_size.chunks_covering(end)
    }
}

/// Snapshots that need the old data of a chunk before the origin is overwritten.
pub(super) type PreserveList = Arc<Vec<Arc<SharedSnapshot>>>;

/// Whether every snapshot's chunks in `start .. end` may be overwritten in the origin.
pub(super) fn is_settled(preserve: &PreserveList, start: u64, end: u64) -> bool {
    preserve
        .iter()
        .all(|s| s.chunks(start, end).all(|c| s.table.get(c).is_settled()))
}

#[derive(Debug)]
pub(super) enum ViewMode {
    /// A control operation is changing this view: requests wait for it.
    Gated,
    /// `write_gate`: only writes wait.
    Origin {
        preserve: PreserveList,
        write_gate: bool,
    },
    Snapshot {
        snapshot: Arc<SharedSnapshot>,
        overflow: bool,
        /// The other snapshots, whose data a discard of the origin through this view
        /// must keep; `None`: discards do not reach the origin now.
        passdown: Option<PreserveList>,
    },
    Merge {
        snapshot: Arc<SharedSnapshot>,
        preserve: PreserveList,
        writes: MergeWrites,
    },
    /// Everything is answered with an I/O error.
    Failed,
}

impl ViewMode {
    /// The snapshot whose store the view uses.
    pub fn store(&self) -> Option<&Arc<SharedSnapshot>> {
        match self {
            Self::Snapshot { snapshot, .. } | Self::Merge { snapshot, .. } => Some(snapshot),
            Self::Gated | Self::Origin { .. } | Self::Failed => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Config {
    pub epoch: u64,
    pub views: BTreeMap<ViewId, Arc<ViewMode>>,
    failed: Arc<ViewMode>,
}

impl Config {
    pub fn new(epoch: u64, views: BTreeMap<ViewId, Arc<ViewMode>>) -> Self {
        Self {
            epoch,
            views,
            failed: Arc::new(ViewMode::Failed),
        }
    }

    pub fn mode(&self, view: ViewId) -> &Arc<ViewMode> {
        self.views.get(&view).unwrap_or(&self.failed)
    }
}

/// Resolves a read; `None` if the view cannot be read now. Returns what it touches.
pub(super) fn resolve_read(
    mode: &ViewMode,
    start: u64,
    end: u64,
    mut each: impl FnMut(Extent),
) -> Option<u64> {
    match mode {
        ViewMode::Gated | ViewMode::Failed => None,
        ViewMode::Origin { .. } => {
            each(Extent::of_origin(start, end - start));
            Some(READ_ORIGIN)
        }
        ViewMode::Snapshot { snapshot, .. } | ViewMode::Merge { snapshot, .. } => {
            let mut touches = 0;
            snapshot.resolve(start, end, |e| {
                touches |= if e.device.is_some() { COW } else { READ_ORIGIN };
                each(e);
            });
            Some(touches)
        }
    }
}
