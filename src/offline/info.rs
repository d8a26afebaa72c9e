//! Describing a COW file without changing it.

use std::path::Path;

use serde::Serialize;

use super::{Known, OfflineError, Opened};
use crate::io::{BlockFile, OpenOptions, blocking};
use crate::store::{self, LoadParams, Loaded, StoreError, ValidStore};
use crate::units::SECTOR_SIZE;

/// Whether a store can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreState {
    Valid,
    /// Invalidated permanently: a chunk could not be kept.
    Invalid,
    /// Begins with zeroes: no store was made there yet.
    New,
    /// Not a store, or one that contradicts itself.
    Corrupt,
}

/// The header as it is in the file, not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderFields {
    pub magic: u32,
    pub valid: u32,
    pub version: u32,
    pub chunk_sectors: u32,
}

/// How a valid store is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    pub chunk_sectors: u64,
    pub exceptions: u64,
    /// Most exceptions that the store can hold.
    pub capacity: u64,
    pub areas_used: u64,
    pub areas: u64,
    pub allocated_sectors: u64,
    pub total_sectors: u64,
    pub metadata_sectors: u64,
    /// Bytes after the log's end that are not zero; they are cleared before the next use.
    pub stale_bytes: u64,
    /// Entries that repeat another, as a removal that was cut short leaves
    /// them; dropped before the next use.
    pub repeated_entries: u64,
}

/// What `info` found: a stable interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    pub cow: String,
    /// Bytes of the file or device.
    pub size: u64,
    pub state: StoreState,
    pub header: HeaderFields,
    /// `null` unless the store is valid.
    pub contents: Option<Contents>,
    /// What is wrong; `null` if nothing is.
    pub problem: Option<String>,
}

/// Reads the store at `cow`. No process may write it meanwhile. `known`: what a state file
/// records of it.
///
/// # Errors
/// The file cannot be opened or read. A file without a valid store is not an error; the
/// [`Info`] describes it.
pub fn info(cow: &Path, known: Option<&Known>) -> Result<Info, OfflineError> {
    let file = BlockFile::open(cow, OpenOptions::read_only())?;
    let size = file.size();
    let mut opened = Opened::new(cow, file)?;
    let header = read_header(cow, &mut opened)?;
    let params = LoadParams {
        cow_sectors: opened.sectors,
        origin_sectors: None,
        unit: opened.unit,
        block_bytes: opened.unit as u64,
    };
    let forbidden = known.and_then(Known::forbids);
    let loaded = store::load(&mut opened.disk, opened.device, &params);
    let (state, contents, problem) = match loaded {
        Ok(Loaded::Valid(_)) if forbidden.is_some() => (StoreState::Invalid, None, forbidden),
        Ok(Loaded::New) => (StoreState::New, None, None),
        Ok(Loaded::Invalid { .. }) => (StoreState::Invalid, None, Some(INVALID.to_owned())),
        Ok(Loaded::Valid(store)) => (StoreState::Valid, Some(contents(&store)), None),
        Err(source @ StoreError::Io { .. }) => return Err(OfflineError::store(cow)(source)),
        Err(error) => (StoreState::Corrupt, None, Some(error.to_string())),
    };
    Ok(Info {
        cow: cow.display().to_string(),
        size,
        state,
        header,
        contents,
        problem,
    })
}

const INVALID: &str = "the store was invalidated: it ran full, could not be written, or its snapshot was \
                       removed, so it misses chunks; remove it, or clear its first chunk to use the space again";

/// The first words of the file.
pub(super) fn read_header(cow: &Path, opened: &mut Opened) -> Result<HeaderFields, OfflineError> {
    let len = opened
        .unit
        .min(usize::try_from(opened.sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX));
    let buffer = blocking::read_exact(&mut opened.disk, opened.device, 0, len)
        .map_err(|errno| OfflineError::io(cow, "read its header", errno))?;
    let words = buffer.as_slice().as_chunks::<4>().0;
    let word = |index: usize| words.get(index).copied().map_or(0, u32::from_le_bytes);
    Ok(HeaderFields {
        magic: word(0),
        valid: word(1),
        version: word(2),
        chunk_sectors: word(3),
    })
}

