//! From a descriptor chain to a validated request.
//!
//! The chain is not trusted, and everything is read once: the header is copied before it
//! is checked, and the iterator copies the descriptors. The range of a [`BlkRequest`]
//! lies within the disk; only whether its data segments are guest memory is checked
//! later, when they are mapped.

use std::ops::Deref;

use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{
    BlkDevice, BlkStatus, MAX_DISCARD_RANGES, MAX_WRITE_ZEROES_RANGES, MAX_WRITE_ZEROES_SECTORS,
};
use crate::units::{SECTOR_SHIFT, SECTOR_SIZE};

/// Most descriptors that a chain may have, which bounds the cost of one request. An iovec
/// array of the kernel has the same limit.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Why a chain with more is refused.
const TOO_MANY: &str = "too many descriptors";
/// Why a chain is refused that `virtio_queue` did not read to its end.
const BROKEN: &str = "a broken descriptor chain";

const HEADER_LEN: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_LEN: usize = 16;

/// Request types of virtio-blk.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    pub const SECURE_ERASE: u32 = 14;
    pub const ZONE_APPEND: u32 = 15;
    pub const ZONE_OPEN: u32 = 18;
    pub const ZONE_CLOSE: u32 = 20;
    pub const ZONE_FINISH: u32 = 22;
    pub const ZONE_RESET: u32 = 24;
    pub const ZONE_RESET_ALL: u32 = 26;
}

/// A piece of the request's data in guest memory; `len` > 0 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: GuestAddress,
    pub len: u32,
}

pub type Segments = SmallVec<[Segment; 4]>;

/// The operation of a request. Its sectors lie within the disk, and `sectors` > 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read {
        sector: u64,
        sectors: u64,
    },
    Write {
        sector: u64,
        sectors: u64,
    },
    /// A write of zeroes; `unmap`: the space may be given back. No data.
    WriteZeroes {
        sector: u64,
        sectors: u64,
        unmap: bool,
    },
    /// No data.
    Discard {
        sector: u64,
        sectors: u64,
    },
    Flush,
    /// The identifier goes into the data, cut off or padded with zeroes.
    GetId,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkRequest {
    pub action: Action,
    /// The further ranges of a DISCARD or a WRITE_ZEROES, the last one first. They are
    /// carried out one after the other, after `action`.
    pub later: Vec<Action>,
    /// The data without header and status, as many bytes as the action's sectors.
    pub data: Segments,
    /// The address of the status byte.
    pub status: GuestAddress,
}

/// A chain that is refused and answered at once. Without a place for the status byte the
/// head goes back with length 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: Option<GuestAddress>,
    pub code: BlkStatus,
    pub reason: &'static str,
}

impl Refused {
    /// Whether the place of the status byte may still be found; see
    /// [`last_written_byte`](super::last_written_byte).
    pub fn is_broken(&self) -> bool {
        self.reason == BROKEN
    }

    /// Whether reading the chain may have taken as long as many requests do.
    pub fn is_costly(&self) -> bool {
        self.is_broken() || self.reason == TOO_MANY
    }
}

/// Checks a chain completely. Any framing is accepted that has readable descriptors before
/// writable ones: the 16 bytes of header come first, the status byte last.
pub fn parse<M>(chain: DescriptorChain<M>, device: &BlkDevice) -> Result<BlkRequest, Refused>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let memory = chain.clone();
    let mut layout = Layout::of(chain)?;
    let status = layout.take_status()?;
    let refuse = |code, reason| Refused {
        status: Some(status),
        code,
        reason,
    };
    let io_error = |reason| refuse(BlkStatus::IoErr, reason);

    if layout.mixed {
        return Err(io_error("a readable descriptor after a writable one"));
    }
    let header = layout
        .take_header(memory.memory())
        .ok_or(io_error("no readable header of 16 bytes"))?;
    if device.read_only && header.is_write() {
        return Err(io_error("a write to a read-only disk"));
    }
    let done = |action, data| {
        Ok(BlkRequest {
            action,
            later: Vec::new(),
            data,
            status,
        })
    };
    match header.kind {
        kind::IN => {
            if !layout.readable.is_empty() {
                return Err(io_error("a read with data to the device"));
            }
            let (sector, sectors) = range(&header, &layout.writable, device).map_err(io_error)?;
            done(Action::Read { sector, sectors }, layout.writable)
        }
        kind::OUT => {
            if !layout.writable.is_empty() {
                return Err(io_error("a write with data from the device"));
            }
            let (sector, sectors) = range(&header, &layout.readable, device).map_err(io_error)?;
            done(Action::Write { sector, sectors }, layout.readable)
        }
        kind::DISCARD | kind::WRITE_ZEROES => {
            let (action, later) = zeroing(&header, &mut layout, memory.memory(), device)
                .map_err(|(code, reason)| refuse(code, reason))?;
            Ok(BlkRequest {
                action,
                later,
                data: Segments::new(),
                status,
            })
        }
        // Data and sector of a flush mean nothing.
        kind::FLUSH => done(Action::Flush, Segments::new()),
        kind::GET_ID => done(Action::GetId, layout.writable),
        _ => Err(refuse(BlkStatus::Unsupported, "an unknown request type")),
    }
}

