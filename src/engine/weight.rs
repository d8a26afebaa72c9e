//! What a request may make the engine and a disk hold while it is under way, as an upper
//! bound that is known before the request is decided.
//!
//! A view with exceptions may need one operation for each chunk. Therefore a port tells
//! its owner how many sectors to hand in at once (a *window*), and how many bytes of
//! memory that may take. The owner hands in a long request window by window, and as many
//! requests at a time as it has memory for.

use super::api::RequestKind;
use super::views::{PreserveList, SharedSnapshot, ViewMode};
use crate::units::SECTOR_SHIFT;

/// Most chunks that one window is counted with, unless a single chunk counts more.
const WINDOW_CHUNKS: u64 = 1024;
/// The window in sectors where chunks do not count (64 MiB).
const WHOLE: u64 = 1 << 17;
/// Memory of one operation: the command, its entry in the disk with its vector, its end,
/// and what the critical section keeps about it.
const OPERATION_BYTES: u64 = 768;
/// Operations of a discard of the origin, whose parts are limited in number.
const RUNS_OF_A_DISCARD: u64 = 130;
/// Largest buffer for the old content of a chunk; the copy of a larger one has four
/// pieces of this size under way.
const PATCH_BYTES_MAX: u64 = 1 << 20;
const PIECES: u64 = 4;

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Most sectors that may be handed in at once: a power of two. Windows end at its
    /// multiples.
    pub window: u64,
    /// Most bytes that one window takes while it is under way.
    pub bytes: u64,
}

impl Weight {
    /// Of a request that is one operation, whatever its length.
    pub const ONE_OPERATION: Self = Self {
        window: WHOLE,
        bytes: OPERATION_BYTES,
    };
}

/// What one kind of request takes in a view's present mode.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// log2 of the sectors of the smallest chunk.
    shift: u32,
    /// Operations for each chunk; 0: the request is one operation.
    per_chunk: u64,
    window: u64,
    /// log2 of the sectors of a chunk whose old content is read if a part is written;
    /// `None`: never.
    patched: Option<u32>,
}

impl Rate {
    const ONE: Self = Self {
        shift: 0,
        per_chunk: 0,
        window: WHOLE,
        patched: None,
    };

    /// Each chunk of the smallest of these sizes counts `per_chunk` operations.
    fn of(sizes: impl Iterator<Item = u32>, per_chunk: u64) -> Self {
        let Some(shift) = sizes.min() else {
            return Self::ONE;
        };
        let chunks = (WINDOW_CHUNKS / per_chunk.max(1)).max(1);
        let window = 1 << (chunks.ilog2() + shift);
        Self {
            shift,
            per_chunk,
            // A whole chunk at least, so that it is written as one.
            window: WHOLE.max(1 << shift).min(window),
            patched: None,
        }
    }

    fn weigh(&self, sector: u64, sectors: u64) -> Weight {
        if self.per_chunk == 0 {
            return Weight::ONE_OPERATION;
        }
        let chunks = (sectors.min(self.window) >> self.shift) + 2;
        let operations = chunks.saturating_mul(self.per_chunk);
        Weight {
            window: self.window,
            bytes: operations.saturating_mul(OPERATION_BYTES) + self.patches(sector, sectors),
        }
    }

    /// Bytes for the old content of chunks at both ends of which a part is written.
    fn patches(&self, sector: u64, sectors: u64) -> u64 {
        let Some(shift) = self.patched else { return 0 };
        let inside = (1 << shift) - 1;
        let end = sector.saturating_add(sectors);
        let cut = u64::from(sector & inside != 0) + u64::from(end & inside != 0);
        let chunk = 1_u64 << (shift + SECTOR_SHIFT);
        let each = if chunk > PATCH_BYTES_MAX {
            PIECES * PATCH_BYTES_MAX
        } else {
            chunk
        };
        cut * each
    }
}

/// The rates of a view's mode. Made anew when the mode changes, because their making looks
/// at every snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    read: Rate,
    write: Rate,
    discard: Rate,
}

