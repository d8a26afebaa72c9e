//! The sizes of I/O that a disk demands, and those that suit it.

use crate::units::SECTOR_SHIFT;

/// Sizes in bytes. `logical`, `physical` and `discard_granularity` are powers of two,
/// and each of the others is a multiple of `logical`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Logical block size: requests must be multiples of it. 512 ..= 32768.
    pub logical: u32,
    /// Physical block size, at least `logical`: smaller writes cost more.
    pub physical: u32,
    /// Where the first physical block begins; less than `physical`.
    pub alignment_offset: u32,
    /// The least size of a request that does not cost extra, at least `physical`.
    pub min_io: u32,
    /// The best size of a request; 0: none is better than another.
    pub opt_io: u32,
    /// The unit in which space can be given back, at least `logical`.
    pub discard_granularity: u32,
}

impl Topology {
    /// A disk that has blocks of `size` bytes and nothing else to say.
    pub const fn of_blocks(size: u32) -> Self {
        Self {
            logical: size,
            physical: size,
            alignment_offset: 0,
            min_io: size,
            opt_io: 0,
            discard_granularity: size,
        }
    }

    /// log2 of the logical blocks in a physical one.
    pub fn physical_exponent(&self) -> u8 {
        let blocks = self.physical.checked_div(self.logical).unwrap_or(1);
        u8::try_from(blocks.checked_ilog2().unwrap_or(0)).unwrap_or(0)
    }

    /// `bytes` in logical blocks; 0 if the field cannot hold that.
    fn blocks<T: TryFrom<u32> + Default>(&self, bytes: u32) -> T {
        let blocks = bytes.checked_div(self.logical).unwrap_or(0);
        T::try_from(blocks).unwrap_or_default()
    }

    /// `alignment_offset` as the configuration space has it.
    pub fn alignment_blocks(&self) -> u8 {
        self.blocks(self.alignment_offset)
    }

    /// `min_io` as the configuration space has it.
    pub fn min_io_blocks(&self) -> u16 {
        self.blocks(self.min_io)
    }

    /// `opt_io` as the configuration space has it.
    pub fn opt_io_blocks(&self) -> u32 {
        self.blocks(self.opt_io)
    }

    /// `discard_granularity` in sectors.
    pub const fn discard_alignment(&self) -> u32 {
        self.discard_granularity >> SECTOR_SHIFT
    }
}
