//! Marking a store invalid whatever state it is in, so that nobody takes it for
//! a snapshot of this origin again.

use std::path::{Path, PathBuf};

use super::error::CowError;
use super::inspect::{OriginFacts, storage_of};
use crate::io::{BlockFile, Direct, Errno, Identity, OpenOptions};
use crate::store::{HEADER_BYTES, RawHeader, VALID_WORD};

/// How a COW is opened that will hold no data any more.
pub const TO_MARK: OpenOptions = OpenOptions {
    read_only: false,
    direct: Direct::Off,
    lock: crate::io::Lock::Exclusive,
    create: None,
    sparse: false,
    keep_space: true,
    guard_size: true,
    any_size: true,
};

/// The COW of a snapshot that is to be given up.
#[derive(Debug)]
pub enum ToMark {
    /// Nothing of the snapshot is there: why.
    Absent(String),
    Open(BlockFile),
}

/// Opens and locks what is left of the store at `path`. What belongs to the
/// origin or to another snapshot by now is not this one's any more.
///
/// # Errors
/// It is there and cannot be opened.
pub fn open(
    path: &Path,
    origin: &OriginFacts,
    used: &[(String, Identity)],
) -> Result<ToMark, CowError> {
    let Some(identity) = storage_of(path) else {
        return Ok(ToMark::Absent("its COW is not there".into()));
    };
    if identity == origin.identity {
        return Ok(ToMark::Absent("its COW is the origin by now".into()));
    }
    if let Some((by, _)) = used.iter().find(|(_, i)| *i == identity) {
        return Ok(ToMark::Absent(format!("its COW belongs to {by} by now")));
    }
    BlockFile::open(path, TO_MARK)
        .map(ToMark::Open)
        .map_err(CowError::Open)
}

/// Whatever the file holds, no header in it says valid when this returns,
/// durably. A store that is not there, or is another program's, is left alone.
///
/// # Errors
/// The header says valid, or cannot be read, and cannot be written.
pub fn mark(file: &BlockFile) -> Result<(), CowError> {
    let failed = |why| CowError::NotMarked {
        path: PathBuf::from(file.path()),
        why,
    };
    let (bytes, there) = file.read_head::<HEADER_BYTES>().map_err(failed)?;
    let zeroes = match RawHeader::decode(bytes).says_valid() {
        true => VALID_WORD.end.min(there).saturating_sub(VALID_WORD.start),
        // It may be a dead process's writing, and not durable yet.
        false => 0,
    };
    let zeroes = [0; 4].get(..zeroes).unwrap_or_default();
    file.overwrite_durably(VALID_WORD.start, zeroes)
        .map_err(failed)
}

/// The header as far as it is there.
pub fn read(file: &BlockFile) -> Result<RawHeader, Errno> {
    let (bytes, _) = file.read_head::<HEADER_BYTES>()?;
    Ok(RawHeader::decode(bytes))
}
