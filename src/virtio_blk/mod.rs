//! virtio-blk: what a guest may say and what it is told. Knows descriptor
//! chains and the configuration space; nothing of sockets, threads or disks.

pub mod config;
pub mod request;

pub use config::ConfigSpace;
pub use request::{Action, BlkRequest, Refused, parse};

/// Bytes of the identifier that `VIRTIO_BLK_T_GET_ID` returns.
pub const ID_LEN: usize = 20;

/// Most data segments that a request should have, as told to the driver: what
/// fits a ring of 128 beside header and status.
pub const SEG_MAX: u32 = 126;

/// Feature bits of virtio-blk that are offered or looked at.
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
}

/// What a guest sees of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkDevice {
    /// Size in sectors.
    pub capacity_sectors: u64,
    /// Logical block size in bytes: a power of two in 512 ..= 65536. Requests
    /// must be aligned to it.
    pub block_size: u32,
    pub read_only: bool,
    /// Answer to GET_ID; bytes beyond [`ID_LEN`] are cut off.
    pub serial: String,
    /// Request queues, as the configuration space tells the driver.
    pub num_queues: u16,
}

impl BlkDevice {
    /// The virtio-blk feature bits of this device.
    pub fn features(&self) -> u64 {
        let always = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::CONFIG_WCE
            | feature::MQ;
        if self.read_only {
            always | feature::RO
        } else {
            always
        }
    }

    /// The serial as GET_ID gives it: padded with zeroes.
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
