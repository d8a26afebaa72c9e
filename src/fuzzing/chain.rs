//! A second decoder of descriptor chains, written from the virtio specification and apart
//! from `virtio_blk::request`: it judges what a worker did. It works on a copy of the
//! guest's memory, on lists of single bytes.

use super::memory::Image;
use crate::virtio_blk::BlkDevice;

/// What a chain asks for, and what has to come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Read {
        sector: u64,
        sectors: u64,
    },
    Write {
        sector: u64,
        sectors: u64,
    },
    /// Ranges of sectors, in the order in which they are carried out.
    Zeroes(Vec<SectorRange>),
    Discard(Vec<SectorRange>),
    Flush,
    Id,
    Failure,
    Unsupported,
}

/// The first sector, and how many there are.
pub type SectorRange = (u64, u64);

/// A piece of a chain: address and length in bytes.
pub type Piece = (u64, u64);

/// A chain that was decoded.
#[derive(Clone, Debug)]
pub struct Chain {
    pub wish: Wish,
    /// Where the status byte goes, if there is a place for it. It may lie outside of memory.
    pub status: Option<u64>,
    /// All that the device may write, the status byte included.
    pub writable: Vec<Piece>,
    /// Descriptors tables, header and data that the device reads.
    pub readable: Vec<Piece>,
    /// The data of the request, without header and status byte.
    pub data: Vec<Piece>,
}

/// Descriptors that a chain may have.
const MOST: usize = 1024;
/// Bytes that they may have.
const MOST_BYTES: u64 = u32::MAX as u64;
/// Descriptors of an indirect table: more than these cannot be told apart.
const MOST_IN_TABLE: u64 = 0xffff;

struct Walk {
    /// (writable, address, length)
    descriptors: Vec<(bool, u64, u64)>,
    tables: Vec<Piece>,
    /// The chain has an end.
    complete: bool,
    /// It breaks a limit.
    excessive: bool,
}

/// Follows the chain from `head` of a table of `size` descriptors at `table`.
fn walk(image: &Image, table: u64, size: u16, head: u16) -> Walk {
    let mut walk = Walk {
        descriptors: Vec::new(),
        tables: Vec::new(),
        complete: false,
        excessive: false,
    };
    let (mut table, mut size, mut next) = (table, u64::from(size), u64::from(head));
    let (mut steps, mut total, mut indirect) = (0, 0, false);
    loop {
        if next >= size || steps >= size.min(MOST_IN_TABLE + 1) {
            return walk;
        }
        let Some(place) = table.checked_add(16 * next) else {
            return walk;
        };
        walk.tables.push((place, 16));
        let Some(raw) = image.array::<16>(place) else {
            return walk;
        };
        let raw = u128::from_le_bytes(raw);
        let (address, len) = (raw as u64, u64::from((raw >> 64) as u32));
        let (flags, link) = ((raw >> 96) as u16, (raw >> 112) as u16);
        if flags & 4 != 0 {
            if indirect || len % 16 != 0 {
                return walk;
            }
            walk.excessive |= len / 16 > MOST_IN_TABLE;
            (table, size, next, steps, indirect) = (address, len / 16, 0, 0, true);
            continue;
        }
        total += len;
        walk.excessive |= total > MOST_BYTES;
        walk.descriptors.push((flags & 2 != 0, address, len));
        if flags & 1 == 0 {
            walk.complete = true;
            walk.excessive |= walk.descriptors.len() > MOST;
            return walk;
        }
        (next, steps) = (u64::from(link), steps + 1);
    }
}

/// Decodes the chain from `head` of a table of `size` descriptors at `table`.
pub fn decode(image: &Image, table: u64, size: u16, head: u16, device: &BlkDevice) -> Chain {
    let Walk {
        descriptors,
        mut tables,
        complete,
        excessive,
    } = walk(image, table, size, head);
    // A loop comes to the same places many times.
    tables.sort_unstable();
    tables.dedup();
    let filled = |writable| {
        let all = descriptors.iter();
        let wanted = all.filter(move |(w, _, len)| *w == writable && *len > 0);
        wanted.map(|(_, address, len)| (*address, *len))
    };
    let (mut input, mut output): (Vec<_>, Vec<_>) =
        (filled(false).collect(), filled(true).collect());
    let mut chain = Chain {
        wish: Wish::Failure,
        status: None,
        writable: Vec::new(),
        readable: tables,
        data: Vec::new(),
    };
    if !complete {
        return chain;
    }
    chain.readable.extend(&input);
    let Some((address, len)) = output.pop() else {
        return chain;
    };
    let Some(status) = address.checked_add(len - 1) else {
        return chain;
    };
    chain.status = Some(status);
    chain.writable.push((status, 1));
    if len > 1 {
        output.push((address, len - 1));
    }
    // Only a limit is broken, so the place of the status byte is known.
    if excessive || is_mixed(&descriptors) {
        return chain;
    }
    let Some(header) = cut::<16>(image, &mut input) else {
        return chain;
    };
    let header = u128::from_le_bytes(header);
    let (kind, sector) = (header as u32, (header >> 64) as u64);
    chain.wish = wish(image, device, kind, sector, &mut input, &output);
    chain.data = match chain.wish {
        Wish::Read { .. } | Wish::Id => output,
        Wish::Write { .. } => input,
        _ => Vec::new(),
    };
    if !chain.data.iter().all(|(at, len)| Image::has(*at, *len)) {
        chain.wish = Wish::Failure;
    } else if matches!(chain.wish, Wish::Read { .. } | Wish::Id) {
        chain.writable.extend(&chain.data);
    }
    chain
}

