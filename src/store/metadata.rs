//! The exception log of one store in memory, and the writes that extend it.
//!
//! Every byte written to an area is made from this log and never from what was read, so
//! that stale bytes after the terminator are not written back and taken for entries.

use std::collections::HashMap;
use std::ops::Range;

use super::entry::{self, Entry};
use super::header::Header;
use super::layout::{ENTRY_BYTES, FIRST_DATA_CHUNK, Layout};
use super::log::Log;
use crate::mutation::{self, Mutation};

/// Bytes to write at a byte offset of the COW device: one or more whole, aligned units
/// (`Metadata::unit`) in a row. Each of them is written atomically, and the write may tear
/// between any two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaWrite {
    pub offset: u64,
    pub data: Vec<u8>,
}

/// Units are joined to writes of at most this many bytes.
pub(super) const WRITE_MAX: usize = 1 << 20;

/// Entries that are looked at for one to pad with.
const PADDING_CANDIDATES: usize = 256;

/// No chunk left for a new exception (and the metadata chunk that it may need).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no space left in the COW store")]
pub struct NoSpace;

/// What `dmsetup status` prints, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub allocated: u64,
    pub total: u64,
    pub metadata: u64,
}

/// The log of one store: persistent (areas on disk) or transient (memory only).
#[derive(Debug)]
pub struct Metadata {
    layout: Layout,
    cow_sectors: u64,
    /// Bytes written atomically; `None` for a transient store.
    unit: Option<usize>,
    entries: Log,
    /// Slots of entries that are not in the home slot of their data chunk
    /// (removals, stores of older kernels): new chunk → slot.
    strays: HashMap<u64, usize>,
    /// The next chunk to allocate; never decreases.
    next_free: u64,
    /// The value that the kernel's `next_free` would have; decreases while merging.
    shown_next_free: u64,
    /// Allocated chunks whose entries are not appended yet.
    outstanding: usize,
}

impl Metadata {
    /// A new, empty persistent store on a COW device of `cow_sectors`.
    /// `unit`: bytes written atomically by the device, 512 or 4096, and no more
    /// than a chunk.
    pub fn fresh(layout: Layout, cow_sectors: u64, unit: usize) -> Self {
        Self::from_log(layout, cow_sectors, unit, Log::default())
    }

    /// A transient store: data from chunk 0 up, nothing on disk.
    pub fn transient(layout: Layout, cow_sectors: u64) -> Self {
        Self {
            layout,
            cow_sectors,
            unit: None,
            entries: Log::default(),
            strays: HashMap::new(),
            next_free: 0,
            shown_next_free: 0,
            outstanding: 0,
        }
    }

    /// A persistent store with the entries that its areas hold.
    pub(super) fn from_log(layout: Layout, cow_sectors: u64, unit: usize, entries: Log) -> Self {
        assert!(
            unit.is_power_of_two() && unit >= 512,
            "a unit of {unit} bytes"
        );
        assert!(
            unit as u64 <= layout.chunk_size.bytes(),
            "unit {unit} exceeds the chunk"
        );
        let mut metadata = Self {
            layout,
            cow_sectors,
            unit: Some(unit),
            entries: Log::default(),
            strays: HashMap::new(),
            next_free: 0,
            shown_next_free: 0,
            outstanding: 0,
        };
        let mut highest = 0;
        entries.iter().enumerate().for_each(|(slot, entry)| {
            metadata.note_slot(entry.new, slot);
            highest = entry.new.max(highest);
        });
        let next_free = layout.data_chunk_from(highest.saturating_add(1).max(FIRST_DATA_CHUNK));
        metadata.next_free = next_free;
        metadata.shown_next_free = next_free;
        metadata.entries = entries;
        metadata
    }

