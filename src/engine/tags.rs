//! The tags of the engine's I/O commands.
//!
//! | bits | meaning |
//! |---|---|
//! | 63 | I/O of the critical section; the rest is its number there |
//! | 32 | a fast request's flush of a COW device |
//! | 0–15 | the slot of a fast request |

use super::api::Slot;
use crate::io::Tag;

const CORE: Tag = 1 << 63;
const COW_FLUSH: Tag = 1 << 32;

/// Whose I/O a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The critical section's operation of this number.
    Core(usize),
    /// The fast request in this slot.
    Fast { slot: Slot, cow_flush: bool },
}

/// The tag of an operation of the critical section.
pub(super) const fn core(number: usize) -> Tag {
    number as Tag | CORE
}

/// The tag of a fast request's transfers and of its flush of the origin.
pub(super) fn fast(slot: Slot) -> Tag {
    Tag::from(slot)
}

/// The tag of a fast request's flush of a COW device.
pub(super) fn cow_flush(slot: Slot) -> Tag {
    Tag::from(slot) | COW_FLUSH
}

/// `None` for a tag that the engine never gave out.
pub(super) fn owner(tag: Tag) -> Option<Owner> {
    if tag & CORE != 0 {
        return usize::try_from(tag & !CORE).ok().map(Owner::Core);
    }
    let slot = Slot::try_from(tag & !COW_FLUSH).ok()?;
    let cow_flush = tag & COW_FLUSH != 0;
    Some(Owner::Fast { slot, cow_flush })
}

/// Whether the operation is a transfer of a fast request: if it fails, that request
/// fails, and nothing else changes.
pub(super) const fn is_fast_transfer(tag: Tag) -> bool {
    tag & (CORE | COW_FLUSH) == 0
}
