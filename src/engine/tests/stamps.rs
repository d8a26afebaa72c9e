//! What a sector holds in these tests: which write it comes from, and for which
//! sector of the view that write had it.

/// Stamps are below this; the bits above hold the place.
const STAMPS: u64 = 1 << 40;

/// What sector `place` of a view holds after the write with this stamp. Each of its
/// words names the write, so that a torn sector is noticed, and the place, so that
/// the data of another sector of the same write is noticed. Stamp 0 stands for
/// zeroes.
pub fn pattern(place: u64, stamp: u64) -> [u8; 512] {
    assert!(stamp < STAMPS);
    let word = if stamp == 0 {
        0
    } else {
        place * STAMPS + stamp
    };
    let mut sector = [0; 512];
    for bytes in sector.chunks_exact_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    sector
}

/// The data of a write of these sectors.
pub fn data_of(sector: u64, sectors: u64, stamp: u64) -> Vec<u8> {
    let places = sector..sector + sectors;
    places.flat_map(|place| pattern(place, stamp)).collect()
}

/// The stamp in the first word of a sector that is to be sector `place` of a view.
pub fn stamp_at(place: u64, sector: &[u8]) -> Result<u64, String> {
    let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
    let (held, stamp) = (word / STAMPS, word % STAMPS);
    if word != 0 && held != place {
        return Err(format!(
            "sector {place} holds what write {stamp} had for sector {held}"
        ));
    }
    Ok(stamp)
}

/// As [`stamp_at`]; panics if the sector is torn or belongs to another place.
pub fn stamp_of(place: u64, sector: &[u8]) -> u64 {
    let stamp = stamp_at(place, sector).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        sector.chunks_exact(8).all(|w| w == &sector[..8]),
        "torn sector of {stamp}"
    );
    stamp
}

/// The stamps of consecutive sectors, the first of which is sector `first` of a view.
pub fn stamps_from(first: u64, bytes: &[u8]) -> Vec<u64> {
    let sectors = (first..).zip(bytes.chunks_exact(512));
    sectors.map(|(place, s)| stamp_of(place, s)).collect()
}
