//! The content of a snapshot: its own copies over the origin.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Known, OfflineError};
use crate::io::{BlockFile, DeviceId, Devices, OpenOptions, ThreadDisk};
use crate::store::{self, Entry, Layout, LoadParams, Loaded};
use crate::units::SECTOR_SIZE;

/// Operations under way at once.
const DEPTH: u32 = 8;

/// A part of a view that is in one piece in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes.
    pub start: u64,
    pub len: u64,
    /// Where it is in the COW, in bytes; `None` if the origin has it, at `start`.
    pub copy: Option<u64>,
}

/// A snapshot and its origin, open for reading; no process may write either.
pub(super) struct SnapshotView {
    pub origin: DeviceId,
    pub cow: DeviceId,
    origin_path: PathBuf,
    cow_path: PathBuf,
    devices: Arc<Devices>,
    map: Map,
}

/// Which parts are where.
struct Map {
    layout: Layout,
    /// Ascending by the origin's chunk.
    entries: Vec<Entry>,
    /// Bytes of the view; the origin may be longer.
    size: u64,
}

impl SnapshotView {
    /// With the disk to read them through. `known`: what is recorded of it, such
    /// as that it is shorter than the origin is now.
    pub fn open(
        origin_path: &Path,
        cow_path: &Path,
        known: Option<&Known>,
    ) -> Result<(ThreadDisk, Self), OfflineError> {
        let origin_file = BlockFile::open(origin_path, OpenOptions::read_only())?;
        let cow_file = BlockFile::open(cow_path, OpenOptions::read_only())?;
        check_two(&origin_file, &cow_file)?;
        let params = params(&cow_file, Some(&origin_file));
        if let Some(why) = known.and_then(Known::forbids) {
            let cow = cow_path.to_owned();
            return Err(OfflineError::Forbidden { cow, why });
        }
        let size = known.map_or(origin_file.size(), |known| known.length);
        if size > origin_file.size() {
            return Err(OfflineError::OriginShort {
                origin: origin_path.to_owned(),
                size: origin_file.size(),
                length: size,
            });
        }
        let devices = Devices::new();
        let (origin, cow) = (devices.add(origin_file), devices.add(cow_file));
        let mut disk = ThreadDisk::new(Arc::clone(&devices), DEPTH)
            .map_err(|source| OfflineError::thread(cow_path, source))?;
        let loaded = store::load(&mut disk, cow, &params).map_err(OfflineError::store(cow_path))?;
        let store = match loaded {
            Loaded::Valid(store) => store,
            Loaded::Invalid { .. } => return Err(OfflineError::Invalid(cow_path.to_owned())),
            Loaded::New => return Err(OfflineError::New(cow_path.to_owned())),
        };
        let map = Map::new(
            store.metadata().layout(),
            store.metadata().entries().to_vec(),
            size,
        );
        let view = Self {
            origin,
            cow,
            origin_path: origin_path.to_owned(),
            cow_path: cow_path.to_owned(),
            devices,
            map,
        };
        Ok((disk, view))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.map.size
    }

    pub fn layout(&self) -> Layout {
        self.map.layout
    }

    /// What offsets and lengths must be multiples of, in bytes.
    pub fn block_size(&self) -> u64 {
        [self.origin, self.cow]
            .iter()
            .filter_map(|device| self.devices.get(*device))
            .map(|file| u64::from(file.block_size()))
            .fold(SECTOR_SIZE, u64::max)
    }

    /// The bytes `range` of the view, ascending and without gaps.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + use<'_> {
        self.map.extents(range)
    }

    /// See [`BlockFile::next_data`]. A hole is believed only where it is known to read as zeroes.
    pub fn next_data(&self, device: DeviceId, from: u64) -> Option<Range<u64>> {
        let file = self.devices.get(device)?;
        if file.zeroes_reliably() {
            return file.next_data(from);
        }
        (from < file.size()).then(|| from..file.size())
    }

    pub fn path(&self, device: DeviceId) -> &Path {
        if device == self.origin {
            &self.origin_path
        } else {
            &self.cow_path
        }
    }
}

