//! Why a COW cannot hold a snapshot, and what to do.

use std::path::PathBuf;

use crate::io::{Errno, OpenError};
use crate::size::{exact, in_words};
use crate::store::{RecordError, StoreError};

/// The messages explain the variants.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    #[error("COW {} is the origin itself: give the snapshot a file or device of its own", .0.display())]
    IsOrigin(PathBuf),
    #[error("COW {} is used by snapshot {by}: give each snapshot a file or device of its own", path.display())]
    Used { path: PathBuf, by: String },
    #[error("COW {} does not exist: give size= (or --size) to create it, or check the path", .0.display())]
    Missing(PathBuf),
    #[error(
        "COW {} exists with {}, not {}: leave the size out to use it as it is, or give another COW",
        path.display(), in_words(*has), in_words(*wanted)
    )]
    SizeDiffers {
        path: PathBuf,
        has: u64,
        wanted: u64,
    },
    #[error("COW {} does not exist", .0.display())]
    Gone(PathBuf),
    #[error("COW {} cannot be created: {} is not a directory; give a path in an existing one", path.display(), directory.display())]
    NoDirectory { path: PathBuf, directory: PathBuf },
    #[error("chunk size {}: must be a power of two from 512 bytes to 1 GiB", in_words(*.0))]
    ChunkSize(u64),
    #[error("COW {} has chunks of {}, not of {} as requested: leave the chunk size out, or give another COW", path.display(), in_words(*found), in_words(*asked))]
    ChunkSizeDiffers {
        path: PathBuf,
        asked: u64,
        found: u64,
    },
    #[error(
        "COW {} already holds a store, which does not belong to the current origin: remove the file (or clear its \
         first 4096 bytes) if it is not needed, or give another COW", .0.display()
    )]
    HoldsStore(PathBuf),
    #[error(
        "COW {} holds a store that was invalidated: remove the file (or clear its first 4096 bytes) so that a new \
         store can be made, or give another COW", .0.display()
    )]
    HoldsInvalid(PathBuf),
    #[error(
        "COW {} is not empty: clear its first 4096 bytes (or remove the file) if its content is not needed, or give \
         another COW", .0.display()
    )]
    NotEmpty(PathBuf),
    #[error("COW {} does not hold its store any more: the header is missing", .0.display())]
    StoreGone(PathBuf),
    #[error(
        "COW {} has {} and had {}: it was truncated, behind all data that it holds; enlarge it to that size \
         again (truncate -s {})", path.display(), in_words(*has), in_words(*had), exact(*had)
    )]
    Shrunk { path: PathBuf, has: u64, had: u64 },
    #[error(
        "COW {} has {} and had {}: it was truncated, and {holes}", path.display(), in_words(*has), in_words(*had)
    )]
    ShrunkWithHoles {
        path: PathBuf,
        has: u64,
        had: u64,
        holes: String,
    },
    #[error(
        "COW {} has {}, which a store cannot have: it was truncated. Enlarging it does not bring the lost data \
         back", path.display(), in_words(*has)
    )]
    OddSize { path: PathBuf, has: u64 },
    #[error(
        "COW {} has blocks of {}, and the origin has blocks of {}: the COW's blocks must not be \
         larger; put the COW into a file", path.display(), in_words(*cow), in_words(*origin)
    )]
    LargerBlocks {
        path: PathBuf,
        cow: u32,
        origin: u32,
    },
    #[error(
        "discard-passdown-origin requires discard-zeroes-cow: give both, or leave discard-passdown-origin out"
    )]
    PassdownAlone,
    #[error("discard-passdown-origin would change the origin, which is read-only: leave it out")]
    PassdownReadOnly,
    #[error(
        "COW {}: the descriptor that came with the request {why}: send one that was opened at this path, for reading \
         and writing", path.display()
    )]
    Given { path: PathBuf, why: &'static str },
    #[error(
        "COW {}: the daemon's user {user} may not open it, so that the next start of the daemon could not either: \
         give it to that user (chown {user} {}), or choose another place", path.display(), path.display()
    )]
    NotForDaemon { path: PathBuf, user: u32 },
    #[error(
        "COW {}: permission denied: {advice}; or use the command line, which opens a COW elsewhere for the daemon if it \
         runs as root or as the daemon's user (snapback snapshot, snapback rollback --keep)", path.display()
    )]
    Outside { path: PathBuf, advice: String },
    #[error("the header of COW {} cannot be marked invalid: {why}", path.display())]
    NotMarked { path: PathBuf, why: Errno },
    #[error("COW {0}")]
    Open(OpenError),
    #[error("COW {}: {source}", path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error(
        "{source} ({}). If the store is right as it is, remove that file and start with --accept-changes: what the \
         snapshot's guest wrote and did not flush before the last daemon died is lost then", record.display()
    )]
    Record {
        record: PathBuf,
        source: RecordError,
    },
    #[error(
        "the record of unflushed writes {} cannot be used: {source}; make it accessible, because it may list writes that \
         the snapshot's guest was told to be done", record.display()
    )]
    RecordIo {
        record: PathBuf,
        source: std::io::Error,
    },
}

impl CowError {
    /// The snapshot's own store does not exist any more.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Gone(_) | Self::IsOrigin(_) | Self::Used { .. } | Self::StoreGone(_)
        )
    }

    /// The device failed; the request itself is right, and possible.
    pub fn is_io(&self) -> bool {
        matches!(
            self,
            Self::Open(OpenError::Io { .. })
                | Self::Store {
                    source: StoreError::Io { .. },
                    ..
                }
        )
    }

    /// The request is wrong whatever the state of the volume is.
    pub fn is_bad_request(&self) -> bool {
        matches!(
            self,
            Self::ChunkSize(_)
                | Self::IsOrigin(_)
                | Self::Missing(_)
                | Self::Given { .. }
                | Self::NoDirectory { .. }
                | Self::PassdownAlone
                | Self::PassdownReadOnly
        )
    }
}
