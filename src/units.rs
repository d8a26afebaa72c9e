//! Quantities. Everything that a guest addresses is counted in 512-byte sectors;
//! everything that a store holds is counted in chunks.

use std::fmt;

/// Bytes in a sector (virtio-blk and device-mapper both fix it at 512).
pub const SECTOR_SIZE: u64 = 512;
/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;

/// Sectors of one request or chunk in bytes, as a length in memory.
pub fn byte_count(sectors: u64) -> usize {
    usize::try_from(sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX)
}

/// The copy-on-write unit: a power of two of sectors, 1 ..= 2^21 (1 GiB), as
/// Linux's `dm_exception_store_set_chunk_size` accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize {
    shift: u32,
}

impl ChunkSize {
    /// Largest chunk size in sectors (1 GiB).
    pub const MAX_SECTORS: u64 = 1 << 21;

    /// A chunk size in sectors; `None` unless a power of two in 1 ..= [`Self::MAX_SECTORS`].
    pub const fn new(sectors: u64) -> Option<Self> {
        if sectors.is_power_of_two() && sectors <= Self::MAX_SECTORS {
            Some(Self {
                shift: sectors.trailing_zeros(),
            })
        } else {
            None
        }
    }

    /// Sectors in a chunk.
    pub const fn sectors(self) -> u64 {
        1 << self.shift
    }

    /// Bytes in a chunk.
    pub const fn bytes(self) -> u64 {
        1 << (self.shift + SECTOR_SHIFT)
    }

    /// log2 of the sectors in a chunk.
    pub const fn shift(self) -> u32 {
        self.shift
    }

    /// The chunk that holds `sector`.
    pub const fn chunk_of(self, sector: u64) -> u64 {
        sector >> self.shift
    }

    /// The first sector of `chunk`; saturates instead of wrapping for a chunk
    /// number that no device can have.
    pub const fn first_sector(self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.sectors())
    }

    /// Chunks needed to cover `sectors`, rounded up.
    pub const fn chunks_covering(self, sectors: u64) -> u64 {
        sectors.div_ceil(self.sectors())
    }

    /// Whole chunks in `sectors`, rounded down.
    pub const fn whole_chunks(self, sectors: u64) -> u64 {
        sectors >> self.shift
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.sectors())
    }
}
