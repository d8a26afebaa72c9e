//! The files of the records of unflushed writes, in memory that outlives the daemon and
//! not the power. One COW has one record; its name and its first block say which.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::error::CowError;
use crate::daemon::identity::{StorageIdentity, StorageKind, UnflushedRecord};
use crate::io::{BlockFile, DeviceId, Devices, Identity, Links, OpenOptions, open_regular};
use crate::store::{FoundRecord, RECORD_BLOCK, RECORD_BYTES, RecordOwner, read_record};
use crate::units::ChunkSize;

/// File systems that are memory, by the number in `statfs`.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Where the record of a COW is, or would be.
#[derive(Clone, Debug)]
pub struct RecordPlace {
    path: PathBuf,
    owner: RecordOwner,
}

/// Why a COW cannot have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRecord {
    #[error(
        "there is no memory that outlives the daemon: mount a tmpfs at /run, or set XDG_RUNTIME_DIR to one, and let only \
         the daemon's user write in its folder snapback"
    )]
    Memory,
    #[error("the system does not say which boot this is (/proc/sys/kernel/random/boot_id)")]
    Boot,
    #[error(
        "the file system keeps no times of birth, so that a record could be mistaken for that of another file"
    )]
    Birth,
    #[error(
        "the system does not number its devices, so that a record could be mistaken for that of another device"
    )]
    Sequence,
}

/// Whether the folder of the records may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    Make,
    Existing,
}

impl RecordPlace {
    /// The place of a record that may exist.
    pub fn of(cow: &BlockFile, chunk_size: ChunkSize) -> Result<Self, NoRecord> {
        Self::in_folder(cow, chunk_size, Folder::Existing)
    }

    /// The place for a new record.
    pub fn for_new(cow: &BlockFile, chunk_size: ChunkSize) -> Result<Self, NoRecord> {
        Self::in_folder(cow, chunk_size, Folder::Make)
    }

