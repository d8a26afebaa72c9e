//! Whether a COW can hold a snapshot: it is opened, locked and examined, and nothing is
//! written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CowError;
use super::given::Given;
use super::mark as cow_mark;
use super::open::{Before, OpenCow};
use super::origin::OriginFacts;
use super::record::{Fate, RecordPlace, fate};
use super::size::{check_size, chunk_size, unit};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::identity::{UnflushedRecord, storage_of};
use crate::engine::Discards;
use crate::io::{BlockFile, Devices, Disk, Identity, Lock, OpenError, OpenOptions};
use crate::sandbox;
use crate::store::{self, FoundRecord, Listed, LoadParams, Loaded, StoreError, ValidStore};
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Chunk size of a new store in bytes, if none was asked for.
const CHUNK_BYTES: u64 = 4096;

/// How stores are opened. Space that was allocated for the store stays allocated.
pub fn store_options() -> OpenOptions {
    OpenOptions {
        keep_space: true,
        guard_size: true,
        ..OpenOptions::default()
    }
}

/// What a COW is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The store that the state file records.
    Known,
    /// The same, of a snapshot that is recorded as invalid, so that its content does not
    /// matter.
    KnownInvalid,
    /// Asked for by the options of a start: an existing store is loaded.
    AtStart,
    /// A new snapshot of a served origin: an existing store with entries is refused.
    New,
    /// A transient store that is made again on its former COW.
    Scratch,
}

#[derive(Debug)]
pub enum Found {
    /// Nothing: a file of this size in bytes is to be made.
    Absent {
        size: u64,
    },
    /// A file of no bytes, which is to have this size in bytes.
    Empty {
        file: BlockFile,
        size: u64,
    },
    /// An open device without a store, for a new one.
    Blank(OpenCow),
    Invalid(OpenCow, ChunkSize),
    /// With the writes that the last daemon acknowledged and the log may lack.
    Valid(OpenCow, Box<ValidStore>, Listed),
}

/// A COW that was examined; nothing is written yet.
#[derive(Debug)]
pub struct InspectedCow {
    pub(super) path: PathBuf,
    pub(super) store_type: StoreType,
    pub(super) chunk_size: ChunkSize,
    pub(super) discards: Discards,
    pub(super) found: Found,
    /// Entries may become durable at the guest's next flush.
    pub(super) defer_entries: bool,
    /// What looks suspicious, and is no reason to refuse.
    pub warning: Option<String>,
}

impl InspectedCow {
    /// Its snapshot can be valid.
    pub const fn is_valid(&self) -> bool {
        match self.found {
            Found::Absent { .. } | Found::Empty { .. } | Found::Blank(_) | Found::Valid(..) => true,
            Found::Invalid(..) => false,
        }
    }

    /// What became of the record of its store that the state file notes.
    pub fn fate(&self, noted: &UnflushedRecord) -> Fate {
        match &self.found {
            Found::Valid(open, store, _) => {
                let place = RecordPlace::of(open.file(), store.metadata().layout().chunk_size);
                fate(noted, place.as_ref().map_err(|why| *why))
            }
            Found::Absent { .. } | Found::Empty { .. } | Found::Blank(_) | Found::Invalid(..) => {
                Fate::Found
            }
        }
    }

    /// Defers no entries if the volume has no state file.
    pub fn remembered(mut self, by_a_state_file: bool) -> Self {
        if self.defer_entries && !by_a_state_file {
            self.defer_entries = false;
            tracing::warn!(cow = %self.path.display(), "its entries are not deferred: the volume has no state file, so \
                that the loss of a record would not be noticed");
        }
        self
    }

    /// It holds exceptions, which are right for one content of the origin only.
    pub fn holds_entries(&self) -> bool {
        match &self.found {
            Found::Valid(_, store, listed) => {
                !store.metadata().entries().is_empty() || !listed.is_empty()
            }
            Found::Absent { .. } | Found::Empty { .. } | Found::Blank(_) | Found::Invalid(..) => {
                false
            }
        }
    }
}

