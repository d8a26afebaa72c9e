//! How much of each part of a disk has changed: a table of bounded size for a disk of any size.

/// Columns of the map.
pub const COLUMNS: u64 = 64;
/// Most rows.
const ROWS_MAX: u64 = 64;

/// Counts changed chunks in cells of equal size.
#[derive(Debug)]
pub struct DiskMap {
    /// Bytes of the disk.
    size: u64,
    /// Bytes of a chunk.
    chunk: u64,
    /// Chunks of a cell: a power of two.
    chunks_per_cell: u64,
    /// Changed chunks of each cell.
    changed: Vec<u64>,
    /// The first chunk that was not counted yet.
    next: u64,
}

impl DiskMap {
    /// For a disk of `size` bytes in chunks of `chunk` bytes.
    pub fn new(size: u64, chunk: u64) -> Self {
        let chunk = chunk.max(1);
        let chunks = size.div_ceil(chunk);
        let chunks_per_cell = chunks.div_ceil(COLUMNS * ROWS_MAX).next_power_of_two();
        let cells = chunks.div_ceil(chunks_per_cell);
        Self {
            size,
            chunk,
            chunks_per_cell,
            changed: vec![0; usize::try_from(cells).unwrap_or(0)],
            next: 0,
        }
    }

    /// The bytes from `start` on have changed. Calls come in ascending order; a chunk of which
    /// several parts have changed counts once.
    pub fn add(&mut self, start: u64, length: u64) {
        let first = (start / self.chunk).max(self.next);
        let end = start.saturating_add(length).min(self.size);
        let end = end.div_ceil(self.chunk);
        let mut at = first;
        while at < end {
            let cell = at / self.chunks_per_cell;
            let until = end.min((cell + 1) * self.chunks_per_cell);
            let count = usize::try_from(cell).ok();
            if let Some(count) = count.and_then(|cell| self.changed.get_mut(cell)) {
                *count += until - at;
            }
            at = until;
        }
        if first < end {
            self.next = end;
        }
    }

    /// Bytes of the disk.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a cell; the last one may have fewer.
    pub const fn cell(&self) -> u64 {
        self.chunks_per_cell.saturating_mul(self.chunk)
    }

    /// Of each cell, the changed chunks and all.
    pub fn cells(&self) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        let chunks = self.size.div_ceil(self.chunk);
        let firsts = (0..).step_by(usize::try_from(self.chunks_per_cell).unwrap_or(usize::MAX));
        let changed = self.changed.iter().copied();
        changed
            .zip(firsts)
            .map(move |(changed, first): (u64, u64)| {
                let all = self.chunks_per_cell.min(chunks.saturating_sub(first));
                (changed, all)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    fn changed(map: &DiskMap) -> Vec<(usize, u64)> {
        let cells = map.cells().enumerate();
        cells
            .filter(|(_, (changed, _))| *changed > 0)
            .map(|(cell, (changed, _))| (cell, changed))
            .collect()
    }

    #[test]
    fn a_map_has_at_most_4096_cells_of_a_power_of_two_of_chunks() {
        for (size, chunk, cell, cells) in [
            (TIB, 4096, 256 << 20, 4096),
            (TIB + 1, 4096, 512 << 20, 2049),
            (16 << 20, 4096, 4096, 4096),
            (1 << 20, 4096, 4096, 256),
            (20 << 30, 4096, 8 << 20, 2560),
            (TIB, 1 << 30, 1 << 30, 1024),
            (512, 4096, 4096, 1),
            (i64::MAX as u64, 512, 1 << 51, 4096),
        ] {
            let map = DiskMap::new(size, chunk);
            assert_eq!((map.cell(), map.cells().count()), (cell, cells), "{size}");
        }
    }

    #[test]
    fn a_chunk_counts_once_and_a_long_part_counts_in_all_its_cells() {
        let mut map = DiskMap::new(64 << 20, 4096); // 4 chunks a cell
        map.add(0, 512);
        map.add(1024, 512);
        map.add(4096, 1);
        assert_eq!(changed(&map), [(0, 2)]);
        map.add(3 * 4096, 6 * 4096);
        assert_eq!(changed(&map), [(0, 3), (1, 4), (2, 1)]);
        map.add(u64::MAX - 5, 100);
        map.add((64 << 20) - 512, 512);
        assert_eq!(changed(&map), [(0, 3), (1, 4), (2, 1), (4095, 1)]);
    }

    #[test]
    fn the_last_cell_is_full_if_all_of_its_chunks_have_changed() {
        let mut map = DiskMap::new((64 << 20) + 4096 + 512, 4096);
        map.add(0, u64::MAX);
        assert!(map.cells().all(|(changed, all)| changed == all));
        assert_eq!(map.cells().last(), Some((2, 2)));
    }
}
