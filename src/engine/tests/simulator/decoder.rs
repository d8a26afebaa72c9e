//! A second reader of the on-disk format, written from the format's description
//! that shares no code with the store. The oracles rely on it alone.

/// What a COW image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    Invalid,
    Valid {
        /// In sectors.
        chunk: usize,
        /// Origin chunk and COW chunk, in log order, identical repetitions dropped.
        entries: Vec<(usize, usize)>,
    },
}

fn word(image: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?))
}

/// Reads a COW image as Linux would, and more strictly: nothing may be left
/// behind the terminator but copies of entries that are in the log (Linux would take them
/// for entries when it appends up to them), no two different entries may name one chunk, and
/// none a chunk behind the end of the snapshot, `sectors` long.
///
/// `per_area`: entries in an area. Linux has as many as fit into a chunk; with
/// fewer, the rest of the area's chunk must be zero.
pub fn decode(image: &[u8], sectors: usize, per_area: usize) -> Result<Decoded, String> {
    let Some(header) = word(image, 0).zip(word(image, 8)) else {
        return Err("no room for a header".into());
    };
    let (valid, version, chunk) = (header.0 >> 32, header.1 as u32, (header.1 >> 32) as usize);
    if header.0 as u32 != u32::from_le_bytes(*b"SnAp") || version != 1 {
        return Err(format!("the header is {header:x?}"));
    }
    if valid == 0 {
        return Ok(Decoded::Invalid);
    }
    if valid != 1 || !chunk.is_power_of_two() {
        return Err(format!("the header is {header:x?}"));
    }
    let bytes = chunk * 512;
    let mut entries: Vec<(usize, usize)> = Vec::new();
    let mut ended = false;
    for area in 0.. {
        let start = (1 + area * (per_area + 1)) * bytes;
        let Some(area) = image.get(start..start + bytes) else {
            return Err(format!("area {area} lies behind the end of the device"));
        };
        for (slot, entry) in area.chunks_exact(16).enumerate() {
            let old = word(entry, 0).unwrap_or(0) as usize;
            let new = word(entry, 8).unwrap_or(0) as usize;
            if ended || slot >= per_area {
                let copy = slot < per_area && entries.contains(&(old, new));
                if (old, new) != (0, 0) && !copy {
                    return Err(format!(
                        "something stands after the terminator, in slot {slot}"
                    ));
                }
                continue;
            }
            if new == 0 {
                ended = true;
                if old != 0 {
                    return Err("the terminator is not zero".into());
                }
                continue;
            }
            if old * chunk >= sectors {
                return Err(format!(
                    "entry {old} -> {new} lies behind the snapshot's end"
                ));
            }
            if new < 2 || new % (per_area + 1) == 1 || (new + 1) * bytes > image.len() {
                return Err(format!("entry {old} -> {new} points at no data chunk"));
            }
            match entries.iter().find(|e| e.0 == old || e.1 == new) {
                Some(e) if *e == (old, new) => {}
                Some(e) => return Err(format!("entries {e:?} and {:?} contradict", (old, new))),
                None => entries.push((old, new)),
            }
        }
        if ended {
            break;
        }
    }
    Ok(Decoded::Valid { chunk, entries })
}

/// The entries that the image of a record lists, which is a header and blocks of 30 entries.
pub fn listed(image: &[u8]) -> Vec<(usize, usize)> {
    let blocks = || image.chunks_exact(512).skip(1);
    let field = |block: &[u8], at| word(block, at).unwrap_or(0) as usize;
    let floor = blocks().map(|block| field(block, 16)).max().unwrap_or(0);
    let entry = |block: &[u8], n| (field(block, 32 + 16 * n), field(block, 40 + 16 * n));
    let of_block = |block| (0..30).map(move |n| (field(block, 24) + n, entry(block, n)));
    let all = blocks().flat_map(of_block);
    all.filter(|(slot, (_, new))| *slot >= floor && *new != 0)
        .map(|(_, entry)| entry)
        .collect()
}

/// Writes a store with these entries into `image`, with `junk` after its terminator
/// unless the area ends there.
pub fn encode(
    image: &mut [u8],
    chunk: usize,
    per_area: usize,
    entries: &[(usize, usize)],
    junk: bool,
) {
    let bytes = chunk * 512;
    image[..2 * bytes].fill(0);
    for (at, value) in [(0, *b"SnAp"), (4, [1, 0, 0, 0]), (8, [1, 0, 0, 0])] {
        image[at..at + 4].copy_from_slice(&value);
    }
    image[12..16].copy_from_slice(&(chunk as u32).to_le_bytes());
    for slot in 0..=entries.len() {
        let area = (1 + slot / per_area * (per_area + 1)) * bytes;
        if slot % per_area == 0 {
            image[area..area + bytes].fill(0);
        }
        let at = area + slot % per_area * 16;
        if let Some((old, new)) = entries.get(slot) {
            image[at..at + 8].copy_from_slice(&(*old as u64).to_le_bytes());
            image[at + 8..at + 16].copy_from_slice(&(*new as u64).to_le_bytes());
        } else if junk && slot % per_area + 1 < per_area {
            image[at + 16..at + 24].copy_from_slice(&3u64.to_le_bytes());
            image[at + 24..at + 32].copy_from_slice(&2u64.to_le_bytes());
        }
    }
}

/// The COW chunk of the `n`-th exception of a store that was filled in order.
pub fn nth_data_chunk(per_area: usize, n: usize) -> usize {
    2 + n + n / per_area
}
