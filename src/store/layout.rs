//! The places of header, metadata and data in a store: arithmetic only.
//!
//! Chunk 0 is the header. Metadata area N is chunk `1 + N * (e + 1)`, where `e`
//! is the number of entries in an area; the `e` chunks after it hold data.
//! Results saturate: a chunk number that overflows is larger than any device.

use std::ops::Range;

use crate::units::ChunkSize;

/// Bytes of one entry: old chunk and new chunk, little-endian `u64` each.
pub const ENTRY_BYTES: usize = 16;

/// The first chunk that can hold data in a persistent store.
pub const FIRST_DATA_CHUNK: u64 = 2;

/// Placement of header, metadata areas and data for one chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub chunk_size: ChunkSize,
    /// Entries in an area, if a test uses fewer than fit: the rest of the metadata chunk
    /// is unused and zero then. No real store has such areas.
    #[cfg(test)]
    short_area: Option<usize>,
}

impl Layout {
    pub const fn new(chunk_size: ChunkSize) -> Self {
        Self {
            chunk_size,
            #[cfg(test)]
            short_area: None,
        }
    }

    /// Areas that end after `entries` entries, at least 1, so that a test reaches the
    /// borders between areas.
    #[cfg(test)]
    pub fn with_short_areas(chunk_size: ChunkSize, entries: usize) -> Self {
        let whole = Self::new(chunk_size);
        assert!(
            (1..=whole.area_len()).contains(&entries),
            "areas of {entries} entries"
        );
        Self {
            short_area: Some(entries),
            ..whole
        }
    }

    /// Entries in one metadata area: 32 for each sector of the chunk, so 32 ..= 2^26.
    pub const fn exceptions_per_area(self) -> u64 {
        #[cfg(test)]
        if let Some(entries) = self.short_area {
            return entries as u64;
        }
        self.chunk_size.bytes() / ENTRY_BYTES as u64
    }

    /// [`Self::exceptions_per_area`] as an index.
    pub const fn area_len(self) -> usize {
        #[cfg(test)]
        if let Some(entries) = self.short_area {
            return entries;
        }
        ENTRIES_PER_SECTOR << self.chunk_size.shift()
    }

    /// Chunks from one metadata area to the next.
    pub const fn stride(self) -> u64 {
        self.exceptions_per_area() + 1
    }

    /// The chunk of metadata area `area`.
    pub const fn area_chunk(self, area: u64) -> u64 {
        area.saturating_mul(self.stride()).saturating_add(1)
    }