/// The request's sectors, if its data is whole blocks within the disk.
fn range(header: &Header, data: &Segments, device: &BlkDevice) -> Result<(u64, u64), &'static str> {
    // At most MAX_DESCRIPTORS lengths of 32 bits: cannot overflow.
    let bytes: u64 = data.iter().map(|segment| u64::from(segment.len)).sum();
    if bytes == 0 {
        return Err("no data");
    }
    if !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err("data is not a multiple of 512 bytes");
    }
    check_range(header.sector, bytes >> SECTOR_SHIFT, device)
}

/// The range, if it is whole blocks within the disk.
fn check_range(sector: u64, sectors: u64, device: &BlkDevice) -> Result<(u64, u64), &'static str> {
    let block = (u64::from(device.topology.logical) >> SECTOR_SHIFT).max(1);
    if !sectors.is_multiple_of(block) || !sector.is_multiple_of(block) {
        return Err("not aligned to the block size");
    }
    // Compared in sectors: the guest's 64-bit sector number is never shifted.
    let capacity = device.capacity.sectors();
    if sector > capacity || sectors > capacity - sector {
        return Err("beyond the end of the disk");
    }
    Ok((sector, sectors))
}

/// A DISCARD or a WRITE_ZEROES: its first range, and the further ones, the last first. Each
/// is copied before it is checked, like the header, and all are checked before the first is
/// carried out.
fn zeroing<M: GuestMemory + ?Sized>(
    header: &Header,
    layout: &mut Layout,
    memory: &M,
    device: &BlkDevice,
) -> Result<(Action, Vec<Action>), (BlkStatus, &'static str)> {
    let io_error = |reason| (BlkStatus::IoErr, reason);
    let discard = header.kind == kind::DISCARD;
    if discard && !device.discards() {
        return Err((BlkStatus::Unsupported, "a discard, which is not offered"));
    }
    if !layout.writable.is_empty() {
        return Err(io_error("a range with data from the device"));
    }
    // At most MAX_DESCRIPTORS lengths of 32 bits: cannot overflow.
    let bytes: usize = layout
        .readable
        .iter()
        .map(|segment| usize::try_from(segment.len).unwrap_or(0))
        .sum();
    if bytes == 0 || !bytes.is_multiple_of(RANGE_LEN) {
        return Err(io_error("data is not a multiple of 16 bytes"));
    }
    let most = if discard {
        MAX_DISCARD_RANGES
    } else {
        MAX_WRITE_ZEROES_RANGES
    };
    let count = bytes / RANGE_LEN;
    if !u32::try_from(count).is_ok_and(|count| count <= most) {
        return Err((
            BlkStatus::Unsupported,
            "more ranges than one request may have",
        ));
    }
    let mut next = || {
        let range = layout.take_bytes::<M, RANGE_LEN>(memory);
        zeroing_range(
            &range.ok_or(io_error("a range outside guest memory"))?,
            discard,
            device,
        )
    };
    let first = next()?;
    let mut later = (1..count).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
    later.reverse();
    Ok((first, later))
}

/// One range of a DISCARD or a WRITE_ZEROES.
fn zeroing_range(
    bytes: &[u8; RANGE_LEN],
    discard: bool,
    device: &BlkDevice,
) -> Result<Action, (BlkStatus, &'static str)> {
    const UNMAP: u32 = 1;
    let io_error = |reason| (BlkStatus::IoErr, reason);
    let (sector, rest) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let (sectors, rest) = rest.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let flags = rest.first_chunk::<4>().unwrap_or(&[0; 4]);
    let flags = u32::from_le_bytes(*flags);
    if flags & !UNMAP != 0 || (discard && flags != 0) {
        return Err((BlkStatus::Unsupported, "unknown flags"));
    }
    let sectors = u32::from_le_bytes(*sectors);
    let most = if discard {
        device.max_discard_sectors
    } else {
        MAX_WRITE_ZEROES_SECTORS
    };
    if sectors == 0 {
        return Err(io_error("no sectors"));
    }
    if sectors > most {
        return Err(io_error("more sectors than one range may have"));
    }
    let (sector, sectors) =
        check_range(u64::from_le_bytes(*sector), sectors.into(), device).map_err(io_error)?;
    Ok(if discard {
        Action::Discard { sector, sectors }
    } else {
        let unmap = flags & UNMAP != 0;
        Action::WriteZeroes {
            sector,
            sectors,
            unmap,
        }
    })
}

struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    /// Whether the request would change the disk; this includes types that are not offered.
    fn is_write(&self) -> bool {
        matches!(
            self.kind,
            kind::OUT
                | kind::DISCARD
                | kind::WRITE_ZEROES
                | kind::SECURE_ERASE
                | kind::ZONE_APPEND
                | kind::ZONE_OPEN
                | kind::ZONE_CLOSE
                | kind::ZONE_FINISH
                | kind::ZONE_RESET
                | kind::ZONE_RESET_ALL
        )
    }
}

/// The chain's descriptors by direction, empty ones left out.
struct Layout {
    readable: Segments,
    writable: Segments,
    mixed: bool,
}

impl Layout {
    fn of<M>(chain: DescriptorChain<M>) -> Result<Self, Refused>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let malformed = |reason| Refused {
            status: None,
            code: BlkStatus::IoErr,
            reason,
        };
        let mut layout = Self {
            readable: Segments::new(),
            writable: Segments::new(),
            mixed: false,
        };
        let mut count = 0_usize;
        let mut complete = false;
        let mut last_of_too_many = None;
        for descriptor in chain {
            count += 1;
            complete = !descriptor.has_next();
            let segment = Segment {
                address: descriptor.addr(),
                len: descriptor.len(),
            };
            if count > MAX_DESCRIPTORS {
                // Read to its end, for the place of the status byte.
                let has_room = descriptor.is_write_only() && segment.len > 0;
                last_of_too_many = Some(segment).filter(|_| has_room).or(last_of_too_many);
                continue;
            }
            if descriptor.is_write_only() {
                if segment.len > 0 {
                    layout.writable.push(segment);
                }
            } else {
                layout.mixed |= !layout.writable.is_empty();
                if segment.len > 0 {
                    layout.readable.push(segment);
                }
            }
        }
        // The iterator ends silently at a loop, a bad index, a bad indirect
        // table and a length sum beyond 2^32: its last descriptor then has a next.
        if !complete {
            return Err(malformed(BROKEN));
        }
        if count > MAX_DESCRIPTORS {
            layout.writable.extend(last_of_too_many);
            return Err(Refused {
                status: Some(layout.take_status()?),
                code: BlkStatus::IoErr,
                reason: TOO_MANY,
            });
        }
        Ok(layout)
    }

    /// Takes the last writable byte off.
    fn take_status(&mut self) -> Result<GuestAddress, Refused> {
        let malformed = |reason| Refused {
            status: None,
            code: BlkStatus::IoErr,
            reason,
        };
        let last = self
            .writable
            .last_mut()
            .ok_or(malformed("no place for the status byte"))?;
        last.len -= 1;
        let address = last.address.0.checked_add(u64::from(last.len));
        if last.len == 0 {
            self.writable.pop();
        }
        address
            .map(GuestAddress)
            .ok_or(malformed("a descriptor beyond the address space"))
    }

    /// Takes the header off and copies it once.
    fn take_header<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Option<Header> {
        let bytes = self.take_bytes::<M, HEADER_LEN>(memory)?;
        let (kind, _) = bytes.split_first_chunk::<4>()?;
        let (_, sector) = bytes.split_last_chunk::<8>()?;
        Some(Header {
            kind: u32::from_le_bytes(*kind),
            sector: u64::from_le_bytes(*sector),
        })
    }

    /// Takes the first readable bytes off and copies them once.
    fn take_bytes<M: GuestMemory + ?Sized, const N: usize>(
        &mut self,
        memory: &M,
    ) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut rest = &mut bytes[..];
        let mut used_up = 0;
        for segment in &mut self.readable {
            let len = usize::try_from(segment.len).ok()?.min(rest.len());
            let (now, later) = rest.split_at_mut_checked(len)?;
            memory.read_slice(now, segment.address).ok()?;
            rest = later;
            segment.len -= u32::try_from(len).ok()?;
            let address = segment.address.0.checked_add(u64::try_from(len).ok()?)?;
            segment.address = GuestAddress(address);
            if segment.len > 0 {
                break;
            }
            used_up += 1;
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            return None;
        }
        self.readable.drain(..used_up);
        Some(bytes)
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