impl Rates {
    pub fn of(mode: &ViewMode) -> Self {
        match mode {
            // What waits at the gate is decided by the mode that follows. It is not
            // known, so that each request counts as one to the least of windows.
            ViewMode::Gated => Self::all(Rate::of([0].into_iter(), 1)),
            ViewMode::Failed => Self::all(Rate::ONE),
            ViewMode::Origin { preserve, .. } => Self {
                read: Rate::ONE,
                write: Rate::of(sizes(preserve), count(preserve)),
                discard: Rate::of([17].into_iter(), RUNS_OF_A_DISCARD),
            },
            ViewMode::Snapshot { snapshot, .. } => {
                let own = [shift(snapshot)].into_iter();
                let each = Rate::of(own.clone(), 1);
                let write = Rate {
                    patched: Some(shift(snapshot)),
                    ..each
                };
                Self {
                    read: each,
                    write,
                    discard: Rate::of(own, 2),
                }
            }
            ViewMode::Merge {
                snapshot, preserve, ..
            } => {
                let own = [shift(snapshot)].into_iter();
                let all = own.clone().chain(sizes(preserve));
                Self {
                    read: Rate::of(own, 1),
                    write: Rate::of(all, 1 + count(preserve)),
                    discard: Rate::ONE,
                }
            }
        }
    }

    fn all(rate: Rate) -> Self {
        Self {
            read: rate,
            write: rate,
            discard: rate,
        }
    }

    pub fn weigh(&self, kind: RequestKind, sector: u64, sectors: u64) -> Weight {
        match kind {
            RequestKind::Read => self.read.weigh(sector, sectors),
            RequestKind::Write { .. } => self.write.weigh(sector, sectors),
            RequestKind::Discard => self.discard.weigh(sector, sectors),
            RequestKind::Flush => Weight {
                bytes: 2 * OPERATION_BYTES,
                ..Weight::ONE_OPERATION
            },
        }
    }
}

fn shift(snapshot: &SharedSnapshot) -> u32 {
    snapshot.chunk_size.sectors().trailing_zeros()
}

fn sizes(preserve: &PreserveList) -> impl Iterator<Item = u32> {
    preserve.iter().map(|snapshot| shift(snapshot))
}

fn count(preserve: &PreserveList) -> u64 {
    u64::try_from(preserve.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Sizes in sectors.
    fn rate(sizes: &[u64], per_chunk: u64) -> Rate {
        let shifts = sizes.iter().map(|size| size.trailing_zeros());
        Rate::of(shifts, per_chunk)
    }

    #[test]
    fn no_window_weighs_more_than_a_fixed_number_of_operations() {
        for size in (0..=21).map(|shift| 1_u64 << shift) {
            for count in [1, 2, 15, 64, 1000] {
                let rate = rate(&[size], count);
                let weight = rate.weigh(3, u64::MAX / 2);
                let most = (WINDOW_CHUNKS + 2 * count).max(3 * count);
                assert!(weight.bytes <= most * OPERATION_BYTES, "{size} {count}");
                assert!(weight.window.is_power_of_two() && weight.window >= size);
            }
        }
    }

    #[test]
    fn the_smallest_chunk_counts() {
        assert_eq!(rate(&[8, 1 << 21, 64], 3).window, 8 * 256);
    }

    #[test]
    fn what_is_one_operation_is_not_cut() {
        let weight = Rate::ONE.weigh(0, 1 << 40);
        assert_eq!(weight, Weight::ONE_OPERATION);
    }

    /// Otherwise writes of a sector to chunks of a mebibyte would hold a mebibyte each.
    #[test]
    fn the_old_content_of_chunks_that_are_written_in_part_counts() {
        let write = Rate {
            patched: Some(11),
            ..rate(&[2048], 1)
        };
        let bytes = |sector, sectors| write.weigh(sector, sectors).bytes >> 20;
        assert_eq!(bytes(0, 2048), 0);
        assert_eq!(bytes(0, 1), 1);
        assert_eq!(bytes(2047, 2), 2);
        let larger = Rate {
            patched: Some(21),
            ..rate(&[1 << 21], 1)
        };
        assert_eq!(larger.weigh(0, 8).bytes >> 20, 4);
    }
}
