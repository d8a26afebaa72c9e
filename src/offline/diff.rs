//! Where a snapshot differs from its origin.

use std::path::Path;

use serde::Serialize;
use smallvec::SmallVec;

use super::export::is_zero;
use super::read_ahead::{PIECE, Piece, Stopped, read_ahead};
use super::view::SnapshotView;
use super::{Known, OfflineError};
use crate::io::ThreadDisk;

/// Data is compared in blocks of this many bytes, or of a chunk if that is smaller.
const BLOCK: u64 = 4096;
const STEP: usize = 1 << 20;

/// A part of the snapshot that differs from the origin, as `qemu-img map
/// --output=json` shows it: a stable interface. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub start: u64,
    pub length: u64,
    /// 0: the COW is the topmost layer.
    pub depth: u32,
    pub present: bool,
    /// The snapshot reads as zeroes here (always false where no data is read).
    pub zero: bool,
    pub data: bool,
    /// Where the data is in the COW.
    pub offset: u64,
}

/// The totals of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffSummary {
    /// Bytes of the snapshot.
    pub size: u64,
    /// Bytes that the store keeps.
    pub kept: u64,
    /// Bytes that differ; if no data was read, the same as `kept`.
    pub changed: u64,
}

/// A snapshot and its origin, open to be compared.
pub struct Diff {
    disk: ThreadDisk,
    view: SnapshotView,
}

impl Diff {
    /// Opens both for reading. No process may write them meanwhile. `known`: what is
    /// recorded of the store, for example that the snapshot is shorter than the origin is
    /// now.
    ///
    /// # Errors
    /// As for [`super::export`].
    pub fn open(origin: &Path, cow: &Path, known: Option<&Known>) -> Result<Self, OfflineError> {
        let (disk, view) = SnapshotView::open(origin, cow, known)?;
        Ok(Self { disk, view })
    }

    /// Bytes of the snapshot.
    pub fn size(&self) -> u64 {
        self.view.size()
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.view.layout().chunk_size.bytes()
    }

    /// Passes every part that the store keeps to `emit`, ascending, and reads no data.
    ///
    /// # Errors
    /// The errors of `emit`.
    pub fn entries<E>(self, emit: &mut Emit<'_, E>) -> Result<DiffSummary, E> {
        let mut joined = Joined { last: None, emit };
        for extent in self.view.extents(0..self.view.size()) {
            if let Some(copy) = extent.copy {
                joined.add(extent.start, extent.len, copy, false)?;
            }
        }
        joined.end()?;
        let kept = self.kept();
        Ok(DiffSummary {
            size: self.view.size(),
            kept,
            changed: kept,
        })
    }

    /// Passes every part that differs to `emit`, ascending: the parts that the store keeps
    /// are compared with the origin in blocks of 4 KiB (or a chunk). `progress` gets the
    /// bytes of kept data that are done, and their total.
    ///
    /// # Errors
    /// I/O failed, or the errors of `emit`.
    pub fn changes<E: From<OfflineError>>(
        mut self,
        mut progress: impl FnMut(u64, u64),
        emit: &mut Emit<'_, E>,
    ) -> Result<DiffSummary, E> {
        let mut joined = Joined { last: None, emit };
        let mut summary = DiffSummary {
            size: self.view.size(),
            kept: self.kept(),
            changed: 0,
        };
        let view = &self.view;
        let block = BLOCK.min(view.layout().chunk_size.bytes());
        let mut done = 0;
        let compared = read_ahead(&mut self.disk, pairs(view), |at, bytes| -> Result<(), E> {
            let [kept, origin] = bytes else { return Ok(()) };
            summary.changed += compare(&mut joined, block, at, kept, origin)?;
            done += kept.len() as u64;
            progress(done, summary.kept);
            Ok(())
        });
        compared.map_err(|stopped| match stopped {
            Stopped::Read(piece, errno) => {
                OfflineError::io(view.path(piece.device), "read it", errno).into()
            }
            Stopped::By(error) => error,
        })?;
        joined.end()?;
        Ok(summary)
    }

    /// Bytes that the store keeps.
    fn kept(&self) -> u64 {
        let extents = self.view.extents(0..self.view.size());
        extents.filter(|e| e.copy.is_some()).map(|e| e.len).sum()
    }
}

/// Receives the parts that differ.
pub type Emit<'a, E> = dyn FnMut(Change) -> Result<(), E> + 'a;

type Pair = ((u64, u64), SmallVec<[Piece; 2]>);

/// What is kept and what the origin has there, in pieces: (start, place in the COW).
fn pairs(view: &SnapshotView) -> impl Iterator<Item = Pair> + use<'_> {
    let (cow, origin) = (view.cow, view.origin);
    view.extents(0..view.size())
        .filter_map(|extent| extent.copy.map(|copy| (extent, copy)))
        .flat_map(move |(extent, copy)| {
            (0..extent.len).step_by(STEP).map(move |skip| {
                let (start, offset) = (extent.start + skip, copy + skip);
                let len = PIECE.min(extent.len - skip);
                let piece = |device, offset| Piece {
                    device,
                    offset,
                    len,
                };
                let reads = [piece(cow, offset), piece(origin, start)];
                ((start, offset), SmallVec::from(reads))
            })
        })
}

fn compare<E>(
    joined: &mut Joined<'_, '_, E>,
    block: u64,
    (mut start, mut copy): (u64, u64),
    kept: &[u8],
    origin: &[u8],
) -> Result<u64, E> {
    let step = usize::try_from(block).unwrap_or(512);
    let mut changed = 0;
    for (kept, origin) in kept.chunks(step).zip(origin.chunks(step)) {
        let len = kept.len() as u64;
        if kept != origin {
            joined.add(start, len, copy, is_zero(kept))?;
            changed += len;
        }
        start += len;
        copy += len;
    }
    Ok(changed)
}

/// Joins adjacent parts with the same properties.
struct Joined<'a, 'b, E> {
    last: Option<Change>,
    emit: &'a mut Emit<'b, E>,
}

impl<E> Joined<'_, '_, E> {
    fn add(&mut self, start: u64, length: u64, offset: u64, zero: bool) -> Result<(), E> {
        if let Some(last) = &mut self.last
            && last.start + last.length == start
            && last.offset + last.length == offset
            && last.zero == zero
        {
            last.length += length;
            return Ok(());
        }
        let change = Change {
            start,
            length,
            depth: 0,
            present: true,
            zero,
            data: true,
            offset,
        };
        match self.last.replace(change) {
            Some(last) => (self.emit)(last),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), E> {
        match self.last.take() {
            Some(last) => (self.emit)(last),
            None => Ok(()),
        }
    }
}
