//! A few bytes at the beginning of a file, through the page cache and for any size of
//! the file: headers must be readable in damaged files, too.

use rustix::io::Errno as Os;

use super::{BlockFile, Errno};

impl BlockFile {
    /// The first bytes of the file, as many of `N` as there are; the rest is zero.
    /// The file must have been opened with [`Direct::Off`](super::Direct::Off).
    ///
    /// # Errors
    /// I/O errors.
    pub fn read_head<const N: usize>(&self) -> Result<([u8; N], usize), Errno> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = u64::try_from(filled).unwrap_or(u64::MAX);
            match rustix::io::pread(self, rest, at) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Os::INTR) => {}
                Err(e) => return Err(Errno(e.raw_os_error())),
            }
        }
        Ok((bytes, filled))
    }

    /// Overwrites bytes that are there, durably. The file must have been opened
    /// with [`Direct::Off`](super::Direct::Off).
    ///
    /// # Errors
    /// I/O errors.
    pub fn overwrite_durably(&self, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        let failed = |e: Os| Errno(e.raw_os_error());
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = u64::try_from(at.saturating_add(done)).unwrap_or(u64::MAX);
            match rustix::io::pwrite(self, rest, at) {
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => done += written,
                Err(Os::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        rustix::fs::fsync(self).map_err(failed)
    }
}
