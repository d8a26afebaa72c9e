//! Reading a damaged store to its end, where [`load`](super::load) stops at the first
//! damage.

use super::StoreError;
use super::disk::StoreDisk;
use super::entry::Entry;
use super::layout::Layout;
use super::scan::{Junk, LoadParams, read_header, read_log};
use super::validate::EntryRules;
use crate::io::{DeviceId, Disk};
use crate::units::ChunkSize;

/// What a device was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survey {
    /// The header is not valid.
    NoHeader(StoreError),
    /// Magic 0: no store yet.
    New,
    /// Invalidated; the entries have no meaning and were not read.
    Invalid { chunk_size: ChunkSize },
    Log {
        layout: Layout,
        /// Entries before the terminator.
        entries: usize,
        /// What is behind the terminator and not zero.
        junk: Option<Junk>,
        /// The area that must follow a full one is not on the device.
        missing_area: Option<StoreError>,
    },
}

/// Reads the store on `device` and passes every entry to `visit`, with its slot and the
/// error for which the loader would refuse that entry alone. Nothing is written and no
/// entry is kept.
///
/// # Errors
/// I/O errors only.
pub fn survey(
    disk: &mut dyn Disk,
    device: DeviceId,
    params: &LoadParams,
    visit: &mut dyn FnMut(usize, Entry, Option<StoreError>),
) -> Result<Survey, StoreError> {
    survey_as(disk, device, params, Layout::new, visit)
}

/// As [`survey`], with the areas of `layout`.
pub(crate) fn survey_as(
    disk: &mut dyn Disk,
    device: DeviceId,
    params: &LoadParams,
    layout: impl FnOnce(ChunkSize) -> Layout,
    visit: &mut dyn FnMut(usize, Entry, Option<StoreError>),
) -> Result<Survey, StoreError> {
    let mut disk = StoreDisk::new(disk, device);
    let block_bytes = params.block_bytes.max(params.unit as u64);
    let header = match read_header(&mut disk, params).and_then(|raw| raw.check(block_bytes)) {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(Survey::New),
        Err(error @ StoreError::Io { .. }) => return Err(error),
        Err(error) => return Ok(Survey::NoHeader(error)),
    };
    let chunk_size = header.chunk_size;
    if !header.valid {
        return Ok(Survey::Invalid { chunk_size });
    }
    let layout = layout(chunk_size);
    let rules = EntryRules::new(layout, params.cow_sectors, params.origin_sectors);
    let mut entries = 0;
    let end = read_log(&mut disk, layout, params, &mut |slot, entry| {
        visit(slot, entry, rules.check(slot, entry).err());
        entries = slot + 1;
        Ok(())
    });
    let (junk, missing_area) = match end {
        Ok(junk) => (junk, None),
        Err(error @ StoreError::Truncated { .. }) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    Ok(Survey::Log {
        layout,
        entries,
        junk,
        missing_area,
    })
}
