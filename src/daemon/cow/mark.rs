//! Marking a store invalid whatever state it is in, so that it cannot be mistaken for a
//! snapshot of this origin again.

use std::path::{Path, PathBuf};

use super::error::CowError;
use super::origin::OriginFacts;
use crate::daemon::identity::storage_of;
use crate::io::{BlockFile, Direct, Errno, Identity, Lock, OpenOptions};
use crate::store::{HEADER_BYTES, RawHeader, VALID_WORD};

/// How a COW is opened that is only marked invalid.
pub const TO_MARK: OpenOptions = OpenOptions {
    read_only: false,
    direct: Direct::Off,
    lock: Lock::Exclusive,
    create: None,
    sparse: false,
    keep_space: true,
    guard_size: true,
    any_size: true,
};

/// The COW of a snapshot that is to be forgotten.
#[derive(Debug)]
pub enum ToMark {
    /// Nothing is left of the snapshot, with the reason.
    Absent(String),
    Open(BlockFile),
}

/// Opens and locks what is left of the store at `path`, unless the path now leads to the
/// origin or to another snapshot's COW.
///
/// # Errors
/// The COW exists and cannot be opened.
pub fn open(
    path: &Path,
    origin: &OriginFacts,
    used: &[(String, Identity)],
    lock: Lock,
) -> Result<ToMark, CowError> {
    let Some(identity) = storage_of(path) else {
        return Ok(ToMark::Absent("its COW does not exist".into()));
    };
    if identity == origin.identity {
        return Ok(ToMark::Absent(
            "its COW path leads to the origin now".into(),
        ));
    }
    if let Some((by, _)) = used.iter().find(|(_, i)| *i == identity) {
        return Ok(ToMark::Absent(format!(
            "its COW belongs to snapshot {by} now"
        )));
    }
    let options = OpenOptions { lock, ..TO_MARK };
    BlockFile::open(path, options)
        .map(ToMark::Open)
        .map_err(CowError::Open)
}

/// Marks the store in the file invalid, durably. A file without a store, or with another
/// program's data, is left alone.
///
/// # Errors
/// The header says valid or cannot be read, and it cannot be written.
pub fn mark(file: &BlockFile) -> Result<(), CowError> {
    let failed = |why| CowError::NotMarked {
        path: PathBuf::from(file.path()),
        why,
    };
    let (bytes, there) = file.read_head::<HEADER_BYTES>().map_err(failed)?;
    let zeroes = match RawHeader::decode(bytes).says_valid() {
        true => VALID_WORD.end.min(there).saturating_sub(VALID_WORD.start),
        // A process that died may have written this, and it may not be durable yet.
        false => 0,
    };
    let zeroes = [0; 4].get(..zeroes).unwrap_or_default();
    file.overwrite_durably(VALID_WORD.start, zeroes)
        .map_err(failed)
}

/// The store's header, with zeroes for what is behind the end of the file.
pub fn read(file: &BlockFile) -> Result<RawHeader, Errno> {
    let (bytes, _) = file.read_head::<HEADER_BYTES>()?;
    Ok(RawHeader::decode(bytes))
}