/// Refuses one file in both places.
pub(super) fn check_two(origin: &BlockFile, cow: &BlockFile) -> Result<(), OfflineError> {
    if origin.identity() == cow.identity() {
        return Err(OfflineError::SameFile {
            origin: origin.path().to_owned(),
            cow: cow.path().to_owned(),
        });
    }
    Ok(())
}

/// How to load the store in `cow`.
pub(super) fn params(cow: &BlockFile, origin: Option<&BlockFile>) -> LoadParams {
    let block = |file: &BlockFile| u64::from(file.block_size());
    LoadParams {
        cow_sectors: cow.sectors(),
        origin_sectors: origin.map(BlockFile::sectors),
        unit: usize::try_from(cow.block_size()).unwrap_or(4096).max(512),
        block_bytes: block(cow).max(origin.map_or(SECTOR_SIZE, block)),
    }
}

impl Map {
    fn new(layout: Layout, mut entries: Vec<Entry>, size: u64) -> Self {
        entries.sort_unstable_by_key(|entry| entry.old);
        Self {
            layout,
            entries,
            size,
        }
    }

    fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + use<'_> {
        let bytes = self.layout.chunk_size.bytes();
        let end = range.end.min(self.size);
        let first = self
            .entries
            .partition_point(|e| e.old.saturating_mul(bytes).saturating_add(bytes) <= range.start);
        let mut rest = self.entries.get(first..).unwrap_or_default();
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at;
            let copied = rest
                .split_first()
                .filter(|(entry, _)| entry.old.saturating_mul(bytes) <= start);
            let Some((entry, others)) = copied else {
                let next = rest.first().map_or(end, |e| e.old.saturating_mul(bytes));
                at = next.min(end);
                return Some(Extent {
                    start,
                    len: at - start,
                    copy: None,
                });
            };
            // Neighbours in the view that are neighbours in the COW are one extent.
            let more = others
                .iter()
                .zip(1..)
                .take_while(|(e, n)| e.old == entry.old + n && e.new == entry.new + n)
                .count();
            rest = others.get(more..).unwrap_or_default();
            let chunks = more as u64 + 1;
            let old = entry.old.saturating_mul(bytes);
            at = old.saturating_add(chunks.saturating_mul(bytes)).min(end);
            Some(Extent {
                start,
                len: at - start,
                copy: Some(self.layout.chunk_offset(entry.new) + (start - old)),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ChunkSize;

    fn map(entries: &[(u64, u64)], size: u64) -> Map {
        let entries = entries.iter().map(|&(old, new)| Entry { old, new });
        Map::new(
            Layout::new(ChunkSize::new(2).unwrap()),
            entries.collect(),
            size,
        )
    }

    fn extents(map: &Map, range: Range<u64>) -> Vec<(u64, u64, Option<u64>)> {
        map.extents(range)
            .map(|e| (e.start, e.len, e.copy))
            .collect()
    }

    #[test]
    fn extents_cover_the_view_and_join_neighbours() {
        let map = map(&[(5, 9), (2, 3), (4, 8), (0, 2), (6, 20)], 6 * 1024 + 512);
        assert_eq!(
            extents(&map, 0..u64::MAX),
            [
                (0, 1024, Some(2048)),
                (1024, 1024, None),
                (2048, 1024, Some(3072)),
                (3072, 1024, None),
                (4096, 2048, Some(8192)),
                (6144, 512, Some(20480)),
            ]
        );
    }

    #[test]
    fn a_range_may_begin_and_end_inside_a_chunk() {
        let map = map(&[(4, 8), (5, 9)], 16 << 10);
        assert_eq!(extents(&map, 4608..5632), [(4608, 1024, Some(8704))]);
        assert_eq!(
            extents(&map, 3584..4608),
            [(3584, 512, None), (4096, 512, Some(8192))]
        );
        assert_eq!(
            extents(&map, 5632..6656),
            [(5632, 512, Some(9728)), (6144, 512, None)]
        );
        assert_eq!(extents(&map, 16384..20000), []);
    }
}
