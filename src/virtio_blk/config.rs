//! The configuration space.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    BlkDevice, MAX_DISCARD_RANGES, MAX_WRITE_ZEROES_RANGES, MAX_WRITE_ZEROES_SECTORS, SEG_MAX,
    feature,
};

/// Bytes of `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;

const CAPACITY: usize = 0;
const SEG_MAX_OFFSET: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_EXPONENT: usize = 24;
const ALIGNMENT_OFFSET: usize = 25;
const MIN_IO: usize = 26;
const OPT_IO: usize = 28;
const WRITEBACK: usize = 32;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// cloud-hypervisor up to v50 reads the configuration space at this offset, where it
/// begins in the virtio-mmio register layout.
const MMIO_OFFSET: u32 = 0x100;

/// The configuration space of one disk. It outlives connections, because a front end that
/// reconnects expects the write-cache mode that it has set before.
#[derive(Debug)]
pub struct ConfigSpace {
    device: BlkDevice,
    writeback: AtomicBool,
}

/// A write to the configuration space that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{len} bytes at offset {offset} of the configuration space cannot be written, only the writeback byte at {WRITEBACK}"
)]
pub struct ReadOnlyField {
    pub offset: u32,
    pub len: usize,
}

impl ConfigSpace {
    /// The write cache is on at first.
    pub const fn new(device: BlkDevice) -> Self {
        Self {
            device,
            writeback: AtomicBool::new(true),
        }
    }

    /// Whether the write cache is on, as the driver sees it.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    pub const fn device(&self) -> &BlkDevice {
        &self.device
    }

    /// All fields that exist.
    pub fn bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        put(
            &mut bytes,
            CAPACITY,
            &self.device.capacity.sectors().to_le_bytes(),
        );
        put(&mut bytes, SEG_MAX_OFFSET, &SEG_MAX.to_le_bytes());
        let topology = &self.device.topology;
        put(&mut bytes, BLK_SIZE, &topology.logical.to_le_bytes());
        put(
            &mut bytes,
            PHYSICAL_EXPONENT,
            &[topology.physical_exponent()],
        );
        put(&mut bytes, ALIGNMENT_OFFSET, &[topology.alignment_blocks()]);
        put(&mut bytes, MIN_IO, &topology.min_io_blocks().to_le_bytes());
        put(&mut bytes, OPT_IO, &topology.opt_io_blocks().to_le_bytes());
        let writeback = u8::from(self.writeback());
        put(&mut bytes, WRITEBACK, &[writeback]);
        put(
            &mut bytes,
            NUM_QUEUES,
            &self.device.num_queues.to_le_bytes(),
        );
        self.put_zeroing(&mut bytes);
        bytes
    }

    /// The fields of DISCARD and WRITE_ZEROES, if these are offered.
    fn put_zeroing(&self, bytes: &mut [u8; CONFIG_LEN]) {
        let device = &self.device;
        if device.discards() {
            for (at, value) in [
                (MAX_DISCARD, device.max_discard_sectors),
                (MAX_DISCARD_SEG, MAX_DISCARD_RANGES),
                (DISCARD_ALIGNMENT, device.topology.discard_alignment()),
            ] {
                put(bytes, at, &value.to_le_bytes());
            }
        }
        if !device.read_only {
            for (at, value) in [
                (MAX_WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS),
                (MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_RANGES),
            ] {
                put(bytes, at, &value.to_le_bytes());
            }
            put(bytes, WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
    }

    /// `size` bytes from `offset`; zeroes where there are no fields. The caller
    /// bounds `size` (the protocol does, at 4 KiB).
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let offset = offset.checked_sub(MMIO_OFFSET).unwrap_or(offset);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(0);
        let mut out = vec![0; size];
        let bytes = self.bytes();
        for (to, from) in out.iter_mut().zip(bytes.iter().skip(offset)) {
            *to = *from;
        }
        out
    }

    /// What a write to the configuration space makes of the write cache (0: write-through,
    /// else write-back), whose byte is the only field that can be written.
    pub fn asked_writeback(offset: u32, data: &[u8]) -> Result<bool, ReadOnlyField> {
        let place = offset.checked_sub(MMIO_OFFSET).unwrap_or(offset);
        match data {
            [value] if usize::try_from(place) == Ok(WRITEBACK) => Ok(*value != 0),
            _ => Err(ReadOnlyField {
                offset,
                len: data.len(),
            }),
        }
    }

    /// Whether writes must be durable when they complete, for a driver that
    /// acknowledged `features`: it cannot flush, or it turned the cache off.
    pub fn write_through(&self, features: u64) -> bool {
        let flush = features & feature::FLUSH != 0;
        let wce = features & feature::CONFIG_WCE != 0;
        if wce { !self.writeback() } else { !flush }
    }
}

