//! Stores, decoded by the description of the format and without the code under test.

/// Origin chunk and COW chunk of every entry, in the order of the log. The store is one that was
/// accepted.
pub fn entries(cow: &[u8]) -> Vec<(u64, u64)> {
    let chunk = chunk_bytes(cow);
    let area = chunk / 16;
    let mut found = Vec::new();
    for slot in 0.. {
        let at = (1 + slot / area * (area + 1)) * chunk + slot % area * 16;
        let word = |at: usize| u64::from_le_bytes(cow[at..at + 8].try_into().unwrap());
        if word(at + 8) == 0 {
            break;
        }
        found.push((word(at), word(at + 8)));
    }
    found
}

/// Bytes of a chunk.
fn chunk_bytes(cow: &[u8]) -> usize {
    u32::from_le_bytes(cow[12..16].try_into().unwrap()) as usize * 512
}

/// What the snapshot shows.
pub fn view(origin: &[u8], cow: &[u8]) -> Vec<u8> {
    let chunk = chunk_bytes(cow);
    let mut shown = origin.to_vec();
    for (old, new) in entries(cow) {
        let (old, new) = (old as usize * chunk, new as usize * chunk);
        let end = (old + chunk).min(shown.len());
        let len = end - old;
        shown[old..end].copy_from_slice(&cow[new..new + len]);
    }
    shown
}
