//! Sizes that a COW can have: of its chunks, of its atomic units, and of the whole file.

use std::path::Path;

use super::error::CowError;
use super::origin::OriginFacts;
use crate::control::api::{SnapshotSpec, StoreType};
use crate::store::StoreError;
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Largest unit in bytes that is relied upon to be written atomically.
const UNIT_MAX: usize = 4096;

/// The chunk size of `bytes`.
pub fn chunk_size(bytes: u64) -> Result<ChunkSize, CowError> {
    let sectors = bytes
        .is_multiple_of(SECTOR_SIZE)
        .then_some(bytes / SECTOR_SIZE);
    sectors
        .and_then(ChunkSize::new)
        .ok_or(CowError::ChunkSize(bytes))
}

/// The number of bytes that the device writes atomically.
pub fn unit(block_size: u32) -> usize {
    usize::try_from(block_size).map_or(UNIT_MAX, |block| block.clamp(512, UNIT_MAX))
}

/// Refuses what `store::create` would refuse, before a file is made for it.
pub fn check_size(
    spec: &SnapshotSpec,
    chunk_size: ChunkSize,
    cow_sectors: u64,
    origin: &OriginFacts,
    path: &Path,
) -> Result<(), CowError> {
    let failed = |source| CowError::Store {
        path: path.to_path_buf(),
        source,
    };
    let block_bytes = u64::from(origin.block_size);
    if chunk_size.bytes() < block_bytes {
        return Err(failed(StoreError::ChunkBelowBlock {
            chunk_bytes: chunk_size.bytes(),
            block_bytes,
        }));
    }
    // Header, metadata and one chunk of data; a transient store has only data.
    let chunks = if spec.store_type == StoreType::N {
        1
    } else {
        3
    };
    let needs = chunk_size.sectors().saturating_mul(chunks);
    if cow_sectors < needs {
        return Err(failed(StoreError::TooSmall {
            chunk_sectors: chunk_size.sectors(),
            needs,
            has: cow_sectors,
        }));
    }
    Ok(())
}
