//! What the tests write: each sector names the write that it comes from, and all
//! of its bytes follow from that stamp, so a lost, misplaced, torn or shifted
//! sector shows, cheaply.
//!
//! A stamp is `writer << 56 | write << 12 | sector within the write`. Writer 0
//! is the first content of a disk, whose stamps are its sector numbers.

use std::fmt;

pub const SECTOR: usize = 512;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Stands for a sector of zeroes, which no write has.
pub const ZEROES: u64 = u64::MAX;

/// The stamp of the first sector of a write.
pub fn stamp(writer: u8, write: u64) -> u64 {
    assert!(write < 1 << 44);
    u64::from(writer) << 56 | write << 12
}

/// Fills whole sectors with consecutive stamps.
pub fn fill(data: &mut [u8], first: u64) {
    for (sector, stamp) in data.chunks_exact_mut(SECTOR).zip(first..) {
        let mut word = stamp;
        for place in sector.chunks_exact_mut(8) {
            place.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(STEP);
        }
    }
}

/// The stamp of a sector; `None` if its bytes are not all of one stamp.
pub fn read(sector: &[u8]) -> Option<u64> {
    let mut words = sector
        .chunks_exact(8)
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
    let stamp = words.next()?;
    let mut expected = stamp;
    let differs = words.fold(0, |differs, word| {
        expected = expected.wrapping_add(STEP);
        differs | (word ^ expected)
    });
    match differs {
        0 => Some(stamp),
        _ if sector.iter().all(|b| *b == 0) => Some(ZEROES),
        _ => None,
    }
}

/// For messages.
pub struct Found(pub Option<u64>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "a mixture of bytes"),
            Some(ZEROES) => write!(f, "zeroes"),
            Some(stamp) if stamp >> 56 == 0 => write!(f, "first content of sector {stamp}"),
            Some(stamp) => write!(
                f,
                "sector {} of write {} by writer {}",
                stamp & 0xfff,
                stamp >> 12 & 0xfff_ffff_ffff,
                stamp >> 56
            ),
        }
    }
}

/// Compares data with the stamps it must have.
///
/// # Panics
/// Names the first sector that differs.
pub fn check(what: &str, first_sector: u64, data: &[u8], expected: &[u64]) {
    assert_eq!(data.len(), expected.len() * SECTOR, "{what}: length");
    for (i, (sector, expected)) in data.chunks_exact(SECTOR).zip(expected).enumerate() {
        let found = read(sector);
        assert!(
            found == Some(*expected),
            "{what}: sector {} ({i} of {} read) holds {}, not {}",
            first_sector + i as u64,
            expected_len(data),
            Found(found),
            Found(Some(*expected)),
        );
    }
}

fn expected_len(data: &[u8]) -> usize {
    data.len() / SECTOR
}
