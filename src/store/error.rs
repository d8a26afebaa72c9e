//! Why a store cannot be read, written or made. The caller names the file.

use super::Entry;
use crate::io::Errno;
use crate::size::in_words;
use crate::units::{ChunkSize, SECTOR_SIZE};

fn of_sectors(sectors: u64) -> String {
    in_words(sectors.saturating_mul(SECTOR_SIZE))
}

/// A store that cannot be used, with the value that is wrong and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error(
        "cannot {action} {} at byte {offset} of the COW store: {}; nothing can be \
         told about the store until the device answers",
        in_words(*len),
        std::io::Error::from_raw_os_error(errno.0)
    )]
    Io {
        action: &'static str,
        offset: u64,
        len: usize,
        errno: Errno,
    },

    #[error(
        "not a dm-snapshot COW store: the file begins with 0x{magic:08x} instead of \"SnAp\" \
         (0x70416e53); give the right file, or, if its content is of no use, clear its first \
         chunk to have a new store made there"
    )]
    NotAStore { magic: u32 },

    #[error(
        "corrupt header: the chunk size is {sectors} sectors, but must be a power of two from 1 \
         to {}; restore the header or use another COW store",
        ChunkSize::MAX_SECTORS
    )]
    HeaderChunkSize { sectors: u32 },

    #[error(
        "the chunk size of {} is not a multiple of the blocks of the devices, which have {}; \
         use a COW store with larger chunks, or smaller blocks \
         (serve --logical-block-size, as far as the devices permit it)",
        in_words(*chunk_bytes),
        in_words(*block_bytes)
    )]
    ChunkBelowBlock { chunk_bytes: u64, block_bytes: u64 },

    #[error(
        "the COW store has format version {version}, and only version 1 is known; use the \
         program that wrote it, or another COW store"
    )]
    Version { version: u32 },

    #[error(
        "COW too small or truncated: {what} needs {}, the device has {}; bring it \
         back from a copy that is whole (making it longer does not bring back what was cut off), or \
         use another COW store if it never was larger",
        of_sectors(*needs),
        of_sectors(*has)
    )]
    Truncated { what: String, needs: u64, has: u64 },

    #[error(
        "COW too small for a store: chunks of {} need at least {} \
         (header, metadata and one chunk of data), the device has {}; enlarge it or choose \
         smaller chunks",
        of_sectors(*chunk_sectors),
        of_sectors(*needs),
        of_sectors(*has)
    )]
    TooSmall {
        chunk_sectors: u64,
        needs: u64,
        has: u64,
    },

    #[error(
        "corrupt entry {slot}: origin chunk {} is said to be kept in COW chunk {}, which holds \
         {holds}; the store cannot be trusted, use another",
        entry.old, entry.new
    )]
    NotData {
        slot: usize,
        entry: Entry,
        holds: &'static str,
    },

    #[error(
        "entry {slot} is for chunk {} of the origin, which has only {origin_chunks} chunks of \
         {}; give the origin that the store was made for, at its full size",
        entry.old,
        of_sectors(*chunk_sectors)
    )]
    BeyondOrigin {
        slot: usize,
        entry: Entry,
        origin_chunks: u64,
        chunk_sectors: u64,
    },

    #[error(
        "corrupt entries {first} and {second}: origin chunk {old} is kept both in COW chunk \
         {first_new} and in COW chunk {second_new}, and which of them is right cannot be known; \
         use another COW store"
    )]
    TwoCopies {
        first: usize,
        second: usize,
        old: u64,
        first_new: u64,
        second_new: u64,
    },

    #[error(
        "corrupt entries {first} and {second}: COW chunk {new} is said to keep both origin chunk \
         {first_old} and origin chunk {second_old}; use another COW store"
    )]
    SharedCopy {
        first: usize,
        second: usize,
        new: u64,
        first_old: u64,
        second_old: u64,
    },
}
