//! Why a COW cannot hold a snapshot, and the way out.

use std::path::PathBuf;

use crate::io::{Errno, OpenError};
use crate::store::StoreError;

/// See the messages.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    #[error("COW {} is the origin itself: give the snapshot a file or device of its own", .0.display())]
    IsOrigin(PathBuf),
    #[error("COW {} is used by snapshot {by}: give each snapshot a file or device of its own", path.display())]
    Used { path: PathBuf, by: String },
    #[error("COW {} does not exist: give size= (or --size) to have it made, or check the path", .0.display())]
    Missing(PathBuf),
    #[error("COW {} is not there", .0.display())]
    Gone(PathBuf),
    #[error("COW {} cannot be made: {} is not a directory; give a path in one that exists", path.display(), directory.display())]
    NoDirectory { path: PathBuf, directory: PathBuf },
    #[error("chunk size {0} bytes: must be a power of two from 512 bytes to 1 GiB")]
    ChunkSize(u64),
    #[error("COW {} has chunks of {found} bytes, and {asked} were asked for: leave the chunk size out, or give another COW", path.display())]
    ChunkSizeDiffers {
        path: PathBuf,
        asked: u64,
        found: u64,
    },
    #[error(
        "COW {} already holds a store, which is no snapshot of the present origin: remove the file (or clear its \
         first 4096 bytes) if it is not needed, or give another COW", .0.display()
    )]
    HoldsStore(PathBuf),
    #[error(
        "COW {} holds a store that was invalidated: remove the file (or clear its first 4096 bytes) to have a new \
         store made, or give another COW", .0.display()
    )]
    HoldsInvalid(PathBuf),
    #[error(
        "COW {} is not empty: clear its first 4096 bytes (or remove the file) if its content is not needed, or give \
         another COW", .0.display()
    )]
    NotEmpty(PathBuf),
    #[error("COW {} does not hold the store any more: its header is gone", .0.display())]
    StoreGone(PathBuf),
    #[error(
        "COW {} has {has} bytes and had {had}: something cut it off, behind all that it keeps; enlarge it to {had} bytes \
         again (truncate -s {had})", path.display()
    )]
    Shrunk { path: PathBuf, has: u64, had: u64 },
    #[error(
        "COW {} has {has} bytes and had {had}: something cut it off, and {holes}", path.display()
    )]
    ShrunkWithHoles {
        path: PathBuf,
        has: u64,
        had: u64,
        holes: String,
    },
    #[error(
        "COW {} has {has} bytes, which is no size of a store: something cut it off. Making it longer does not bring back \
         what is lost", path.display()
    )]
    OddSize { path: PathBuf, has: u64 },
    #[error(
        "COW {} has blocks of {cow} bytes and the origin of {origin}: guests could not be served from it; put the \
         COW into a file", path.display()
    )]
    LargerBlocks {
        path: PathBuf,
        cow: u32,
        origin: u32,
    },
    #[error(
        "discard-passdown-origin depends on discard-zeroes-cow: ask for both, or leave discard-passdown-origin out"
    )]
    PassdownAlone,
    #[error("discard-passdown-origin would change the origin, which is read-only: leave it out")]
    PassdownReadOnly,
    #[error("the header of COW {} cannot be marked invalid: {why}", path.display())]
    NotMarked { path: PathBuf, why: Errno },
    #[error("COW {0}")]
    Open(OpenError),
    #[error("COW {}: {source}", path.display())]
    Store { path: PathBuf, source: StoreError },
}

impl CowError {
    /// The snapshot's own store is not there any more.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Gone(_) | Self::IsOrigin(_) | Self::Used { .. } | Self::StoreGone(_)
        )
    }

    /// The device failed, nothing that was asked is wrong.
    pub fn is_io(&self) -> bool {
        matches!(
            self,
            Self::Open(OpenError::Io { .. } | OpenError::NoSpace { .. })
                | Self::Store {
                    source: StoreError::Io { .. },
                    ..
                }
        )
    }

    /// What was asked cannot be right whatever the state of things.
    pub fn is_bad_request(&self) -> bool {
        matches!(
            self,
            Self::ChunkSize(_)
                | Self::IsOrigin(_)
                | Self::Missing(_)
                | Self::NoDirectory { .. }
                | Self::PassdownAlone
                | Self::PassdownReadOnly
        )
    }
}
