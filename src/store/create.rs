//! A new, empty store on a COW device.

use super::StoreError;
use super::disk::StoreDisk;
use super::header::{Header, check_chunk_size};
use super::layout::Layout;
use super::metadata::Metadata;
use crate::io::{DeviceId, Disk};
use crate::units::ChunkSize;

/// Chunks of the smallest store that can hold anything: header, metadata, data.
const CHUNKS_MIN: u64 = 3;

/// Makes an empty store; chunks from 2 on are not touched. The previous content of
/// `device` is lost: the caller has made sure that it is not needed.
///
/// The final bytes are those that Linux writes. The order differs, so that at no time a
/// header precedes an area that does not belong to it:
/// 1 the header's unit zeroed, durable (an old store is gone) → 2 the rest of
/// chunk 0 and area 0 zeroed → 3 durable → 4 header, durable.
///
/// `unit`: bytes that the COW device writes atomically, 512 or 4096, at least
/// its logical block size.
///
/// # Errors
/// The device has fewer than three chunks, chunks are smaller than `unit`
/// (both before anything is written), or I/O errors.
pub fn create(
    disk: &mut dyn Disk,
    device: DeviceId,
    chunk_size: ChunkSize,
    cow_sectors: u64,
    unit: usize,
) -> Result<Metadata, StoreError> {
    create_as(disk, device, Layout::new(chunk_size), cow_sectors, unit)
}

/// As [`create`], with the areas of `layout`.
pub(crate) fn create_as(
    disk: &mut dyn Disk,
    device: DeviceId,
    layout: Layout,
    cow_sectors: u64,
    unit: usize,
) -> Result<Metadata, StoreError> {
    let chunk_size = layout.chunk_size;
    check_chunk_size(chunk_size, unit as u64)?;
    let needs = CHUNKS_MIN * chunk_size.sectors();
    if cow_sectors < needs {
        let chunk_sectors = chunk_size.sectors();
        return Err(StoreError::TooSmall {
            chunk_sectors,
            needs,
            has: cow_sectors,
        });
    }
    let header = Header {
        valid: true,
        chunk_size,
    }
    .encode(unit);
    let unit_bytes = header.len() as u64;

    let mut disk = StoreDisk::new(disk, device);
    disk.write_durable(0, &vec![0; header.len()])?; // 1
    disk.write_zeroes(unit_bytes, 2 * chunk_size.bytes() - unit_bytes)?; // 2
    disk.flush()?; // 3
    disk.write_durable(0, &header)?; // 4
    Ok(Metadata::fresh(layout, cow_sectors, unit))
}