    /// The byte offset of `chunk` on the COW device.
    pub const fn chunk_offset(self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.chunk_size.bytes())
    }

    /// True for a chunk that holds a metadata area.
    pub const fn is_metadata(self, chunk: u64) -> bool {
        chunk % self.stride() == 1
    }

    /// True for a chunk that may hold data of a persistent store.
    pub const fn is_data(self, chunk: u64) -> bool {
        chunk >= FIRST_DATA_CHUNK && !self.is_metadata(chunk)
    }

    /// The first data chunk at or after `chunk`.
    pub const fn data_chunk_from(self, chunk: u64) -> u64 {
        if chunk < FIRST_DATA_CHUNK {
            FIRST_DATA_CHUNK
        } else if self.is_metadata(chunk) {
            chunk.saturating_add(1)
        } else {
            chunk
        }
    }

    /// The area that holds log slot `slot`.
    pub const fn area_of(self, slot: usize) -> u64 {
        (slot / self.area_len()) as u64
    }

    /// The byte offset of log slot `slot` on the COW device.
    pub const fn slot_offset(self, slot: usize) -> u64 {
        let in_area = (slot % self.area_len()) * ENTRY_BYTES;
        self.chunk_offset(self.area_chunk(self.area_of(slot)))
            .saturating_add(in_area as u64)
    }

    /// The units of `unit_len` entries that an area's entries take up.
    const fn units_per_area(self, unit_len: usize) -> usize {
        self.area_len().div_ceil(unit_len)
    }

    /// The number of the unit that holds log slot `slot`, counted over all areas.
    pub const fn unit_of(self, slot: usize, unit_len: usize) -> usize {
        slot / self.area_len() * self.units_per_area(unit_len) + slot % self.area_len() / unit_len
    }

    /// The log slots in unit `unit`, counted over all areas.
    pub fn unit_slots(self, unit: usize, unit_len: usize) -> Range<usize> {
        let units = self.units_per_area(unit_len);
        let area_start = unit / units * self.area_len();
        let first = area_start + unit % units * unit_len;
        first..(first + unit_len).min(area_start + self.area_len())
    }

    /// The slot that the entry for data chunk `chunk` has in a store whose
    /// entries were committed in allocation order; `None` for other chunks.
    pub fn home_slot(self, chunk: u64) -> Option<usize> {
        if !self.is_data(chunk) {
            return None;
        }
        let before = chunk - 1;
        let slot = (before / self.stride())
            .checked_mul(self.exceptions_per_area())?
            .checked_add(before % self.stride())?
            .checked_sub(1)?;
        usize::try_from(slot).ok()
    }

    /// How many exceptions a COW device of `cow_sectors` can ever hold: each
    /// full area needs its successor on the device.
    pub const fn capacity(self, cow_sectors: u64) -> u64 {
        let Some(rest) = self.chunk_size.whole_chunks(cow_sectors).checked_sub(2) else {
            return 0;
        };
        let full = rest / self.stride();
        let last = rest % self.stride();
        let most = self.exceptions_per_area() - 1;
        full * self.exceptions_per_area() + if last < most { last } else { most }
    }

    /// Metadata areas that lie wholly on a COW device of `cow_sectors`.
    pub const fn areas(self, cow_sectors: u64) -> u64 {
        match self.chunk_size.whole_chunks(cow_sectors).checked_sub(1) {
            Some(rest) => rest.div_ceil(self.stride()),
            None => 0,
        }
    }

    /// The COW size in sectors that can never overflow for an origin of
    /// `origin_sectors`: every chunk, every area, and the empty area at the end.
    pub const fn full_coverage_sectors(self, origin_sectors: u64) -> u64 {
        let chunks = self.chunk_size.chunks_covering(origin_sectors);
        let areas = chunks / self.exceptions_per_area() + 1;
        self.chunk_size
            .first_sector(chunks.saturating_add(areas).saturating_add(1))
    }
}

