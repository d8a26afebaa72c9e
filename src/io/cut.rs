//! Files that another program shortens while they are in use: one rule for real and simulated
//! disks.
//!
//! A write behind the end would make the file longer, and the part that was cut off would
//! read as zeroes. Therefore no operation that would make the file longer is carried out.
//! A flush promises that everything written is there. Therefore it fails if the file ends
//! before that.

use std::sync::atomic::Ordering;

use super::{BlockFile, Errno};
use crate::mutation::{self, Mutation};

/// Whether a file of `size` bytes may be written up to `end`.
pub(super) fn check_write(size: u64, end: u64) -> Result<(), Errno> {
    if end <= size || mutation::is(Mutation::CutRegrown) {
        Ok(())
    } else {
        Err(Errno::CUT)
    }
}

/// Whether a file of `size` bytes still has everything up to `held`.
pub(super) fn check_flush(size: u64, held: u64) -> Result<(), Errno> {
    if held <= size || mutation::is(Mutation::CutUnnoticed) {
        Ok(())
    } else {
        Err(Errno::CUT)
    }
}

impl BlockFile {
    /// From now on everything up to byte `end` must exist.
    pub fn hold(&self, end: u64) {
        if let Some(held) = self.held()
            && held.load(Ordering::Relaxed) < end
        {
            held.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Called before everything that could make the file longer.
    pub(super) fn check_write(&self, end: u64) -> Result<(), Errno> {
        if self.held().is_some() {
            check_write(self.length()?, end)?;
            self.hold(end);
        }
        Ok(())
    }

    /// Called after a flush.
    pub(super) fn check_flush(&self) -> Result<(), Errno> {
        match self.held() {
            Some(held) => check_flush(self.length()?, held.load(Ordering::Acquire)),
            None => Ok(()),
        }
    }

    /// The size that the file has now.
    fn length(&self) -> Result<u64, Errno> {
        rustix::fs::seek(self, rustix::fs::SeekFrom::End(0)).map_err(|e| Errno(e.raw_os_error()))
    }
}
