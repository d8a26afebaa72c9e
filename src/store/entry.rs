//! One entry of the log, and a unit of an area in bytes.

use std::ops::Range;

use super::layout::ENTRY_BYTES;

/// One exception: origin chunk `old` is kept in COW chunk `new`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub old: u64,
    pub new: u64,
}

impl Entry {
    /// The 16 bytes on disk.
    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        (u128::from(self.old) | (u128::from(self.new) << 64)).to_le_bytes()
    }

    /// Reads 16 bytes; `None` for the terminator (new chunk 0), whose old chunk
    /// means nothing.
    pub fn from_bytes(bytes: [u8; ENTRY_BYTES]) -> Option<Self> {
        let both = u128::from_le_bytes(bytes);
        let low = |value: u128| u64::try_from(value & u128::from(u64::MAX)).unwrap_or_default();
        let entry = Self {
            old: low(both),
            new: low(both >> 64),
        };
        (entry.new != 0).then_some(entry)
    }
}

/// A unit of `bytes` bytes with `slots`, as `log` says; what `log` does not know
/// is zero.
pub fn encode(slots: Range<usize>, bytes: usize, log: impl Fn(usize) -> Option<Entry>) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes);
    for slot in slots {
        data.extend_from_slice(&log(slot).map_or([0; ENTRY_BYTES], Entry::to_bytes));
    }
    data.resize(bytes, 0);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_two_little_endian_words() {
        let entry = Entry {
            old: 0x0102,
            new: 0x0a0b_0000_0000_0003,
        };
        let bytes = entry.to_bytes();
        assert_eq!(
            bytes,
            [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0x0b, 0x0a]
        );
        assert_eq!(Entry::from_bytes(bytes), Some(entry));
    }

    #[test]
    fn only_new_chunk_zero_terminates() {
        let zero_old = Entry { old: 0, new: 2 };
        assert_eq!(Entry::from_bytes(zero_old.to_bytes()), Some(zero_old));
        assert_eq!(Entry::from_bytes(Entry { old: 7, new: 0 }.to_bytes()), None);
    }
}
