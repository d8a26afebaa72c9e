//! Requests of virtio-blk as no driver makes them: whatever the ring allows, said wrongly.

mod kinds;
mod large;
mod layout;
mod live;
mod ranges;
mod zeroing;

use vm_memory::{Bytes, GuestAddress};

use super::client::{Case, Outcome, WORK};
use super::raw::{NEXT, Raw, Ring, WRITE};

pub const FLUSH_REQUEST: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// The feature bit that belongs to [`DISCARD`].
pub const F_DISCARD: u64 = 1 << 13;
/// The feature bit that belongs to [`WRITE_ZEROES`].
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data of a case: as much as lies between other parts of the guest's memory.
pub const ROOM: u64 = 0x20_0000;
/// A table of indirect descriptors.
pub const TABLE: u64 = 0x38_0000;
/// Sectors that a case may write.
pub const FREE: u64 = WORK + 8;

/// Address, length and flags of a descriptor.
pub type Part = (u64, u32, u16);

/// The header of a request at head 0; the status byte behind it is set to 0xff. Returns the
/// header's address.
pub fn header(raw: &Raw, ring: &Ring, kind: u32, sector: u64) -> u64 {
    let header = raw.header(ring, 0);
    let put = |at: u64, bytes: &[u8]| {
        raw.memory
            .write_slice(bytes, GuestAddress(header + at))
            .unwrap();
    };
    put(0, &kind.to_le_bytes());
    put(4, &[0; 4]);
    put(8, &sector.to_le_bytes());
    put(16, &[0xff]);
    header
}

/// A chain at head 0: header, `parts`, status byte.
pub fn put(raw: &Raw, ring: &Ring, kind: u32, sector: u64, parts: &[Part]) {
    let header = header(raw, ring, kind, sector);
    raw.chain(ring, 0, &framed(header, parts));
}

fn framed(header: u64, parts: &[Part]) -> Vec<Part> {
    let mut all = vec![(header, 16, 0)];
    all.extend(parts);
    all.push((header + 16, 1, WRITE));
    all
}

/// The same, with all descriptors in an indirect table.
pub fn put_indirect(raw: &Raw, ring: &Ring, kind: u32, sector: u64, parts: &[Part]) {
    const INDIRECT: u16 = 4;
    let header = header(raw, ring, kind, sector);
    let all = framed(header, parts);
    for (at, (address, len, flags)) in all.iter().enumerate() {
        let more = if at + 1 < all.len() { NEXT } else { 0 };
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend((flags | more).to_le_bytes());
        bytes.extend((at as u16 + 1).to_le_bytes());
        let place = GuestAddress(TABLE + 16 * at as u64);
        raw.memory.write_slice(&bytes, place).unwrap();
    }
    raw.descriptor(ring, 0, (TABLE, 16 * all.len() as u32, INDIRECT, 0));
}

/// A request with these parts between header and status.
pub fn request(
    name: &'static str,
    outcome: Outcome,
    kind: u32,
    sector: u64,
    parts: &[Part],
) -> Case {
    let parts = parts.to_vec();
    Case::ring(name, outcome, move |raw, ring| {
        put(raw, ring, kind, sector, &parts);
        raw.offer(ring, &[0]);
    })
}

/// The bytes of a range of DISCARD or WRITE_ZEROES.
pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// A DISCARD or WRITE_ZEROES with these ranges: sector, sectors, flags.
pub fn ranges(name: &'static str, outcome: Outcome, kind: u32, list: &[(u64, u32, u32)]) -> Case {
    let bytes: Vec<u8> = list.iter().flat_map(|r| range(r.0, r.1, r.2)).collect();
    with_bytes(name, outcome, kind, bytes)
}

/// A DISCARD or WRITE_ZEROES with this data.
pub fn with_bytes(name: &'static str, outcome: Outcome, kind: u32, bytes: Vec<u8>) -> Case {
    Case::ring(name, outcome, move |raw, ring| {
        raw.memory.write_slice(&bytes, GuestAddress(ROOM)).unwrap();
        put(raw, ring, kind, 0, &[(ROOM, bytes.len() as u32, 0)]);
        raw.offer(ring, &[0]);
    })
}

pub fn bytes(raw: &Raw, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    raw.memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

pub fn fill(raw: &Raw, address: u64, byte: u8, len: usize) {
    raw.memory
        .write_slice(&vec![byte; len], GuestAddress(address))
        .unwrap();
}
