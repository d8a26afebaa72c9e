//! The header and the log as they stand on the device, not yet checked.

use std::ops::Range;

use super::StoreError;
use super::disk::{PIECE, StoreDisk};
use super::entry::Entry;
use super::header::{HEADER_BYTES, RawHeader};
use super::layout::{ENTRY_BYTES, Layout};
use crate::mutation::{self, Mutation};
use crate::units::SECTOR_SIZE;

/// The properties of the devices that loading depends on.
#[derive(Clone, Copy, Debug)]
pub struct LoadParams {
    /// Size of the COW device in sectors.
    pub cow_sectors: u64,
    /// Size of the origin in sectors. `None` if the origin is not available; old chunks
    /// are not checked against it then.
    pub origin_sectors: Option<u64>,
    /// Bytes that the COW device writes atomically, 512 or 4096; at least its
    /// logical block size.
    pub unit: usize,
    /// The larger of the two devices' logical block sizes, in bytes.
    pub block_bytes: u64,
}

/// Reads the header; nothing in it is checked yet.
pub(super) fn read_header(
    disk: &mut StoreDisk<'_>,
    params: &LoadParams,
) -> Result<RawHeader, StoreError> {
    let unit = params.unit as u64;
    if params.cow_sectors.saturating_mul(SECTOR_SIZE) < unit {
        return Err(StoreError::Truncated {
            what: "the header".to_owned(),
            needs: unit / SECTOR_SIZE,
            has: params.cow_sectors,
        });
    }
    let buffer = disk.read(0, params.unit)?;
    let bytes = buffer.as_slice().first_chunk::<HEADER_BYTES>().copied();
    Ok(RawHeader::decode(bytes.unwrap_or_default()))
}

/// What follows the terminator in its area and is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Junk {
    /// Bytes of the COW device, in whole units.
    pub bytes: Range<u64>,
    /// The entry that all of it repeats, and how often; `None`: anything else.
    repeats: Option<(Entry, u64)>,
}

impl Junk {
    /// How many entries it is, if all are copies of one entry of `log` that begins its run
    /// there. An append or a removal that was cut short leaves such copies. They are
    /// harmless, for Linux too when its log grows up to them. 0 for all other junk.
    pub fn copies(&self, log: impl Iterator<Item = Entry>) -> u64 {
        let Some((copied, count)) = self.repeats else {
            return 0;
        };
        let (mut stays, mut in_run) = (false, false);
        for entry in log {
            stays |= entry == copied;
            in_run |= entry.old.checked_add(1) == Some(copied.old)
                && entry.new.checked_add(1) == Some(copied.new);
        }
        if stays && !in_run { count } else { 0 }
    }

    /// The terminator's unit or a later one, what is behind the terminator; not all zero.
    fn new(bytes: Range<u64>, entries: &[[u8; ENTRY_BYTES]]) -> Self {
        let entries = || entries.iter().filter(|bytes| **bytes != [0; ENTRY_BYTES]);
        let first = entries().next().and_then(|bytes| Entry::from_bytes(*bytes));
        let all = entries().all(|bytes| Entry::from_bytes(*bytes) == first);
        let count = entries().count() as u64;
        Self {
            bytes,
            repeats: first.filter(|_| all).map(|first| (first, count)),
        }
    }

    fn join(self, behind: Self) -> Self {
        let repeats = match (self.repeats, behind.repeats) {
            (Some((a, m)), Some((b, n))) if a == b => Some((a, m + n)),
            _ => None,
        };
        Self {
            bytes: self.bytes.start..behind.bytes.end,
            repeats,
        }
    }
}

/// Receives each entry with its slot.
pub(super) type Sink<'a> = dyn FnMut(usize, Entry) -> Result<(), StoreError> + 'a;

/// Reads areas in pieces until one has a terminator, and passes each entry before it to
/// `sink`. Returns what is not zero from the terminator to the end of its area.
///
/// # Errors
/// I/O errors, an area that is not on the device, and the errors of `sink`.
pub(super) fn read_log(
    disk: &mut StoreDisk<'_>,
    layout: Layout,
    params: &LoadParams,
    sink: &mut Sink<'_>,
) -> Result<Option<Junk>, StoreError> {
    let chunk_bytes = layout.chunk_size.bytes();
    let piece = usize::try_from(chunk_bytes).map_or(PIECE, |bytes| bytes.min(PIECE));
    let mut scan = Scan {
        unit: params.unit,
        layout,
        slots: 0,
        end: None,
        sink,
    };
    let areas = match mutation::is(Mutation::FullAreaEndsLog) {
        true => 1,
        false => layout.areas(params.cow_sectors),
    };
    let starts = (0..areas).map(|area| layout.chunk_offset(layout.area_chunk(area)));
    let pieces = starts.flat_map(|start| (start..start + chunk_bytes).step_by(piece));
    let ended = disk.read_each(pieces, piece, &mut |offset, bytes| {
        scan.take_piece(offset, bytes)?;
        // An area is read to its end, also behind the terminator: stale entries there
        // would become valid again when the log grows up to them.
        let area_ends = (offset + piece as u64).is_multiple_of(chunk_bytes);
        Ok(scan.end.is_none() || !area_ends)
    })?;
    if !ended && !mutation::is(Mutation::FullAreaEndsLog) {
        let chunk = layout.area_chunk(areas);
        return Err(StoreError::Truncated {
            what: format!("metadata area {areas} in chunk {chunk}"),
            needs: layout.chunk_size.first_sector(chunk.saturating_add(1)),
            has: params.cow_sectors,
        });
    }
    Ok(scan.end.and_then(|end| end.junk))
}

/// The state of reading the areas.
struct Scan<'a, 'b> {
    unit: usize,
    layout: Layout,
    /// Entries so far.
    slots: usize,
    end: Option<End>,
    sink: &'a mut Sink<'b>,
}

/// The terminator was found.
struct End {
    junk: Option<Junk>,
}

impl Scan<'_, '_> {
    /// Takes bytes of an area, in whole units.
    fn take_piece(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let chunk_bytes = self.layout.chunk_size.bytes();
        let area_bytes = self.layout.area_len() * ENTRY_BYTES;
        let done = usize::try_from(offset % chunk_bytes).unwrap_or(area_bytes);
        // In an area that is shorter than its chunk, the rest has no slots.
        let mut slots = area_bytes.saturating_sub(done) / ENTRY_BYTES;
        for (index, unit) in bytes.chunks(self.unit).enumerate() {
            let entries = unit.as_chunks().0;
            let (entries, _unused) = entries.split_at(entries.len().min(slots));
            slots -= entries.len();
            self.take_unit(offset + (index * self.unit) as u64, entries)?;
        }
        Ok(())
    }

    fn take_unit(&mut self, offset: u64, entries: &[[u8; ENTRY_BYTES]]) -> Result<(), StoreError> {
        let mut rest = entries;
        while self.end.is_none()
            && let Some((first, others)) = rest.split_first()
        {
            match Entry::from_bytes(*first) {
                Some(entry) => {
                    (self.sink)(self.slots, entry)?;
                    self.slots += 1;
                    rest = others;
                }
                None => self.end = Some(End { junk: None }),
            }
        }
        if let Some(end) = &mut self.end
            && rest.as_flattened().iter().any(|&byte| byte != 0)
        {
            let here = Junk::new(offset..offset + self.unit as u64, rest);
            end.junk = Some(match end.junk.take() {
                Some(before) => before.join(here),
                None => here,
            });
        }
        Ok(())
    }
}
