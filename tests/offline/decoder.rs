//! A second reader of the store format, written from its description and
//! sharing nothing with the product: what a snapshot shows, byte for byte.

use std::collections::BTreeMap;

pub struct Decoded {
    pub chunk_bytes: usize,
    /// Origin chunk → COW chunk.
    pub kept: BTreeMap<u64, u64>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = &bytes[at..at + 8];
    (0..8).fold(0, |sum, i| sum | u64::from(bytes[i]) << (8 * i))
}

/// The map of a store that is accepted; panics on one that must be refused.
pub fn decode(cow: &[u8]) -> Decoded {
    assert_eq!(&cow[..4], b"SnAp");
    assert_ne!(word(cow, 4) & 0xffff_ffff, 0, "valid");
    assert_eq!(word(cow, 8) & 0xffff_ffff, 1, "version");
    let chunk_bytes = (word(cow, 12) & 0xffff_ffff) as usize * 512;
    let entries_in_area = chunk_bytes / 16;
    let mut kept = BTreeMap::new();
    for area in 0.. {
        let at = (1 + area * (entries_in_area + 1)) * chunk_bytes;
        for slot in 0..entries_in_area {
            let (old, new) = (word(cow, at + slot * 16), word(cow, at + slot * 16 + 8));
            if new == 0 {
                return Decoded { chunk_bytes, kept };
            }
            let before = kept.insert(old, new);
            assert!(before.is_none_or(|n| n == new), "two copies of {old}");
        }
    }
    unreachable!()
}

/// What the snapshot shows.
pub fn view(origin: &[u8], cow: &[u8]) -> Vec<u8> {
    let Decoded { chunk_bytes, kept } = decode(cow);
    let mut view = origin.to_vec();
    for (old, new) in kept {
        let (to, from) = (old as usize * chunk_bytes, new as usize * chunk_bytes);
        let len = chunk_bytes.min(view.len() - to);
        view[to..to + len].copy_from_slice(&cow[from..from + len]);
    }
    view
}
