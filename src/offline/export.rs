//! A snapshot's view as a raw file.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use smallvec::SmallVec;

use super::new_file::NewFile;
use super::read_ahead::{PIECE, Piece, Stopped, read_ahead};
use super::view::{Extent, SnapshotView};
use super::{Known, OfflineError};
use crate::io::ThreadDisk;

/// Whole blocks of this many bytes that are zero become holes.
const BLOCK: usize = 4096;

/// [`PIECE`] as a step.
const CHUNK: usize = 1 << 20;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    pub origin: PathBuf,
    pub cow: PathBuf,
    /// What is recorded of the store.
    pub known: Option<Known>,
    /// Offset and length in bytes, on the devices' blocks; `None` is all.
    pub range: Option<(u64, u64)>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of it that are not holes.
    pub data: u64,
}

/// Writes the content of the snapshot to a new file, with holes where it is zero. Where the
/// file system supports that, the file appears under its name only after all of it is
/// durable. `progress` gets the bytes done and their total.
///
/// # Errors
/// A file is in use or cannot be opened, the store does not belong to this origin, the
/// file to write exists, or I/O failed; no file is left behind.
pub fn export(
    options: &ExportOptions,
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported, OfflineError> {
    let mut source = Source::open(options)?;
    let size = source.size();
    let out = NewFile::create(path, Mode::RUSR | Mode::WUSR)?;
    out.file()
        .set_len(size)
        .map_err(|e| OfflineError::system(path, "set its size", e))?;
    let failed = |e| OfflineError::system(path, "write it", e);
    let mut data = 0;
    progress(0, size);
    source.read(|at, bytes| {
        data += write_sparse(out.file(), at, bytes).map_err(failed)?;
        progress(at + bytes.len() as u64, size);
        Ok(())
    })?;
    out.finish()?;
    progress(size, size);
    Ok(Exported { size, data })
}

/// Writes the content of the snapshot to `out`, one byte after the other: holes as zeroes.
/// Messages call it `name`.
///
/// # Errors
/// As [`export`]; what was written before the error is in `out`.
pub fn export_to(
    options: &ExportOptions,
    out: &mut impl Write,
    name: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported, OfflineError> {
    let mut source = Source::open(options)?;
    let size = source.size();
    let failed = |e| OfflineError::system(name, "write it", e);
    let (mut end, mut data) = (0, 0);
    progress(0, size);
    source.read(|at, bytes| {
        write_zeroes(out, at.saturating_sub(end)).map_err(failed)?;
        out.write_all(bytes).map_err(failed)?;
        end = at + bytes.len() as u64;
        data += bytes.len() as u64;
        progress(end, size);
        Ok(())
    })?;
    write_zeroes(out, size.saturating_sub(end)).map_err(failed)?;
    out.flush().map_err(failed)?;
    progress(size, size);
    Ok(Exported { size, data })
}

fn write_zeroes(out: &mut impl Write, len: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::repeat(0).take(len), out).map(drop)
}

/// The part of a snapshot that is exported.
struct Source {
    disk: ThreadDisk,
    view: SnapshotView,
    range: Range<u64>,
}

impl Source {
    fn open(options: &ExportOptions) -> Result<Self, OfflineError> {
        let (disk, view) =
            SnapshotView::open(&options.origin, &options.cow, options.known.as_ref())?;
        let range = check_range(&view, options.range)?;
        Ok(Self { disk, view, range })
    }

    const fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Calls `put` with all data that may differ from zero, in order, each with its place in
    /// the range.
    fn read(
        &mut self,
        mut put: impl FnMut(u64, &[u8]) -> Result<(), OfflineError>,
    ) -> Result<(), OfflineError> {
        let Self { disk, view, range } = self;
        let start = range.start;
        let copied = read_ahead(disk, pieces(view, range.clone()), |at: u64, bytes| {
            bytes.iter().try_for_each(|bytes| put(at - start, bytes))
        });
        copied.map_err(|stopped| match stopped {
            Stopped::Read(piece, errno) => {
                OfflineError::io(view.path(piece.device), "read it", errno)
            }
            Stopped::By(error) => error,
        })
    }
}

fn check_range(view: &SnapshotView, range: Option<(u64, u64)>) -> Result<Range<u64>, OfflineError> {
    let (size, block) = (view.size(), view.block_size());
    let (offset, len) = range.unwrap_or((0, size));
    let end = offset.checked_add(len).filter(|end| *end <= size);
    match end {
        Some(end) if len > 0 && offset.is_multiple_of(block) && end.is_multiple_of(block) => {
            Ok(offset..end)
        }
        _ => Err(OfflineError::Range {
            offset,
            len,
            size,
            block,
        }),
    }
}

/// The parts of the view that may differ from zero, each with its place.
fn pieces(
    view: &SnapshotView,
    range: Range<u64>,
) -> impl Iterator<Item = (u64, SmallVec<[Piece; 2]>)> + use<'_> {
    view.extents(range)
        .flat_map(move |extent| data_in(view, extent))
        .flat_map(|part| {
            let len = part.len;
            (0..len).step_by(CHUNK).map(move |skip| (part, skip))
        })
        .map(move |(part, skip)| {
            let (device, offset) = match part.copy {
                Some(copy) => (view.cow, copy),
                None => (view.origin, part.start),
            };
            let piece = Piece {
                device,
                offset: offset + skip,
                len: PIECE.min(part.len - skip),
            };
            (part.start + skip, SmallVec::from_slice(&[piece]))
        })
}

/// Leaves the holes out of an extent.
fn data_in(view: &SnapshotView, extent: Extent) -> impl Iterator<Item = Extent> + use<'_> {
    let (device, base) = match extent.copy {
        Some(copy) => (view.cow, copy),
        None => (view.origin, extent.start),
    };
    let end = base + extent.len;
    let mut at = base;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let data = view.next_data(device, at)?;
        let (start, stop) = (data.start, data.end.min(end));
        at = stop;
        (start < stop).then(|| Extent {
            start: extent.start + (start - base),
            len: stop - start,
            copy: extent.copy.map(|_| start),
        })
    })
}

/// Writes the blocks of `bytes` that are not zero; returns how many bytes that were.
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<u64> {
    let mut written = 0;
    let mut at = 0;
    for run in bytes
        .chunks(BLOCK)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| is_zero(a) == is_zero(b))
    {
        let len = run.iter().map(|block| block.len()).sum::<usize>();
        if !run.first().is_some_and(|block| is_zero(block)) {
            let data = bytes.get(at..at + len).unwrap_or_default();
            file.write_all_at(data, offset + at as u64)?;
            written += len as u64;
        }
        at += len;
    }
    Ok(written)
}

/// Whether all of it is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