/// What discards by the snapshot's guest do.
fn discards(spec: &SnapshotSpec, origin: &OriginFacts) -> Result<Discards, CowError> {
    let discards = Discards {
        zeroes_cow: spec.discard_zeroes_cow == Some(true),
        passdown_origin: spec.discard_passdown_origin == Some(true),
    };
    if discards.passdown_origin && !discards.zeroes_cow {
        return Err(CowError::PassdownAlone);
    }
    if discards.passdown_origin && origin.read_only {
        return Err(CowError::PassdownReadOnly);
    }
    Ok(discards)
}

/// Examines whether the COW of `spec` can be used for `purpose`, and takes the lock. It is opened by
/// its path, if it was not given. `used`: the storage of the volume's other snapshots, by name.
pub fn inspect(
    spec: &SnapshotSpec,
    (purpose, lock, given): (Purpose, Lock, Option<&Given>),
    origin: &OriginFacts,
    used: &[(String, Identity)],
    devices: &Arc<Devices>,
    disk: &mut dyn Disk,
) -> Result<InspectedCow, CowError> {
    let path = PathBuf::from(&spec.cow);
    let discards = discards(spec, origin)?;
    let asked = spec.chunk_size.map(chunk_size).transpose()?;
    let default = chunk_size(CHUNK_BYTES.max(u64::from(origin.block_size)))?;
    let identity = storage_of(&path);
    if identity == Some(origin.identity) {
        return Err(CowError::IsOrigin(path));
    }
    if let Some((by, _)) = used.iter().find(|(_, i)| Some(*i) == identity) {
        let by = by.clone();
        return Err(CowError::Used { path, by });
    }
    let examination = Examination {
        spec,
        purpose,
        lock,
        given,
        origin,
        path: &path,
        asked,
        chunk_size: asked.unwrap_or(default),
    };
    let (found, warning) = match (identity, purpose) {
        (None, _) => (examination.absent()?, None),
        (Some(_), Purpose::KnownInvalid) => (examination.known_invalid(devices)?, None),
        (Some(_), Purpose::Known | Purpose::AtStart | Purpose::New | Purpose::Scratch) => {
            examination.existing(devices, disk)?
        }
    };
    let chunk_size = match &found {
        Found::Absent { .. } | Found::Empty { .. } | Found::Blank(_) => examination.chunk_size,
        Found::Invalid(_, chunk_size) => *chunk_size,
        Found::Valid(_, store, _) => store.metadata().layout().chunk_size,
    };
    Ok(InspectedCow {
        store_type: spec.store_type,
        chunk_size,
        discards,
        defer_entries: spec.defer_entries == Some(true),
        found,
        warning,
        path,
    })
}

/// One COW and what it is needed for.
struct Examination<'a> {
    spec: &'a SnapshotSpec,
    purpose: Purpose,
    lock: Lock,
    given: Option<&'a Given>,
    origin: &'a OriginFacts,
    path: &'a Path,
    /// The chunk size that was asked for.
    asked: Option<ChunkSize>,
    /// The chunk size of a new store.
    chunk_size: ChunkSize,
}