    fn in_folder(cow: &BlockFile, chunk_size: ChunkSize, folder: Folder) -> Result<Self, NoRecord> {
        let boot = boot().ok_or(NoRecord::Boot)?;
        let folder = directory(folder).ok_or(NoRecord::Memory)?;
        let (name, device, inode) = match cow.identity() {
            Identity::File { device, inode } => (format!("{device:x}-{inode:x}"), device, inode),
            Identity::Device { number } => (format!("device-{number:x}"), number, 0),
        };
        // A new file may get the inode of one that was deleted, and a device the number of
        // one that was unplugged.
        let facts = StorageIdentity::of_open(cow).map_err(|_| NoRecord::Birth)?;
        let (first, second) = match facts.kind {
            StorageKind::File(facts) => {
                let birth = facts.birth.ok_or(NoRecord::Birth)?;
                (
                    birth.seconds.cast_unsigned(),
                    birth.nanoseconds.cast_unsigned(),
                )
            }
            StorageKind::Device(names) => {
                let sequence = names.boot.as_deref().and_then(sequence_of);
                (sequence.ok_or(NoRecord::Sequence)?, u64::MAX)
            }
        };
        let mut store = [0; 64];
        let words = [device, inode, first, second, chunk_size.sectors()];
        for (to, word) in store.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        Ok(Self {
            path: folder.join(format!("{name}.record")),
            owner: RecordOwner { boot, store },
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the last daemon left there.
    pub fn read(&self) -> Result<FoundRecord, CowError> {
        let mut bytes = Vec::new();
        match open_regular(&self.path, Links::Refuse, OFlags::RDONLY) {
            Ok(file) => {
                let most = RECORD_BYTES as u64 + 1;
                file.take(most)
                    .read_to_end(&mut bytes)
                    .map_err(|e| self.failed(e))?;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(self.failed(e)),
        }
        read_record(&bytes, &self.owner).map_err(|source| CowError::Record {
            record: self.path.clone(),
            source,
        })
    }

    /// An empty record for the engine.
    pub fn make(&self, devices: &Arc<Devices>) -> Result<OpenRecord, CowError> {
        let file = self
            .overwrite()
            .or_else(|e| match e.kind() {
                ErrorKind::NotFound => self.create(),
                _ => Err(e),
            })
            .map_err(|e| self.failed(e))?;
        self.open(file, devices, true)
    }

    /// Makes what is there list nothing, if there is something. What it listed must be
    /// durable. The file stays, because the state file may still note it.
    pub fn empty(&self, devices: &Arc<Devices>) -> Result<Option<OpenRecord>, CowError> {
        match self.overwrite() {
            Ok(file) => self.open(file, devices, false).map(Some),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// In place, so that it works where no space is left. The header is written last: until
    /// then, what is left of the list is the last owner's.
    fn overwrite(&self) -> io::Result<File> {
        let file = open_regular(&self.path, Links::Refuse, OFlags::RDWR)?;
        let record = self.owner.empty_record();
        let (head, ring) = record.split_at(RECORD_BLOCK.min(record.len()));
        file.write_all_at(ring, head.len() as u64)?;
        file.write_all_at(head, 0)?;
        file.set_len(record.len() as u64)?;
        Ok(file)
    }

    /// All its memory is allocated here, so that no later write of it can find none.
    fn create(&self) -> io::Result<File> {
        let new = self.path.with_extension("new");
        let make = || {
            // A daemon that died may have left one.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(&self.owner.empty_record())?;
            fs::rename(&new, &self.path)?;
            Ok(file)
        };
        make().inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }

    /// `file` is the one that was written, whatever its path leads to now.
    fn open(
        &self,
        file: File,
        devices: &Arc<Devices>,
        in_use: bool,
    ) -> Result<OpenRecord, CowError> {
        let file = BlockFile::from_file(file, &self.path, OpenOptions::default());
        let file = file.map_err(CowError::Open)?;
        Ok(OpenRecord {
            id: devices.add(file),
            devices: devices.clone(),
            path: self.path.clone(),
            boot: boot_text(&self.owner.boot),
            in_use,
        })
    }

    fn failed(&self, source: io::Error) -> CowError {
        CowError::RecordIo {
            record: self.path.clone(),
            source,
        }
    }
}

/// The record of a store that the engine has. The file stays when this is dropped, as after
/// a kill.
#[derive(Debug)]
pub struct OpenRecord {
    devices: Arc<Devices>,
    id: DeviceId,
    path: PathBuf,
    boot: String,
    in_use: bool,
}

impl OpenRecord {
    /// The device for the engine, if the entries of the store are deferred.
    pub fn id(&self) -> Option<DeviceId> {
        self.in_use.then_some(self.id)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For the state file, so that the next start knows if it is gone.
    pub fn note(&self) -> Option<UnflushedRecord> {
        self.in_use.then(|| UnflushedRecord {
            path: self.path.display().to_string(),
            boot: self.boot.clone(),
        })
    }

    /// Nothing that it lists is needed: it is durable, or the snapshot is gone.
    pub fn delete(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(record = %self.path.display(), %error,
                "the record of unflushed writes could not be removed; it lists nothing");
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        drop(self.devices.remove(self.id));
    }
}

/// What became of the record that the state file notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was read.
    Found,
    /// The system was started since, or this is another system.
    OtherBoot,
    /// It is not where this start reads it, with the reason.
    Unreadable(String),
}

/// Whether the record that a dead daemon has noted is the one in `place`, which was read.
pub fn fate(noted: &UnflushedRecord, place: Result<&RecordPlace, NoRecord>) -> Fate {
    let path = Path::new(&noted.path);
    if boot().map(|boot| boot_text(&boot)).as_ref() != Some(&noted.boot) {
        return Fate::OtherBoot;
    }
    match place {
        _ if !path.exists() => Fate::Unreadable(format!("{} is gone", noted.path)),
        Ok(place) if place.path == path => Fate::Found,
        Ok(place) => Fate::Unreadable(format!(
            "{} is not at {}, where this start looks for that of this COW",
            noted.path,
            place.path.display()
        )),
        Err(why) => Fate::Unreadable(format!("{} cannot be used: {why}", noted.path)),
    }
}

fn boot_text(boot: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_le_bytes(*boot))
}

/// What identifies this boot of the system.
fn boot() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    (digits.len() == 32).then_some(())?;
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(number.to_le_bytes())
}

/// The number that the kernel gave the device when it appeared.
fn sequence_of(boot: &str) -> Option<u64> {
    boot.split_whitespace().nth(1)?.parse().ok()
}

/// The folders in which records are looked for and made. The one that would be made is made.
pub fn record_folders() -> Vec<PathBuf> {
    let _ = directory(Folder::Make);
    candidates().collect()
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let parents = std::iter::once(PathBuf::from("/run")).chain(of_user);
    let in_memory = parents.filter(|parent| is_in_memory(parent));
    in_memory.map(|parent| parent.join("snapback"))
}

/// A directory in memory in which nobody else can write. A service manager must keep it
/// when it starts the daemon again (`RuntimeDirectoryPreserve=yes`).
fn directory(folder: Folder) -> Option<PathBuf> {
    candidates().find(|directory| {
        if folder == Folder::Make {
            let _ = DirBuilder::new().mode(0o700).create(directory);
        }
        is_ours(directory) && is_in_memory(directory)
    })
}

fn is_ours(directory: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(directory)
        .is_ok_and(|m| m.is_dir() && m.uid() == own && m.mode() & 0o022 == 0)
}

fn is_in_memory(directory: &Path) -> bool {
    let facts = rustix::fs::statfs(directory);
    facts.is_ok_and(|f| u64::try_from(f.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &Path) -> RecordPlace {
        RecordPlace {
            path: folder.join("1-2.record"),
            owner: RecordOwner {
                boot: [1; 16],
                store: [2; 64],
            },
        }
    }

    #[test]
    fn the_record_that_the_engine_gets_is_the_one_that_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let devices = Arc::new(Devices::default());
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        for write in [RecordPlace::create, RecordPlace::overwrite] {
            let file = write(&place).unwrap();
            let written = inode(&place.path);
            // Another one takes its place.
            fs::write(folder.path().join("other"), [7; 512]).unwrap();
            fs::rename(folder.path().join("other"), &place.path).unwrap();
            let record = place.open(file, &devices, true).unwrap();
            let open = devices.get(record.id).unwrap();
            assert!(matches!(open.identity(), Identity::File { inode, .. } if inode == written));
            assert_ne!(inode(&place.path), written);
        }
    }

    #[test]
    fn a_record_that_is_a_link_or_a_pipe_is_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let devices = Arc::new(Devices::default());
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let refused = |what: &str| {
            let errors = [
                place.read().map(drop).unwrap_err(),
                place.make(&devices).map(drop).unwrap_err(),
                place.empty(&devices).map(drop).unwrap_err(),
            ];
            for error in errors {
                assert!(error.to_string().contains(what), "{error}");
            }
        };
        std::os::unix::fs::symlink(&precious, &place.path).unwrap();
        refused("symbolic link");
        fs::remove_file(&place.path).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &place.path, mode).unwrap();
        refused("a pipe");
        fs::remove_file(&place.path).unwrap();
        // Left by a daemon that died.
        std::os::unix::fs::symlink(&precious, place.path.with_extension("new")).unwrap();
        place.make(&devices).map(drop).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }
}
