//! A reader of the stores that shares no code with the daemon's: header, areas,
//! entries, and which sector shows what.

use std::ops::Range;

use super::medium::Image;
use super::plan::{ORIGIN, ORIGIN_AT, Store};

/// What a store's device holds.
pub enum Found {
    Invalid,
    Valid(Copies),
}

pub struct Copies {
    pub store: Store,
    /// By origin chunk: the COW chunk; 0: none.
    pub of: Vec<u64>,
    /// Bytes of the store's device, in whole sectors, with copies of an entry of the log
    /// behind its end.
    pub behind: Option<Range<u64>>,
}

impl Copies {
    /// The sector of the logged disk that a sector of the view is in.
    pub fn place(&self, sector: u64) -> u64 {
        let chunk = self.store.chunk;
        match self.of[(sector / chunk) as usize] {
            0 => ORIGIN_AT + sector,
            copy => self.store.first + copy * chunk + sector % chunk,
        }
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// # Errors
/// What a store of ours never is, at no instant.
pub fn read(image: &Image, store: Store) -> Result<Found, String> {
    let header = image.sector(store.first);
    let words: Vec<u32> = (0..4)
        .map(|n| u32::from_le_bytes(header[n * 4..n * 4 + 4].try_into().expect("four bytes")))
        .collect();
    match words.as_slice() {
        [0x7041_6e53, 0, 1, _] => return Ok(Found::Invalid),
        [0x7041_6e53, 1, 1, chunk] if u64::from(*chunk) == store.chunk => {}
        other => return Err(format!("{}: the header is {other:x?}", store.name)),
    }
    let mut of = vec![0; (ORIGIN / store.chunk) as usize];
    let mut used = vec![false; (store.sectors / store.chunk) as usize];
    let per_area = store.chunk * 32;
    let (mut ended, mut behind) = (false, None);
    let mut area = 1;
    while !ended {
        if (area + 1) * store.chunk > store.sectors {
            return Err(format!("{}: the log goes on where no area is", store.name));
        }
        for sector in area * store.chunk..(area + 1) * store.chunk {
            for entry in image.sector(store.first + sector).chunks_exact(16) {
                let (old, new) = (long(entry, 0), long(entry, 8));
                if ended || new == 0 {
                    ended = true;
                    if (old, new) == (0, 0) {
                        continue;
                    }
                    // A copy of an entry of the log does no harm there.
                    if new == 0 || of.get(old as usize) != Some(&new) {
                        return Err(format!("{}: {old} -> {new} behind the end", store.name));
                    }
                    let first = behind.map_or(sector, |behind: Range<u64>| behind.start / 512);
                    behind = Some(first * 512..(sector + 1) * 512);
                    continue;
                }
                let data = new > 1 && new % (per_area + 1) != 1;
                let on_device = new < store.sectors / store.chunk;
                if !data || !on_device || old >= ORIGIN / store.chunk {
                    return Err(format!("{}: entry {old} -> {new}", store.name));
                }
                // The same entry twice says nothing new.
                if of[old as usize] == new {
                    continue;
                }
                if of[old as usize] != 0 || used[new as usize] {
                    return Err(format!("{}: {old} -> {new} and others", store.name));
                }
                of[old as usize] = new;
                used[new as usize] = true;
            }
        }
        area += per_area + 1;
    }
    Ok(Found::Valid(Copies { store, of, behind }))
}

/// Chunks that a store can keep at most.
pub fn room(store: Store) -> u64 {
    let per_area = store.chunk * 32;
    let rest = store.sectors / store.chunk - 2;
    rest / (per_area + 1) * per_area + (rest % (per_area + 1)).min(per_area - 1)
}