    pub fn is_transient(&self) -> bool {
        self.unit.is_none()
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Size of the COW device in sectors.
    pub fn cow_sectors(&self) -> u64 {
        self.cow_sectors
    }

    /// The lowest chunk that data may get next.
    pub fn next_free(&self) -> u64 {
        self.next_free
    }

    /// Bytes of an atomic metadata write; `None` for a transient store.
    pub fn unit(&self) -> Option<usize> {
        self.unit
    }

    /// Committed entries in log order.
    pub fn entries(&self) -> &Log {
        &self.entries
    }

    /// Bytes of the COW device that the log and what it names take up.
    pub fn held_bytes(&self) -> u64 {
        let highest = self.entries.iter().map(|e| e.new).max();
        let area = self.unit.map(|_| {
            let area = self.layout.area_of(self.entries.len());
            self.layout.area_chunk(area)
        });
        let chunks = highest.max(area).map_or(0, |chunk| chunk.saturating_add(1));
        self.layout.chunk_offset(chunks)
    }

    /// Allocates the next data chunk. The last slot of an area is used only if the next
    /// area fits on the device as well: the store could not be loaded otherwise.
    ///
    /// # Errors
    /// [`NoSpace`]; then nothing has changed.
    pub fn allocate(&mut self) -> Result<u64, NoSpace> {
        let chunk = self.next_free;
        let chunks = self.layout.chunk_size.whole_chunks(self.cow_sectors);
        if chunk >= chunks {
            return Err(NoSpace);
        }
        if self.unit.is_some() {
            let used = self.entries.len() + self.outstanding + 1;
            let fills_area = used.is_multiple_of(self.layout.area_len());
            if fills_area
                && !mutation::is(Mutation::NextAreaOffTheEnd)
                && self.layout.area_chunk(self.layout.area_of(used)) >= chunks
            {
                return Err(NoSpace);
            }
        }
        self.outstanding += 1;
        self.raise_next_free(chunk);
        Ok(chunk)
    }

    /// The slot of the entry whose data is in COW chunk `new`.
    pub fn slot_of(&self, new: u64) -> Option<usize> {
        let holds = |slot: &usize| self.entries.get(*slot).is_some_and(|e| e.new == new);
        self.home_slot(new)
            .filter(holds)
            .or_else(|| self.strays.get(&new).copied().filter(holds))
    }

    /// An entry for copies that pad units: one that `stays`, and that begins its run, so that
    /// no entry is for the chunk before it on both sides. Linux keeps a run as one element in
    /// memory. When it merges copies it removes the chunk once for each, from any element
    /// that has it, and fails unless the chunk is at an end of that element.
    pub(super) fn padding(&self, stays: impl Fn(Entry) -> bool) -> Option<Entry> {
        let oldest = self.slot_of(FIRST_DATA_CHUNK);
        let oldest = oldest.and_then(|slot| self.entries.get(slot));
        let oldest = oldest.filter(|_| !mutation::is(Mutation::PaddedFromRun));
        let newest = self.entries.iter().rev().take(PADDING_CANDIDATES);
        // In a log in the order of its chunks, runs begin behind the chunks of areas.
        let slots = (0..self.entries.len()).step_by(self.layout.area_len());
        let firsts = slots.filter_map(|slot| self.entries.get(slot));
        let firsts = firsts.take(PADDING_CANDIDATES);
        oldest
            .into_iter()
            .chain(newest)
            .chain(firsts)
            .find(|entry| self.begins_run(*entry) && stays(*entry))
    }

    pub(super) fn begins_run(&self, entry: Entry) -> bool {
        let before = entry.new.checked_sub(1).and_then(|new| self.slot_of(new));
        let before = before.and_then(|slot| self.entries.get(slot));
        before.is_none_or(|before| before.old.checked_add(1) != Some(entry.old))
            || mutation::is(Mutation::PaddedFromRun)
    }

    /// Counted as the kernel does: everything below the next free chunk, including an area
    /// chunk that was just skipped; for a transient store only the data.
    pub fn usage(&self) -> Usage {
        let metadata = match self.unit {
            Some(_) => {
                let areas = self.layout.area_of(self.entries.len()) + 1;
                self.layout.chunk_size.first_sector(areas + 1)
            }
            None => 0,
        };
        Usage {
            allocated: self.layout.chunk_size.first_sector(self.shown_next_free),
            total: self.cow_sectors,
            metadata,
        }
    }

    /// The COW device grew to `sectors`. A smaller value is ignored, because allocated
    /// chunks cannot be taken back.
    pub fn set_cow_sectors(&mut self, sectors: u64) {
        self.cow_sectors = self.cow_sectors.max(sectors);
    }

    /// The write that marks the store permanently invalid on disk. It must be
    /// durable before an origin write that the store misses is issued. `None`
    /// for a transient store.
    pub fn invalidate_write(&self) -> Option<MetaWrite> {
        let header = Header {
            valid: false,
            chunk_size: self.layout.chunk_size,
        };
        Some(MetaWrite {
            offset: 0,
            data: header.encode(self.unit?),
        })
    }

    /// Numbers of the units that hold slots `start .. end`, counted over all areas.
    pub(super) fn units_of(&self, start: usize, end: usize) -> Range<usize> {
        let unit_of = |slot| self.layout.unit_of(slot, self.unit_len());
        match end.checked_sub(1) {
            Some(last) if start <= last => unit_of(start)..unit_of(last) + 1,
            _ => 0..0,
        }
    }

    /// Unit number `unit` with the bytes that `log` gives.
    pub(super) fn unit_write(
        &self,
        unit: usize,
        log: impl Fn(usize) -> Option<Entry>,
    ) -> MetaWrite {
        let slots = self.layout.unit_slots(unit, self.unit_len());
        MetaWrite {
            offset: self.layout.slot_offset(slots.start),
            data: entry::encode(slots, self.unit_len() * ENTRY_BYTES, log),
        }
    }

    /// `units`, ascending, with the bytes that `log` gives: neighbours on the device as one
    /// write.
    pub(super) fn joined_units(
        &self,
        units: impl IntoIterator<Item = usize>,
        log: impl Fn(usize) -> Option<Entry>,
    ) -> Vec<MetaWrite> {
        let mut writes: Vec<MetaWrite> = Vec::new();
        for unit in units {
            let next = self.unit_write(unit, &log);
            match writes.last_mut() {
                Some(last)
                    if last.offset + last.data.len() as u64 == next.offset
                        && last.data.len() < WRITE_MAX =>
                {
                    last.data.extend_from_slice(&next.data);
                }
                _ => writes.push(next),
            }
        }
        writes
    }

    /// The unit that the log ends in, as it must read on disk.
    pub(super) fn last_unit(&self) -> MetaWrite {
        let unit = self.layout.unit_of(self.entries.len(), self.unit_len());
        self.unit_write(unit, |slot| self.entries.get(slot))
    }

    /// Adds entries at the end.
    pub(super) fn extend_log(&mut self, entries: &[Entry]) {
        self.outstanding = self.outstanding.saturating_sub(entries.len());
        for entry in entries {
            self.note_slot(entry.new, self.entries.len());
            self.entries.push(*entry);
            if entry.new >= self.next_free {
                self.raise_next_free(entry.new);
            }
        }
    }

    /// Replaces and drops entries; `moved` names slots below `new_len`.
    pub(super) fn rewrite_log(&mut self, moved: &[(usize, Entry)], new_len: usize) {
        for slot in moved.iter().map(|m| m.0).chain(new_len..self.entries.len()) {
            if let Some(entry) = self.entries.get(slot)
                && self.strays.get(&entry.new) == Some(&slot)
            {
                self.strays.remove(&entry.new);
            }
        }
        self.entries.truncate(new_len);
        for &(slot, entry) in moved {
            if slot < new_len {
                self.entries.replace(slot, entry);
                if !mutation::is(Mutation::MovedEntryForgotten) {
                    self.note_slot(entry.new, slot);
                }
            }
        }
    }

    /// This log as it would be after it had been loaded from the device.
    pub(super) fn into_loaded(self) -> Self {
        let unit = self.unit_len() * ENTRY_BYTES;
        Self::from_log(self.layout, self.cow_sectors, unit, self.entries)
    }

    /// From now on the usage is the one that the kernel shows after a merge step: the
    /// current area and its entries, whichever chunks hold the data.
    pub(super) fn show_packed(&mut self) {
        let in_area = (self.entries.len() % self.layout.area_len()) as u64;
        let area = self
            .layout
            .area_chunk(self.layout.area_of(self.entries.len()));
        self.shown_next_free = area + in_area + 1;
    }

    /// Entries in a unit.
    fn unit_len(&self) -> usize {
        self.unit.unwrap_or(512) / ENTRY_BYTES
    }

    fn raise_next_free(&mut self, given_out: u64) {
        let next = given_out.saturating_add(1);
        let skips = self.unit.is_some() && !mutation::is(Mutation::MetadataChunkGivenOut);
        self.next_free = if skips {
            self.layout.data_chunk_from(next)
        } else {
            next
        };
        self.shown_next_free = self.next_free;
    }

    fn home_slot(&self, new: u64) -> Option<usize> {
        match self.unit {
            Some(_) => self.layout.home_slot(new),
            None => usize::try_from(new).ok(),
        }
    }

    /// Remembers a slot that cannot be computed.
    fn note_slot(&mut self, new: u64, slot: usize) {
        if self.home_slot(new) != Some(slot) {
            self.strays.insert(new, slot);
        }
    }
}
