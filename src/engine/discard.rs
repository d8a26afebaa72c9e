//! What a discard does. It is a hint, and it never causes a copy-out.
//!
//! On an origin view it frees only the chunks that every snapshot has copied. A
//! copy-out of the others would keep, in every store, data that the guest does not
//! need.

use std::sync::Arc;

use super::api::*;
use super::registrations::{COW, PASSDOWN, WRITE};
use super::views::{Extent, SharedSnapshot, ViewMode};
use crate::io::Zeroing;
use crate::mutation::{self, Mutation};
use crate::units::{SECTOR_SHIFT, byte_count};

/// Largest number of runs of the origin that one discard frees. It limits the
/// commands for one request if settled chunks and others alternate.
const MOST_RUNS: usize = 128;

/// What a discard may touch, for its registration before anything is looked up.
pub(super) const TOUCHES: u64 = WRITE | COW | PASSDOWN;

/// Calls `each` with what the discard changes, and returns what it touches. `None` if
/// the discard has to wait for the gate.
pub(super) fn resolve(
    mode: &ViewMode,
    start: u64,
    end: u64,
    mut each: impl FnMut(Extent, Zeroing),
) -> Option<u64> {
    match mode {
        ViewMode::Gated
        | ViewMode::Failed
        | ViewMode::Origin {
            write_gate: true, ..
        } => None,
        ViewMode::Origin { preserve, .. } => {
            settled_runs(preserve, start, end, |e| each(e, Zeroing::Discard));
            Some(WRITE)
        }
        // No effect, as in Linux: a running batch may be copying the chunk.
        ViewMode::Merge { .. } => Some(0),
        ViewMode::Snapshot {
            snapshot, passdown, ..
        } => {
            if !snapshot.discards.zeroes_cow {
                return Some(0);
            }
            snapshot.resolve(start, end, |e| {
                if e.device.is_some() {
                    each(e, Zeroing::Keep);
                }
            });
            let Some(others) = passdown else {
                return Some(WRITE | COW);
            };
            settled_runs(others, start, end, |e| each(e, Zeroing::Discard));
            Some(WRITE | COW | PASSDOWN)
        }
    }
}

/// The parts of `start .. end` that may change in the origin without a copy-out.
fn settled_runs(
    snapshots: &[Arc<SharedSnapshot>],
    start: u64,
    end: u64,
    mut each: impl FnMut(Extent),
) {
    let snapshots = if mutation::is(Mutation::SharedChunkDiscarded) {
        &[]
    } else {
        snapshots
    };
    let mut give = |from: u64, to: u64| {
        each(Extent::of_origin(from, to - from));
    };
    let mut runs = 0;
    let mut first = None;
    let mut at = start;
    while at < end && runs < MOST_RUNS {
        let mut next = end;
        let mut settled = true;
        for s in snapshots.iter().filter(|s| at < s.sectors) {
            let chunk = s.chunk_size.chunk_of(at);
            let stop = s.chunk_size.first_sector(chunk.saturating_add(1));
            next = next.min(stop.min(s.sectors));
            settled &= s.table.get(chunk).is_settled();
        }
        match (settled, first) {
            (true, None) => first = Some(at),
            (false, Some(from)) => {
                give(from, at);
                runs += 1;
                first = None;
            }
            _ => {}
        }
        at = next;
    }
    if let Some(from) = first {
        give(from, at);
    }
}

/// The command for one extent of a discard.
pub(super) fn command(
    tag: crate::io::Tag,
    origin: crate::io::DeviceId,
    e: Extent,
    how: Zeroing,
) -> Command {
    Command::Zero {
        tag,
        device: e.device.unwrap_or(origin),
        offset: e.device_sector << SECTOR_SHIFT,
        len: u64::try_from(byte_count(e.sectors)).unwrap_or(u64::MAX),
        how,
    }
}
