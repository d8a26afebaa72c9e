//! From the bytes of a COW device to a checked log.

use super::StoreError;
use super::disk::StoreDisk;
use super::layout::Layout;
use super::log::Log;
use super::metadata::Metadata;
use super::scan::{LoadParams, read_header, read_log};
use super::settle::ValidStore;
use super::validate::{EntryRules, check_unique};
use crate::io::{DeviceId, Disk};
use crate::units::ChunkSize;

/// What is on a COW device.
#[derive(Debug)]
pub enum Loaded {
    /// Magic 0: no store yet; [`create`](super::create) makes one here.
    New,
    /// Invalidated permanently. Its entries have no meaning and were not read.
    Invalid { chunk_size: ChunkSize },
    /// A checked store that was not yet written to.
    Valid(Box<ValidStore>),
}

/// Reads the store on `device`; the header gives the chunk size. Nothing is written.
/// Memory and time are bounded by the existing entries and one area, and every size in
/// the file is checked against the device first.
///
/// # Errors
/// I/O errors; a header, entry or size that Linux would refuse; and entries
/// that Linux would accept and serve wrongly (outside the devices, on metadata,
/// two copies of a chunk, two chunks in one copy).
pub fn load(
    disk: &mut dyn Disk,
    device: DeviceId,
    params: &LoadParams,
) -> Result<Loaded, StoreError> {
    load_as(disk, device, params, Layout::new)
}

/// As [`load`], with the areas of `layout`.
pub(crate) fn load_as(
    disk: &mut dyn Disk,
    device: DeviceId,
    params: &LoadParams,
    layout: impl FnOnce(ChunkSize) -> Layout,
) -> Result<Loaded, StoreError> {
    let mut disk = StoreDisk::new(disk, device);
    let block_bytes = params.block_bytes.max(params.unit as u64);
    let Some(header) = read_header(&mut disk, params)?.check(block_bytes)? else {
        return Ok(Loaded::New);
    };
    let chunk_size = header.chunk_size;
    if !header.valid {
        return Ok(Loaded::Invalid { chunk_size });
    }
    let layout = layout(chunk_size);
    let rules = EntryRules::new(layout, params.cow_sectors, params.origin_sectors);
    let mut entries = Log::default();
    let junk = read_log(&mut disk, layout, params, &mut |slot, entry| {
        rules.check(slot, entry)?;
        entries.push(entry);
        Ok(())
    })?;
    let duplicates = check_unique(&entries)?;
    let log = Metadata::from_log(layout, params.cow_sectors, params.unit, entries);
    Ok(Loaded::Valid(Box::new(ValidStore::new(
        log, duplicates, junk,
    ))))
}
