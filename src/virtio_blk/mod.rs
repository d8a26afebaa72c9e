//! virtio-blk: the requests of a guest and the answers to it. Handles descriptor chains
//! and the configuration space, without sockets, threads or disks.

pub mod chain_end;
pub mod config;
pub mod request;
mod topology;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use chain_end::last_written_byte;
pub use config::ConfigSpace;
pub use request::{Action, BlkRequest, Refused, parse};
pub use topology::Topology;

/// Bytes of the identifier that `VIRTIO_BLK_T_GET_ID` returns.
pub const ID_LEN: usize = 20;

/// Most data segments that a request should have, as the configuration space says: what
/// fits into a ring of 128 beside header and status.
pub const SEG_MAX: u32 = 126;

/// Most sectors of one WRITE_ZEROES (4 MiB): it may cost as much as a write of that
/// length.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 8192;

/// Most sectors of one DISCARD of the origin (32 MiB): each of its chunks is looked up.
pub const MAX_DISCARD_SECTORS: u32 = 65536;

/// Ranges that a DISCARD may have. Drivers collect what a file system gives back in many
/// small pieces.
pub const MAX_DISCARD_RANGES: u32 = 32;

/// Ranges that a WRITE_ZEROES may have: together 32 MiB at most.
pub const MAX_WRITE_ZEROES_RANGES: u32 = 8;

/// Feature bits of virtio-blk that are offered or checked.
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The size of a disk in sectors, which may grow while guests use the disk. All clones show
/// the same size.
#[derive(Clone, Debug)]
pub struct Capacity(Arc<AtomicU64>);

impl Capacity {
    pub fn new(sectors: u64) -> Self {
        Self(Arc::new(AtomicU64::new(sectors)))
    }

    pub fn sectors(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub fn set(&self, sectors: u64) {
        self.0.store(sectors, Ordering::Release);
    }
}

/// What a guest sees of one disk.
#[derive(Clone, Debug)]
pub struct BlkDevice {
    pub capacity: Capacity,
    pub topology: Topology,
    pub read_only: bool,
    /// Answer to GET_ID; bytes beyond [`ID_LEN`] are cut off.
    pub serial: String,
    /// Request queues, as the configuration space tells the driver.
    pub num_queues: u16,
    /// Most sectors in one DISCARD; 0: DISCARD is not offered. A read-only disk never
    /// offers it.
    pub max_discard_sectors: u32,
}

impl BlkDevice {
    /// The virtio-blk feature bits of this device.
    pub fn features(&self) -> u64 {
        let always = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH
            | feature::CONFIG_WCE
            | feature::MQ;
        if self.read_only {
            return always | feature::RO;
        }
        let discard = if self.discards() { feature::DISCARD } else { 0 };
        always | feature::WRITE_ZEROES | discard
    }

    /// Whether DISCARD is offered.
    pub const fn discards(&self) -> bool {
        !self.read_only && self.max_discard_sectors > 0
    }

    /// The serial as GET_ID returns it: padded with zeroes.
    pub fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        id
    }
}

/// The status byte that ends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkStatus {
    Ok,
    IoErr,
    Unsupported,
}

impl BlkStatus {
    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 1,
            Self::Unsupported => 2,
        }
    }
}