fn contents(store: &ValidStore) -> Contents {
    let log = store.metadata();
    let (layout, usage) = (log.layout(), log.usage());
    let copies = store.copies_behind_end();
    Contents {
        chunk_sectors: layout.chunk_size.sectors(),
        exceptions: log.entries().len() as u64,
        capacity: layout.capacity(log.cow_sectors()),
        areas_used: layout.area_of(log.entries().len()) + 1,
        areas: layout.areas(log.cow_sectors()),
        allocated_sectors: usage.allocated,
        total_sectors: usage.total,
        metadata_sectors: usage.metadata,
        stale_bytes: match store.junk() {
            Some(junk) if copies == 0 => junk.end - junk.start,
            Some(_) | None => 0,
        },
        repeated_entries: store.duplicates().len() as u64 + copies,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A store of 4 KiB chunks in 64 chunks, with these entries.
    fn write_store(entries: &[(u64, u64)]) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let mut bytes = vec![0u8; 64 * 4096];
        bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
        for (slot, (old, new)) in entries.iter().enumerate() {
            let at = 4096 + slot * 16;
            bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        std::fs::write(&cow, &bytes).unwrap();
        (dir, cow, bytes)
    }

    #[test]
    fn a_valid_store_is_counted_as_dmsetup_counts() {
        let (_dir, cow, bytes) = write_store(&[(7, 2), (0, 3), (9, 4)]);
        let info = info(&cow, None).unwrap();
        assert_eq!((info.state, info.problem), (StoreState::Valid, None));
        assert_eq!(
            info.header,
            HeaderFields {
                magic: 0x7041_6e53,
                valid: 1,
                version: 1,
                chunk_sectors: 8
            }
        );
        let contents = info.contents.unwrap();
        assert_eq!((contents.exceptions, contents.capacity), (3, 62));
        assert_eq!((contents.areas_used, contents.areas), (1, 1));
        assert_eq!(
            (
                contents.allocated_sectors,
                contents.total_sectors,
                contents.metadata_sectors
            ),
            (40, 512, 16)
        );
        assert_eq!(std::fs::read(&cow).unwrap(), bytes, "info must not write");
    }

    #[test]
    fn what_is_wrong_is_told_and_is_no_error() {
        let (_dir, cow, _) = write_store(&[(7, 2), (7, 3)]);
        let twice = info(&cow, None).unwrap();
        assert_eq!(twice.state, StoreState::Corrupt);
        assert!(twice.problem.unwrap().contains("origin chunk 7"));

        let (_dir, cow, mut bytes) = write_store(&[]);
        bytes[4] = 0;
        std::fs::write(&cow, &bytes).unwrap();
        let invalid = info(&cow, None).unwrap();
        assert_eq!(
            (invalid.state, invalid.header.valid),
            (StoreState::Invalid, 0)
        );

        bytes[..4].copy_from_slice(b"QFI\xfb");
        std::fs::write(&cow, &bytes).unwrap();
        assert_eq!(info(&cow, None).unwrap().state, StoreState::Corrupt);

        bytes[..4].fill(0);
        std::fs::write(&cow, &bytes).unwrap();
        let new = info(&cow, None).unwrap();
        assert_eq!((new.state, new.problem), (StoreState::New, None));
    }

    #[test]
    fn remains_of_an_interrupted_removal_are_counted_not_condemned() {
        let (_dir, cow, _) = write_store(&[(7, 2), (9, 3), (7, 2)]);
        let info = info(&cow, None).unwrap();
        assert_eq!(info.state, StoreState::Valid);
        let contents = info.contents.unwrap();
        assert_eq!((contents.exceptions, contents.repeated_entries), (2, 1));
    }

    #[test]
    fn any_header_bytes_give_an_answer() {
        let (_dir, cow, mut bytes) = write_store(&[(1, 2)]);
        bytes.truncate(512);
        for chunk in [0u32, 3, 8, 1 << 21, 1 << 31, u32::MAX] {
            bytes[12..16].copy_from_slice(&chunk.to_le_bytes());
            std::fs::write(&cow, &bytes).unwrap();
            assert_eq!(
                info(&cow, None).unwrap().state,
                StoreState::Corrupt,
                "{chunk}"
            );
        }
    }
}
