//! Operations on a COW store without a daemon.

mod check;
mod create;
mod damage;
mod diff;
mod dump;
mod export;
mod info;
mod new_file;
mod read_ahead;
mod repair;
mod view;

use crate::size::in_words;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use check::{Check, check, check_showing};
pub use create::{CreateOptions, Created, create};
pub use damage::{Damage, DamageKind, Verdict};
pub use diff::{Change, Diff, DiffSummary};
pub use dump::{Dump, DumpEnd, Run};
pub use export::{ExportOptions, Exported, export, export_to};
pub use info::{Contents, HeaderFields, Info, StoreState, info};
pub use new_file::NewFile;
pub use repair::Repair;

use crate::io::{BlockFile, DeviceId, Devices, Errno, OpenError, ThreadDisk};
use crate::store::StoreError;

/// Reads under way at once.
const READS: u32 = 8;

/// What a state file records of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub state_file: PathBuf,
    pub snapshot: String,
    /// Bytes that the snapshot shows.
    pub length: u64,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The header is right.
    Kept,
    /// The snapshot is invalid, whatever the header says.
    Invalid,
    /// Its state was lost when its daemon ended; the header has no meaning.
    Transient,
}

impl Known {
    /// Why the store must not be used, if it must not.
    pub(crate) fn forbids(&self) -> Option<String> {
        let (name, file) = (&self.snapshot, self.state_file.display());
        match self.fate {
            Fate::Kept => None,
            Fate::Invalid => Some(format!(
                "snapshot {name} is invalid by {file}, whatever the header says: it misses chunks that nobody kept"
            )),
            Fate::Transient => Some(format!(
                "snapshot {name} is transient by {file}: what it was ended with its daemon"
            )),
        }
    }
}

/// Why an offline verb failed. Messages name the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{}: {source}", cow.display())]
    Store { cow: PathBuf, source: StoreError },
    #[error(
        "{}: not there, and without a size it cannot be made: give --size, or the path of a file \
         or device that exists",
        .0.display()
    )]
    SizeMissing(PathBuf),
    #[error(
        "{}: exists with {}, not {}: leave --size out to use it as it is, or choose another name",
        cow.display(),
        in_words(*has),
        in_words(*wanted)
    )]
    SizeDiffers { cow: PathBuf, has: u64, wanted: u64 },
    #[error(
        "{}: not empty (byte {offset} is not zero): choose another file, or say --force if nobody \
         needs what it holds",
        cow.display()
    )]
    NotEmpty { cow: PathBuf, offset: u64 },
    #[error(
        "{}: the store is invalid for good, so the snapshot shows nothing any more",
        .0.display()
    )]
    Invalid(PathBuf),
    #[error("{}: {why}", cow.display())]
    Forbidden { cow: PathBuf, why: String },
    #[error("{}: no store was made here yet; is it the right file?", .0.display())]
    New(PathBuf),
    #[error(
        "{} and {} are the same; give the disk as --origin and the snapshot's store as --cow",
        origin.display(), cow.display()
    )]
    SameFile { origin: PathBuf, cow: PathBuf },
    #[error(
        "{}: has {}, and the snapshot has {}; put the disk back as it was",
        origin.display(),
        in_words(*size),
        in_words(*length)
    )]
    OriginShort {
        origin: PathBuf,
        size: u64,
        length: u64,
    },
    #[error("{}: exists already; choose another name, nothing is overwritten", .0.display())]
    OutExists(PathBuf),
    #[error(
        "range {offset}:{len} does not lie within the snapshot, which has {}, or not on blocks of {}; \
         choose another",
        in_words(*size),
        in_words(*block)
    )]
    Range {
        offset: u64,
        len: u64,
        size: u64,
        block: u64,
    },
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
}

impl OfflineError {
    fn io(path: &Path, action: &'static str, errno: Errno) -> Self {
        let source = std::io::Error::from_raw_os_error(errno.0);
        Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    fn system(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    fn thread(path: &Path, source: std::io::Error) -> Self {
        Self::system(path, "start a thread to read it", source)
    }

    fn store(cow: &Path) -> impl FnOnce(StoreError) -> Self {
        let cow = cow.to_owned();
        move |source| Self::Store { cow, source }
    }
}

/// One open file, and the disk to access it.
struct Opened {
    disk: ThreadDisk,
    device: DeviceId,
    sectors: u64,
    /// Bytes that the device writes atomically.
    unit: usize,
    devices: Arc<Devices>,
}

impl Opened {
    fn file(&self) -> Option<Arc<BlockFile>> {
        self.devices.get(self.device)
    }

    fn new(path: &Path, file: BlockFile) -> Result<Self, OfflineError> {
        let (sectors, block_size) = (file.sectors(), file.block_size());
        let devices = Devices::new();
        let device = devices.add(file);
        let disk = ThreadDisk::new(Arc::clone(&devices), READS)
            .map_err(|source| OfflineError::thread(path, source))?;
        Ok(Self {
            disk,
            device,
            sectors,
            unit: usize::try_from(block_size).unwrap_or(4096).max(512),
            devices,
        })
    }
}