/// Something readable behind something writable.
fn is_mixed(descriptors: &[(bool, u64, u64)]) -> bool {
    let first = descriptors.iter().position(|(w, _, len)| *w && *len > 0);
    first.is_some_and(|first| descriptors[first..].iter().any(|(w, _, _)| !w))
}

/// The first bytes of `pieces`, which get shorter.
fn cut<const N: usize>(image: &Image, pieces: &mut Vec<Piece>) -> Option<[u8; N]> {
    let mut bytes = Vec::new();
    while bytes.len() < N {
        let (address, len) = *pieces.first()?;
        let now = len.min((N - bytes.len()) as u64);
        bytes.extend_from_slice(image.get(address, now)?);
        if now == len {
            pieces.remove(0);
        } else {
            pieces[0] = (address.checked_add(now)?, len - now);
        }
    }
    bytes.try_into().ok()
}

fn wish(
    image: &Image,
    device: &BlkDevice,
    kind: u32,
    sector: u64,
    input: &mut Vec<Piece>,
    output: &[Piece],
) -> Wish {
    let writes = matches!(kind, 1 | 11 | 13 | 14 | 15 | 18 | 20 | 22 | 24 | 26);
    if device.read_only && writes {
        return Wish::Failure;
    }
    let bytes = |pieces: &[Piece]| pieces.iter().map(|(_, len)| len).sum::<u64>();
    match kind {
        0 if input.is_empty() => match range(device, sector, bytes(output)) {
            Some(sectors) => Wish::Read { sector, sectors },
            None => Wish::Failure,
        },
        1 if output.is_empty() => match range(device, sector, bytes(input)) {
            Some(sectors) => Wish::Write { sector, sectors },
            None => Wish::Failure,
        },
        0 | 1 => Wish::Failure,
        4 => Wish::Flush,
        8 => Wish::Id,
        11 if device.max_discard_sectors == 0 => Wish::Unsupported,
        11 | 13 if !output.is_empty() => Wish::Failure,
        11 | 13 => zeroing(image, device, kind == 11, input),
        _ => Wish::Unsupported,
    }
}

/// All ranges, or what is wrong with the first wrong one.
fn zeroing(image: &Image, device: &BlkDevice, discard: bool, input: &mut Vec<Piece>) -> Wish {
    let bytes: u64 = input.iter().map(|(_, len)| len).sum();
    if bytes == 0 || !bytes.is_multiple_of(16) {
        return Wish::Failure;
    }
    let (most_ranges, most_sectors, known_flags) = if discard {
        (32, u64::from(device.max_discard_sectors), 0)
    } else {
        (8, 8192, 1)
    };
    if bytes / 16 > most_ranges {
        return Wish::Unsupported;
    }
    let mut ranges = Vec::new();
    for _ in 0..bytes / 16 {
        let Some(raw) = cut::<16>(image, input) else {
            return Wish::Failure;
        };
        let raw = u128::from_le_bytes(raw);
        let (sector, sectors) = (raw as u64, u64::from((raw >> 64) as u32));
        if (raw >> 96) as u32 & !known_flags != 0 {
            return Wish::Unsupported;
        }
        if sectors > most_sectors || range(device, sector, sectors * 512).is_none() {
            return Wish::Failure;
        }
        ranges.push((sector, sectors));
    }
    if discard {
        Wish::Discard(ranges)
    } else {
        Wish::Zeroes(ranges)
    }
}

/// The number of sectors, if they are whole blocks of the disk.
fn range(device: &BlkDevice, sector: u64, bytes: u64) -> Option<u64> {
    let block = u64::from(device.topology.logical);
    let aligned = bytes > 0 && bytes.is_multiple_of(block) && sector.is_multiple_of(block / 512);
    let end = sector.checked_add(bytes / 512)?;
    (aligned && end <= device.capacity.sectors()).then_some(bytes / 512)
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