impl Examination<'_> {
    /// There is no file: may one be made?
    fn absent(&self) -> Result<Found, CowError> {
        let path = self.path.to_path_buf();
        let size = match (self.spec.size, self.purpose) {
            (Some(size), Purpose::AtStart | Purpose::New | Purpose::Scratch) => size,
            (_, Purpose::Known | Purpose::KnownInvalid) => return Err(CowError::Gone(path)),
            (None, Purpose::AtStart | Purpose::New | Purpose::Scratch) => {
                return Err(CowError::Missing(path));
            }
        };
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        if !directory.is_dir() {
            return Err(CowError::NoDirectory { path, directory });
        }
        self.check_size(size / SECTOR_SIZE)?;
        self.check_reachable()?;
        Ok(Found::Absent { size })
    }

    /// The store of a snapshot that is recorded as invalid, whatever is in it.
    fn known_invalid(&self, devices: &Arc<Devices>) -> Result<Found, CowError> {
        let options = OpenOptions {
            lock: self.lock,
            ..cow_mark::TO_MARK
        };
        let file = BlockFile::open(self.path, options).map_err(CowError::Open)?;
        let block = u64::from(file.block_size().max(self.origin.block_size));
        let header = cow_mark::read(&file).ok().map(|raw| raw.check(block));
        let chunk_size = match header {
            Some(Ok(Some(header))) => header.chunk_size,
            Some(Ok(None) | Err(_)) | None => self.chunk_size,
        };
        let open = OpenCow::new(devices, file, Before::Something)?;
        Ok(Found::Invalid(open, chunk_size))
    }

    /// A file or device that exists, and what looks suspicious about it.
    fn existing(
        &self,
        devices: &Arc<Devices>,
        disk: &mut dyn Disk,
    ) -> Result<(Found, Option<String>), CowError> {
        if let Some(empty) = self.empty()? {
            return Ok((empty, None));
        }
        let file = self.open(store_options())?;
        let cow_block = file.block_size();
        if cow_block > self.origin.block_size {
            return Err(CowError::LargerBlocks {
                path: self.path.to_path_buf(),
                cow: cow_block,
                origin: self.origin.block_size,
            });
        }
        let size = file.size();
        let open = OpenCow::new(devices, file, Before::Something)?;
        let found = match (self.spec.store_type, self.purpose) {
            (StoreType::P | StoreType::PO, _) => self.loaded(open, disk),
            // Whatever the last daemon left there is worthless.
            (StoreType::N, Purpose::Scratch) => self.blank(open),
            (
                StoreType::N,
                Purpose::Known | Purpose::KnownInvalid | Purpose::AtStart | Purpose::New,
            ) => {
                self.check_blank(&open, disk)?;
                self.blank(open)
            }
        }?;
        // Last: what the COW holds matters more.
        self.check_has_size(size)?;
        Ok(found)
    }

    /// A new snapshot gets a COW of the size that was asked for, or none. At a start the size
    /// is for a file that has to be made: the store may have been enlarged since.
    fn check_has_size(&self, has: u64) -> Result<(), CowError> {
        let asked = self.spec.size.filter(|_| self.purpose == Purpose::New);
        match asked.filter(|wanted| *wanted != has) {
            Some(wanted) => Err(CowError::SizeDiffers {
                path: self.path.to_path_buf(),
                has,
                wanted,
            }),
            None => Ok(()),
        }
    }

    /// A new snapshot fills an empty file as one that is not there: a client that hands its COW over
    /// makes it first.
    fn empty(&self) -> Result<Option<Found>, CowError> {
        let is_empty = std::fs::metadata(self.path).is_ok_and(|f| f.is_file() && f.len() == 0);
        let Some(size) = self
            .spec
            .size
            .filter(|_| is_empty && self.purpose == Purpose::New)
        else {
            return Ok(None);
        };
        self.check_size(size / SECTOR_SIZE)?;
        let file = self.open(OpenOptions {
            any_size: true,
            ..store_options()
        })?;
        // It may have been filled meanwhile.
        Ok((file.size() == 0).then_some(Found::Empty { file, size }))
    }

    /// The sandbox does not keep the daemon from the path of its COW.
    fn check_reachable(&self) -> Result<(), CowError> {
        match sandbox::advice(self.path) {
            Some(advice) => Err(CowError::Outside {
                path: self.path.to_path_buf(),
                advice,
            }),
            None => Ok(()),
        }
    }

    fn open(&self, options: OpenOptions) -> Result<BlockFile, CowError> {
        let options = OpenOptions {
            lock: self.lock,
            ..options
        };
        let opened = match self.given {
            Some(given) => given.open(options),
            None => {
                self.check_reachable()?;
                BlockFile::open(self.path, options)
            }
        };
        opened.map_err(|error| match error {
            // The advice to round the size up is for disks.
            OpenError::TooSmall { size: has, .. } | OpenError::OddSize { size: has, .. }
                if self.purpose == Purpose::Known =>
            {
                let path = self.path.to_path_buf();
                CowError::OddSize { path, has }
            }
            error => CowError::Open(error),
        })
    }

    /// A COW of a persistent snapshot, with the store that is in it.
    fn loaded(
        &self,
        open: OpenCow,
        disk: &mut dyn Disk,
    ) -> Result<(Found, Option<String>), CowError> {
        let path = || self.path.to_path_buf();
        let params = LoadParams {
            cow_sectors: open.file().sectors(),
            origin_sectors: Some(self.origin.sectors),
            unit: unit(open.file().block_size()),
            block_bytes: u64::from(self.origin.block_size),
        };
        let loaded = store::load(disk, open.id(), &params).map_err(|e| self.failed(e))?;
        let is_known = self.purpose == Purpose::Known;
        match loaded {
            Loaded::New if is_known => Err(CowError::StoreGone(path())),
            Loaded::New => {
                self.check_blank(&open, disk)?;
                self.blank(open)
            }
            Loaded::Invalid { chunk_size } if is_known => {
                self.check_chunk_size(chunk_size)?;
                Ok((Found::Invalid(open, chunk_size), None))
            }
            Loaded::Invalid { .. } => Err(CowError::HoldsInvalid(path())),
            // An empty store says nothing about any moment, so it is as good as a new one.
            Loaded::Valid(store)
                if self.purpose == Purpose::New && !store.metadata().entries().is_empty() =>
            {
                Err(CowError::HoldsStore(path()))
            }
            Loaded::Valid(store) => {
                self.check_not_shrunk(&open, &store)?;
                self.check_chunk_size(store.metadata().layout().chunk_size)?;
                let warning = open.holes(&store);
                let listed = self.listed(&open, &store)?;
                Ok((Found::Valid(open, store, listed), warning))
            }
        }
    }

    /// The unflushed writes that the record of the store lists.
    fn listed(&self, open: &OpenCow, store: &ValidStore) -> Result<Listed, CowError> {
        let log = store.metadata();
        let Ok(place) = RecordPlace::of(open.file(), log.layout().chunk_size) else {
            return Ok(Listed::default());
        };
        let listed = match place.read()? {
            FoundRecord::Mine(listed) => listed,
            // Of a file that is gone, or lost with the power.
            FoundRecord::Blank | FoundRecord::OtherBoot | FoundRecord::OtherStore => {
                return Ok(Listed::default());
            }
        };
        if self.purpose == Purpose::New && !listed.is_empty() {
            return Err(CowError::HoldsStore(self.path.to_path_buf()));
        }
        let checked = store::check_record(&listed, log, self.origin.sectors);
        checked.map(|_| listed).map_err(|source| CowError::Record {
            record: place.path().to_path_buf(),
            source,
        })
    }

    /// A known store that is shorter than recorded: what it holds is complete, but the
    /// next copy-out would find no space.
    fn check_not_shrunk(&self, open: &OpenCow, store: &ValidStore) -> Result<(), CowError> {
        let has = open.file().sectors() * SECTOR_SIZE;
        let shrunk = self.spec.size.filter(|had| *had > has);
        let Some(had) = shrunk.filter(|_| self.purpose == Purpose::Known) else {
            return Ok(());
        };
        let path = self.path.to_path_buf();
        Err(match open.holes(store) {
            None => CowError::Shrunk { path, has, had },
            // Then it was even shorter for a while.
            Some(holes) => CowError::ShrunkWithHoles {
                path,
                has,
                had,
                holes,
            },
        })
    }

    fn check_chunk_size(&self, found: ChunkSize) -> Result<(), CowError> {
        match self.asked {
            Some(asked) if asked != found => Err(CowError::ChunkSizeDiffers {
                path: self.path.to_path_buf(),
                asked: asked.bytes(),
                found: found.bytes(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn check_blank(&self, open: &OpenCow, disk: &mut dyn Disk) -> Result<(), CowError> {
        match open.is_blank(disk).map_err(|e| self.failed(e))? {
            true => Ok(()),
            false => Err(CowError::NotEmpty(self.path.to_path_buf())),
        }
    }

    /// An open COW for a new store.
    fn blank(&self, open: OpenCow) -> Result<(Found, Option<String>), CowError> {
        self.check_size(open.file().sectors())?;
        Ok((Found::Blank(open), None))
    }

    fn check_size(&self, cow_sectors: u64) -> Result<(), CowError> {
        check_size(
            self.spec,
            self.chunk_size,
            cow_sectors,
            self.origin,
            self.path,
        )
    }

    fn failed(&self, source: StoreError) -> CowError {
        CowError::Store {
            path: self.path.to_path_buf(),
            source,
        }
    }
}
