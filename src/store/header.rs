//! The header chunk: 16 bytes, little-endian, the rest zero.

use std::ops::Range;

use super::StoreError;
use crate::units::ChunkSize;

/// "SnAp"
pub const MAGIC: u32 = u32::from_le_bytes(*b"SnAp");
/// The only version there is.
pub const VERSION: u32 = 1;
/// Meaningful bytes of the header chunk.
pub const HEADER_BYTES: usize = 16;

/// The bytes of the word that is not zero while the store is valid.
pub const VALID_WORD: Range<usize> = 4..8;

/// A header as it was read. Its fields must not be used before [`Self::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawHeader {
    magic: u32,
    valid: u32,
    version: u32,
    chunk_size: u32,
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// False once the store was invalidated, which is permanent.
    pub valid: bool,
    pub chunk_size: ChunkSize,
}

impl RawHeader {
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let all = u128::from_le_bytes(bytes);
        let word = |index: u32| {
            u32::try_from((all >> (index * 32)) & u128::from(u32::MAX)).unwrap_or_default()
        };
        Self {
            magic: word(0),
            valid: word(1),
            version: word(2),
            chunk_size: word(3),
        }
    }

    /// Whether a reader could take it for the header of a valid store.
    pub fn says_valid(self) -> bool {
        self.magic == MAGIC && self.valid != 0
    }

    /// Checks the header. `None`: magic 0, a new store, whatever the other bytes are.
    /// `block_bytes`: the largest atomic or logical block of the COW device and the
    /// origin; a smaller chunk could not be written.
    ///
    /// # Errors
    /// A foreign magic, a chunk size that no store can have or that these devices cannot
    /// use, or another version, in this order. An invalidated store is checked in the
    /// same way.
    pub fn check(self, block_bytes: u64) -> Result<Option<Header>, StoreError> {
        if self.magic == 0 {
            return Ok(None);
        }
        if self.magic != MAGIC {
            return Err(StoreError::NotAStore { magic: self.magic });
        }
        let chunk_size =
            ChunkSize::new(u64::from(self.chunk_size)).ok_or(StoreError::HeaderChunkSize {
                sectors: self.chunk_size,
            })?;
        check_chunk_size(chunk_size, block_bytes)?;
        if self.version != VERSION {
            return Err(StoreError::Version {
                version: self.version,
            });
        }
        // Linux takes any non-zero value for valid.
        Ok(Some(Header {
            valid: self.valid != 0,
            chunk_size,
        }))
    }
}

/// Refuses chunks that the devices cannot write in one piece.
pub(super) fn check_chunk_size(chunk_size: ChunkSize, block_bytes: u64) -> Result<(), StoreError> {
    if chunk_size.bytes().is_multiple_of(block_bytes.max(1)) {
        Ok(())
    } else {
        Err(StoreError::ChunkBelowBlock {
            chunk_bytes: chunk_size.bytes(),
            block_bytes,
        })
    }
}

impl Header {
    /// The header in `len` bytes, zero-padded.
    pub fn encode(self, len: usize) -> Vec<u8> {
        let chunk_size = u32::try_from(self.chunk_size.sectors()).unwrap_or_default();
        let words = [MAGIC, u32::from(self.valid), VERSION, chunk_size];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(len.max(HEADER_BYTES), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(words: [u32; 4]) -> RawHeader {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        RawHeader::decode(bytes.try_into().unwrap())
    }

    fn header(valid: bool, sectors: u64) -> Header {
        Header {
            valid,
            chunk_size: ChunkSize::new(sectors).unwrap(),
        }
    }

    #[test]
    fn bytes_are_those_of_linux() {
        let bytes = header(true, 8).encode(512);
        assert_eq!(
            bytes[..16],
            [0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]
        );
        assert_eq!(bytes[16..], [0; 496]);
        let decoded = RawHeader::decode(bytes[..16].try_into().unwrap());
        assert_eq!(decoded.check(512).unwrap(), Some(header(true, 8)));
    }

    #[test]
    fn magic_zero_is_a_new_store_whatever_follows() {
        assert_eq!(raw([0, 5, 99, 3]).check(512).unwrap(), None);
    }

    #[test]
    fn any_nonzero_valid_is_valid() {
        assert_eq!(
            raw([MAGIC, 2, 1, 8]).check(512).unwrap(),
            Some(header(true, 8))
        );
        assert_eq!(
            raw([MAGIC, 0, 1, 8]).check(512).unwrap(),
            Some(header(false, 8))
        );
    }

    #[test]
    fn foreign_headers_are_refused_by_name() {
        let refusal = |words, block| raw(words).check(block).unwrap_err().to_string();
        assert!(refusal([0x1234, 1, 1, 8], 512).contains("0x00001234"));
        for sectors in [0, 3, (1 << 21) + 1, 1 << 22, u32::MAX] {
            assert!(refusal([MAGIC, 1, 1, sectors], 512).contains(&sectors.to_string()));
        }
        assert!(refusal([MAGIC, 1, 1, 4], 4096).contains("2 KiB"));
        assert!(refusal([MAGIC, 1, 2, 8], 512).contains("version 2"));
        // The chunk size is looked at before the version, both before `valid`.
        assert!(refusal([MAGIC, 0, 2, 3], 512).contains("chunk size"));
        assert!(refusal([MAGIC, 0, 2, 8], 512).contains("version 2"));
    }

    #[test]
    fn the_largest_chunk_is_one_gib() {
        assert!(raw([MAGIC, 1, 1, 1 << 21]).check(4096).unwrap().is_some());
    }
}
