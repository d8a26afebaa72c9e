//! A new, empty COW store in a file or on a device.

use std::path::Path;

use super::{OfflineError, Opened};
use crate::io::{BlockFile, OpenOptions, blocking};
use crate::store::{self, Layout};
use crate::units::{ChunkSize, SECTOR_SIZE};

/// The length of the part of an existing file that must be empty for [`create`]. It covers
/// the labels of partition tables, LVM and the common file systems.
const LOOK: u64 = 1 << 20;
const PIECE: u64 = 64 << 10;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Bytes, a multiple of 512; `None` for a file or device that exists.
    pub size: Option<u64>,
    pub chunk_size: ChunkSize,
    /// Overwrite existing data.
    pub force: bool,
    /// Do not allocate space for a new file yet.
    pub sparse: bool,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Bytes of the file or device.
    pub size: u64,
    pub chunk_size: ChunkSize,
    /// Most chunks that it can hold.
    pub capacity: u64,
    /// Bytes that the file system of a new, sparse file has free now.
    pub free: Option<u64>,
}

/// Makes an empty store at `cow`: in a new file, or in an existing file or
/// device that begins with zeroes. Durable when it returns; a file that was
/// made for a store that then failed is removed again.
///
/// # Errors
/// The file is in use, holds data, is too small, or the system refuses.
pub fn create(cow: &Path, options: &CreateOptions) -> Result<Created, OfflineError> {
    let is_new =
        std::fs::symlink_metadata(cow).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    if is_new && options.size.is_none() {
        return Err(OfflineError::SizeMissing(cow.to_owned()));
    }
    let create = options.size.filter(|_| is_new);
    let file = BlockFile::open(
        cow,
        OpenOptions {
            create,
            sparse: options.sparse,
            ..OpenOptions::default()
        },
    )?;
    let free = (is_new && options.sparse)
        .then(|| rustix::fs::fstatvfs(&file).ok())
        .flatten()
        .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let made = fill(cow, file, options).map(|made| Created { free, ..made });
    if is_new && made.is_err() {
        // The original error is the one to report.
        let _ = std::fs::remove_file(cow);
    }
    made
}

fn fill(cow: &Path, file: BlockFile, options: &CreateOptions) -> Result<Created, OfflineError> {
    let has = file.size();
    if let Some(wanted) = options.size.filter(|wanted| *wanted != has) {
        return Err(OfflineError::SizeDiffers {
            cow: cow.to_owned(),
            has,
            wanted,
        });
    }
    let mut opened = Opened::new(cow, file)?;
    if !options.force {
        check_empty(cow, &mut opened)?;
    }
    let Opened {
        disk,
        device,
        sectors,
        unit,
        ..
    } = &mut opened;
    store::create(disk, *device, options.chunk_size, *sectors, *unit)
        .map_err(OfflineError::store(cow))?;
    Ok(Created {
        size: has,
        chunk_size: options.chunk_size,
        capacity: Layout::new(options.chunk_size).capacity(*sectors),
        free: None,
    })
}

fn check_empty(cow: &Path, opened: &mut Opened) -> Result<(), OfflineError> {
    let end = LOOK.min(opened.sectors.saturating_mul(SECTOR_SIZE));
    for offset in (0..end).step_by(usize::try_from(PIECE).unwrap_or(4096)) {
        let len = usize::try_from(PIECE.min(end - offset)).unwrap_or(0);
        let buffer = blocking::read_exact(&mut opened.disk, opened.device, offset, len)
            .map_err(|errno| OfflineError::io(cow, "look whether it is empty", errno))?;
        if let Some(at) = buffer.as_slice().iter().position(|byte| *byte != 0) {
            return Err(OfflineError::NotEmpty {
                cow: cow.to_owned(),
                offset: offset + at as u64,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size: Option<u64>) -> CreateOptions {
        CreateOptions {
            size,
            chunk_size: ChunkSize::new(8).unwrap(),
            force: false,
            sparse: false,
        }
    }

    #[test]
    fn a_sparse_store_may_be_larger_than_the_file_system() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        let size = 1 << 42;
        let error = create(&cow, &options(Some(size))).unwrap_err();
        assert!(error.to_string().contains("--sparse"), "{error}");
        assert!(!cow.exists());
        let sparse = CreateOptions {
            sparse: true,
            ..options(Some(size))
        };
        let made = create(&cow, &sparse).unwrap();
        assert_eq!(made.size, size);
        assert!(made.free.is_some_and(|free| free < size));
        let metadata = std::fs::metadata(&cow).unwrap();
        assert!(metadata.len() == size && metadata.blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_new_store_has_the_bytes_that_linux_writes() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        let made = create(&cow, &options(Some(1 << 20))).unwrap();
        assert_eq!((made.size, made.capacity), (1 << 20, 254));
        let bytes = std::fs::read(&cow).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert_eq!(&bytes[..16], b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
        assert!(bytes[16..].iter().all(|b| *b == 0));
    }

    #[test]
    fn data_is_not_overwritten_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        let mut bytes = vec![0u8; 1 << 20];
        bytes[70_000] = 7;
        std::fs::write(&cow, &bytes).unwrap();
        let error = create(&cow, &options(None)).unwrap_err();
        assert!(
            matches!(error, OfflineError::NotEmpty { offset: 70_000, .. }),
            "{error}"
        );
        assert_eq!(std::fs::read(&cow).unwrap(), bytes);
        create(
            &cow,
            &CreateOptions {
                force: true,
                ..options(None)
            },
        )
        .unwrap();
        // And a store is data, too.
        let again = create(&cow, &options(None)).unwrap_err();
        assert!(
            matches!(again, OfflineError::NotEmpty { offset: 0, .. }),
            "{again}"
        );
    }

    #[test]
    fn an_existing_empty_file_is_used_at_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        std::fs::write(&cow, vec![0u8; 65536]).unwrap();
        let error = create(&cow, &options(Some(1 << 20))).unwrap_err();
        assert!(
            matches!(error, OfflineError::SizeDiffers { has: 65536, .. }),
            "{error}"
        );
        assert_eq!(create(&cow, &options(None)).unwrap().size, 65536);
    }

    #[test]
    fn what_fails_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        let error = create(&cow, &options(Some(8192))).unwrap_err();
        assert!(matches!(error, OfflineError::Store { .. }), "{error}");
        assert!(!cow.exists());
        assert!(matches!(
            create(&cow, &options(None)),
            Err(OfflineError::SizeMissing(_))
        ));
        assert!(!cow.exists());
    }

    #[test]
    fn a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            create(dir.path(), &options(None)),
            Err(OfflineError::Open(_))
        ));
    }
}
