//! The parts of a store that lie in holes of its file, and therefore read as zeroes.
//!
//! Such holes are found in a file that was cut and made longer again, but also after a
//! chunk was zeroed, in space that was allocated and never written, and in a sparse copy.
//! They are therefore a reason for a warning and never for a refusal.

use std::ops::Range;

use super::entry::Entry;
use super::layout::Layout;
use super::log::Log;
use crate::io::BlockFile;

/// What was found in holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holes {
    /// Entries whose copy is in a hole, or a part of it.
    pub entries: u64,
    /// The area in which the log ends is in a hole: there may have been entries.
    pub log_end: bool,
}

impl Holes {
    /// Looks at the copies of `entries`, and at the end of the log; reads no data.
    pub fn find(file: &BlockFile, layout: Layout, entries: &Log) -> Self {
        let mut data = DataMap::new(file);
        let chunk_bytes = layout.chunk_size.bytes();
        // The origin may end inside its last chunk, and the rest is never written.
        let mut last = None;
        let mut is_last = |entry: &Entry| {
            let old = |entry: Entry| entry.old;
            *last.get_or_insert_with(|| entries.iter().map(old).max()) == Some(entry.old)
        };
        let mut is_cut = |data: &mut DataMap<'_>, entry: &Entry| {
            let start = layout.chunk_offset(entry.new);
            let end = start.saturating_add(chunk_bytes);
            let is_whole = data.covers(start..end)
                || data.covers(start..start.saturating_add(1)) && is_last(entry);
            !is_whole
        };
        let count = entries.iter().filter(|e| is_cut(&mut data, e)).count();
        let area = layout.area_chunk(layout.area_of(entries.len()));
        let start = layout.chunk_offset(area);
        Self {
            entries: u64::try_from(count).unwrap_or(u64::MAX),
            log_end: data.is_hole(start..start.saturating_add(chunk_bytes)),
        }
    }

    /// The warning, if there is a reason for one.
    pub fn warning(self) -> Option<String> {
        let what = match (self.entries, self.log_end) {
            (0, false) => return None,
            (0, true) => "the end of the log lies in a hole of the file".to_owned(),
            (1, _) => "the copy of 1 entry lies in a hole of the file".to_owned(),
            (count, _) => format!("the copies of {count} entries lie in holes of the file"),
        };
        Some(format!(
            "{what} and read as zeroes. Zeroed chunks and sparse copies look like that; but if the file was cut off and \
             made longer again, the snapshot is wrong there: bring the file back from a copy that is whole, or give the \
             snapshot up"
        ))
    }
}

/// Where the file holds data. The last answer is kept, because copies mostly lie in the
/// order of the log.
struct DataMap<'a> {
    file: &'a BlockFile,
    /// The hole before `data`, as far as it is known.
    hole: Range<u64>,
    data: Range<u64>,
}

impl<'a> DataMap<'a> {
    const fn new(file: &'a BlockFile) -> Self {
        Self {
            file,
            hole: 0..0,
            data: 0..0,
        }
    }

    /// No byte of it is in a hole.
    fn covers(&mut self, bytes: Range<u64>) -> bool {
        if !self.data.contains(&bytes.start) && !self.hole.contains(&bytes.start) {
            let next = self.file.next_data(bytes.start);
            self.data = next.unwrap_or(u64::MAX..u64::MAX);
            self.hole = bytes.start..self.data.start;
        }
        self.data.contains(&bytes.start) && bytes.end <= self.data.end
    }

    /// All of it is in a hole.
    fn is_hole(&self, bytes: Range<u64>) -> bool {
        self.file
            .next_data(bytes.start)
            .is_none_or(|data| data.start >= bytes.end)
    }
}
