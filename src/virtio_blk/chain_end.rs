//! Where a chain that cannot be carried out has its status byte.
//!
//! `virtio_queue` ends a chain silently where it breaks a rule. Two of these rules leave it
//! clear where the chain ends: that its lengths are 4 GiB at most, and that a table has less
//! than 65,536 descriptors. A chain that breaks only these gets an error status.

use std::mem::size_of;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
const _: () = assert!(size_of::<Descriptor>() == 16);

/// Descriptors that can be told apart by the 16 bits of `next`.
const DISTINCT: u32 = 1 << 16;

/// The last byte that the chain at `head` lets the device write, if the chain has an end.
/// `table` has `size` descriptors. Reads 65,536 descriptors and those of the ring at most.
/// The guest may change them meanwhile: the address is one that it could have given, too.
pub fn last_written_byte(
    memory: &impl GuestMemory,
    table: GuestAddress,
    size: u16,
    head: u16,
) -> Option<GuestAddress> {
    let (mut table, mut count) = (table, u32::from(size));
    let (mut index, mut left) = (u32::from(head), count);
    let mut indirect = false;
    let mut last = None;
    while left > 0 && index < count {
        let place = table.checked_add(u64::from(index) * u64::from(DESCRIPTOR))?;
        let descriptor: Descriptor = memory.read_obj(place).ok()?;
        if descriptor.refers_to_indirect_table() {
            if indirect || !descriptor.len().is_multiple_of(DESCRIPTOR) {
                return None;
            }
            indirect = true;
            table = descriptor.addr();
            count = descriptor.len() / DESCRIPTOR;
            (index, left) = (0, count.min(DISTINCT));
            continue;
        }
        if descriptor.is_write_only() && descriptor.len() > 0 {
            let end = u64::from(descriptor.len() - 1);
            last = Some((descriptor.addr(), end));
        }
        if !descriptor.has_next() {
            let (address, end) = last?;
            return address.checked_add(end);
        }
        index = u32::from(descriptor.next());
        left -= 1;
    }
    None
}