const ENTRIES_PER_SECTOR: usize = 512 / ENTRY_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(sectors: u64) -> Layout {
        Layout::new(ChunkSize::new(sectors).unwrap())
    }

    #[test]
    fn areas_are_where_linux_puts_them() {
        assert_eq!([0, 1].map(|n| layout(8).area_chunk(n)), [1, 258]);
        assert_eq!(
            [0, 1, 2, 3].map(|n| layout(1).area_chunk(n)),
            [1, 34, 67, 100]
        );
        for (sectors, entries) in [(1, 32), (8, 256), (32, 1024), (128, 4096), (1024, 32768)] {
            assert_eq!(layout(sectors).exceptions_per_area(), entries);
            assert_eq!(layout(sectors).area_len() as u64, entries);
        }
    }

    #[test]
    fn every_chunk_is_header_metadata_or_data() {
        let layout = layout(1);
        let metadata: Vec<u64> = (0..120).filter(|&c| layout.is_metadata(c)).collect();
        assert_eq!(metadata, [1, 34, 67, 100]);
        assert!(!layout.is_data(0) && !layout.is_data(34) && layout.is_data(2));
        assert_eq!(
            [0, 1, 2, 34, 35].map(|c| layout.data_chunk_from(c)),
            [2, 2, 2, 35, 35]
        );
    }

    #[test]
    fn home_slots_number_the_data_chunks_in_order() {
        let layout = layout(1);
        let data: Vec<u64> = (0..1000).filter(|&c| layout.is_data(c)).collect();
        for (slot, &chunk) in data.iter().enumerate() {
            assert_eq!(layout.home_slot(chunk), Some(slot));
        }
        assert_eq!([0, 1, 34].map(|c| layout.home_slot(c)), [None; 3]);
        assert!(layout.home_slot(u64::MAX).is_some());
    }

    #[test]
    fn slot_offsets_follow_the_areas() {
        let layout = layout(8);
        assert_eq!(layout.slot_offset(0), 4096);
        assert_eq!(layout.slot_offset(255), 4096 + 255 * 16);
        assert_eq!(layout.slot_offset(256), 258 * 4096);
    }

    #[test]
    fn units_number_the_slots_area_by_area() {
        let short = |entries| Layout::with_short_areas(ChunkSize::new(2).unwrap(), entries);
        for layout in [
            layout(1),
            layout(2),
            layout(8),
            short(3),
            short(32),
            short(33),
        ] {
            let mut slots = 0;
            for unit in 0..40 {
                let range = layout.unit_slots(unit, 32);
                assert_eq!(range.start, slots, "unit {unit} follows the one before");
                assert!(range.clone().all(|slot| layout.unit_of(slot, 32) == unit));
                assert_eq!(layout.slot_offset(slots) % 512, 0);
                slots = range.end;
            }
        }
        assert_eq!(short(33).unit_slots(1, 32), 32..33);
        assert_eq!(layout(1).unit_slots(7, 32), 224..256);
    }

    #[test]
    fn short_areas_lie_as_close_as_their_entries() {
        let layout = Layout::with_short_areas(ChunkSize::new(1).unwrap(), 3);
        assert_eq!([0, 1, 2].map(|n| layout.area_chunk(n)), [1, 5, 9]);
        let data: Vec<u64> = (0..10).filter(|&c| layout.is_data(c)).collect();
        assert_eq!(data, [2, 3, 4, 6, 7, 8]);
        assert_eq!(layout.slot_offset(4), 5 * 512 + 16);
        assert_eq!(layout.home_slot(6), Some(3));
    }

    #[test]
    fn capacity_is_the_largest_count_whose_terminator_fits() {
        let short = [1, 2, 3, 4]
            .map(|entries| Layout::with_short_areas(ChunkSize::new(2).unwrap(), entries));
        for layout in [1, 2, 8].map(layout).into_iter().chain(short) {
            let sectors = layout.chunk_size.sectors();
            let entries = layout.exceptions_per_area();
            for chunks in 0..700 {
                let fits = |n: u64| 1 + n + n / entries < chunks;
                let largest = (0..chunks).rev().find(|&n| fits(n)).unwrap_or(0);
                assert_eq!(
                    layout.capacity(chunks * sectors),
                    largest,
                    "{chunks} chunks"
                );
            }
        }
    }

    #[test]
    fn full_coverage_counts_the_area_of_the_terminator() {
        let layout = layout(8);
        assert_eq!(layout.full_coverage_sectors(255 * 8), (1 + 255 + 1) * 8);
        assert_eq!(layout.full_coverage_sectors(256 * 8), (1 + 256 + 2) * 8);
        assert_eq!(layout.full_coverage_sectors(256 * 8 - 7), (1 + 256 + 2) * 8);
        for origin_chunks in [1, 255, 256, 257, 511, 512] {
            let sectors = layout.full_coverage_sectors(origin_chunks * 8);
            assert_eq!(layout.capacity(sectors), origin_chunks);
            assert!(layout.capacity(sectors - 1) < origin_chunks);
        }
        assert_eq!(layout.full_coverage_sectors(u64::MAX), u64::MAX);
    }

    #[test]
    fn usable_areas_lie_wholly_on_the_device() {
        let layout = layout(8);
        let areas = |chunks: u64| layout.areas(chunks * 8);
        assert_eq!(
            [0, 1, 2, 258, 259, 515, 516].map(areas),
            [0, 0, 1, 1, 2, 2, 3]
        );
    }
}