fn put(bytes: &mut [u8; CONFIG_LEN], offset: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Capacity, Topology};
    use super::*;

    fn config() -> ConfigSpace {
        ConfigSpace::new(BlkDevice {
            capacity: Capacity::new(0x1122_3344_5566),
            topology: Topology {
                logical: 4096,
                physical: 16384,
                alignment_offset: 8192,
                min_io: 65536,
                opt_io: 1 << 20,
                discard_granularity: 32768,
            },
            read_only: false,
            serial: "disk0".into(),
            num_queues: 3,
            max_discard_sectors: 0x0001_0000,
        })
    }

    #[test]
    fn fields_lie_where_the_virtio_specification_puts_them() {
        let bytes = config().read(0, 60);
        assert_eq!(
            bytes.get(0..8),
            Some(&0x1122_3344_5566_u64.to_le_bytes()[..])
        );
        assert_eq!(bytes.get(12..16), Some(&126_u32.to_le_bytes()[..]));
        assert_eq!(bytes.get(20..24), Some(&4096_u32.to_le_bytes()[..]));
        assert_eq!(bytes.get(24..26), Some(&[2, 2][..]));
        assert_eq!(bytes.get(26..28), Some(&16_u16.to_le_bytes()[..]));
        assert_eq!(bytes.get(28..32), Some(&256_u32.to_le_bytes()[..]));
        assert_eq!(bytes.get(32), Some(&1));
        assert_eq!(bytes.get(34..36), Some(&3_u16.to_le_bytes()[..]));
        for (at, value) in [(36, 65536_u32), (40, 32), (44, 64), (48, 8192), (52, 8)] {
            assert_eq!(
                bytes.get(at..at + 4),
                Some(&value.to_le_bytes()[..]),
                "{at}"
            );
        }
        assert_eq!(bytes.get(56..60), Some(&[1, 0, 0, 0][..]));
    }

    #[test]
    fn what_is_not_offered_has_no_limits_either() {
        let fields = |change: fn(&mut BlkDevice)| {
            let mut device = config().device().clone();
            change(&mut device);
            let bytes = ConfigSpace::new(device).bytes();
            let some = |from, to| {
                bytes
                    .get(from..to)
                    .is_some_and(|f| f.iter().any(|b| *b != 0))
            };
            (some(36, 48), some(48, 57))
        };
        assert_eq!(fields(|d| d.max_discard_sectors = 0), (false, true));
        assert_eq!(fields(|d| d.read_only = true), (false, false));
    }

    #[test]
    fn any_window_has_the_size_asked_for() {
        let config = config();
        let whole = config.read(0, 4096);
        assert_eq!(whole.len(), 4096);
        for (offset, size) in [(0, 1), (7, 3), (33, 5), (59, 4), (60, 8), (255, 1)] {
            let start = usize::try_from(offset).unwrap();
            let end = start + usize::try_from(size).unwrap();
            assert_eq!(
                config.read(offset, size),
                whole.get(start..end).unwrap(),
                "{offset}+{size}"
            );
        }
        assert_eq!(config.read(u32::MAX, 2), [0, 0]);
    }

    #[test]
    fn the_offset_of_old_cloud_hypervisors_is_understood() {
        let config = config();
        assert_eq!(config.read(0x100, 60), config.read(0, 60));
        assert_eq!(config.read(0x100 + 20, 4), 4096_u32.to_le_bytes());
    }

    #[test]
    fn only_the_writeback_byte_can_be_written() {
        let config = config();
        for (offset, data) in [
            (0, &[0; 8][..]),
            (32, &[0; 2]),
            (31, &[0]),
            (33, &[0]),
            (32, &[]),
        ] {
            assert_eq!(
                ConfigSpace::asked_writeback(offset, data),
                Err(ReadOnlyField {
                    offset,
                    len: data.len()
                })
            );
        }
        for (value, byte) in [(0, 0), (7, 1), (0, 0), (1, 1)] {
            let on = ConfigSpace::asked_writeback(32, &[value]).unwrap();
            config.set_writeback(on);
            assert_eq!(config.read(32, 1), [byte]);
        }
        assert_eq!(ConfigSpace::asked_writeback(0x120, &[0]), Ok(false));
    }

    #[test]
    fn a_driver_that_cannot_flush_gets_write_through() {
        let config = config();
        let (flush, wce) = (feature::FLUSH, feature::CONFIG_WCE);
        assert!(config.write_through(0));
        assert!(!config.write_through(flush));
        assert!(!config.write_through(flush | wce));
        config.set_writeback(false);
        assert!(config.write_through(flush | wce));
        assert!(!config.write_through(flush), "the byte is not the driver's");
    }
}
