//! What a seed stands for: the daemon's options, the stores and where all of it
//! lies on the one disk that is logged. Host and guest draw the same.

use std::ops::Range;

use super::random::Random;

/// Sectors of the origin.
pub const ORIGIN: u64 = 8192;
/// Where it begins on the logged disk: not at 0, so that a flush's sector tells
/// its device, or tells that it does not.
pub const ORIGIN_AT: u64 = 64;
/// The stores' devices, by the snapshots' names. `s1` is merged, `s2` is taken at
/// run time, `s3` is too small.
pub const STORES: [&str; 3] = ["s1", "s2", "s3"];
/// Where the pilot leaves what `s2` showed first, in the results: stamps.
pub const CUT_AT: u64 = 0;
/// Where the host lets the trace be written to, in the results, in bytes.
pub const TRACE_AT: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Store {
    pub name: &'static str,
    /// Sectors of a chunk.
    pub chunk: u64,
    /// On the logged disk, in sectors.
    pub first: u64,
    pub sectors: u64,
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// `--merge-writes`
    pub policy: &'static str,
    /// `--io-engine`
    pub engine: &'static str,
    /// The merge begins under the snapshot's own guest, who goes on; else under
    /// the origin's, by a rollback.
    pub follow: bool,
    pub stores: [Store; 3],
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut pick = |values: &[u64]| values[random.below(values.len() as u64) as usize];
        let chunks = [8, pick(&[1, 2, 32]), pick(&[4, 16])];
        let mut first = ORIGIN_AT + ORIGIN;
        let mut store = |number: usize, sectors: u64| {
            let store = Store {
                name: STORES[number],
                chunk: chunks[number],
                first,
                sectors,
            };
            first += sectors;
            store
        };
        let stores = [
            store(0, everything(chunks[0])),
            store(1, everything(chunks[1])),
            store(2, chunks[2] * if chunks[2] == 4 { 400 } else { 180 } + 5),
        ];
        Self {
            // Eight seeds have all combinations of these, two have each value.
            policy: ["wait", "redirect"][seed as usize % 2],
            engine: ["io_uring", "threads"][(seed / 4 + seed) as usize % 2],
            follow: (seed / 2 + seed).is_multiple_of(2),
            stores,
        }
    }

    /// The logged disk's sectors.
    pub fn sectors(&self) -> u64 {
        let last = self.stores[2];
        last.first + last.sectors
    }

    /// The sectors of each device: the origin, then the stores.
    pub fn devices(&self) -> [(&'static str, Range<u64>); 4] {
        let [a, b, c] = self.stores.map(|s| (s.name, s.first..s.first + s.sectors));
        [("origin", ORIGIN_AT..ORIGIN_AT + ORIGIN), a, b, c]
    }
}

/// Sectors in which every chunk of the origin finds room.
fn everything(chunk: u64) -> u64 {
    let chunks = ORIGIN.div_ceil(chunk);
    (2 + chunks + chunks / (chunk * 32) + 1) * chunk
}
