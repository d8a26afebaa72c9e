//! Definitions that a guest and the host share: the content that a test gives a block,
//! and the checksum with which a whole disk is compared through a serial line.

/// Bytes of one block of content.
pub const BLOCK: usize = 4096;

/// Bytes that one checksum covers.
pub const SUM_BLOCK: usize = 256 * 1024;

/// Fills `target` (one block, or one sector where `block` counts sectors) with the
/// content of block number `block` after write number `write`; write 0 is the fill of
/// the disk. Bytes 0..8 hold `block` and 8..16 `write`, little-endian; the rest is
/// derived from them and `seed`.
pub fn put(target: &mut [u8], seed: u64, block: u64, write: u64) {
    let mut word = random(seed ^ block.rotate_left(32) ^ write);
    for (index, slot) in target.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => block,
            1 => write,
            _ => word,
        };
        slot.copy_from_slice(&value.to_le_bytes());
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

/// A well-mixed function of `state` (splitmix64).
pub fn random(state: u64) -> u64 {
    let mut word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A 64-bit checksum of `bytes` in which position matters; a short last word
/// counts as if zeros followed it. It detects accidents, not attacks.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 29;
    }
    sum
}
