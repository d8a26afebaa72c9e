//! The properties of the origin that stores have to fit.

use crate::io::Identity;

#[derive(Clone, Copy, Debug)]
pub struct OriginFacts {
    pub identity: Identity,
    pub sectors: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    pub read_only: bool,
}
