//! A checked store, and the writes that must precede its use.

use std::ops::Range;

use super::StoreError;
use super::disk::StoreDisk;
use super::metadata::{MetaWrite, Metadata};
use super::removal::RemovalPlan;
use super::scan::Junk;
use crate::io::{DeviceId, Disk};
use crate::mutation::{self, Mutation};

/// A valid store as it was found. [`Self::settle`] makes the disk agree with
/// the log; only then can the log be changed.
#[derive(Debug)]
pub struct ValidStore {
    metadata: Metadata,
    duplicates: Vec<usize>,
    repair: RemovalPlan,
    junk: Option<Junk>,
    /// The unit in which the log on disk ends, duplicates included.
    last_unit: MetaWrite,
}

impl ValidStore {
    pub(super) fn new(log: Metadata, duplicates: Vec<usize>, junk: Option<Junk>) -> Self {
        let repair = log.plan_removal(&duplicates);
        let last_unit = log.last_unit();
        let metadata = if duplicates.is_empty() || mutation::is(Mutation::RepetitionsKept) {
            log
        } else {
            log.without(&repair)
        };
        Self {
            metadata,
            duplicates,
            repair,
            junk,
            last_unit,
        }
    }

    /// The log with each chunk once, for reading only.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes of the COW device, in whole units, that hold stale data after the log's end.
    /// Linux would take it for entries once the log has grown.
    pub fn junk(&self) -> Option<Range<u64>> {
        self.junk.as_ref().map(|junk| junk.bytes.clone())
    }

    /// How many entries the junk is, if it is harmless: see [`Junk::copies`].
    pub fn copies_behind_end(&self) -> u64 {
        let copies = |junk: &Junk| junk.copies(self.metadata.entries().iter());
        self.junk.as_ref().map_or(0, copies)
    }

    /// Slots on disk of entries that repeat an earlier one.
    pub fn duplicates(&self) -> &[usize] {
        &self.duplicates
    }

    /// Nothing to write before use.
    pub fn is_clean(&self) -> bool {
        self.junk.is_none() && self.duplicates.is_empty()
    }

    /// Clears what is stale after the log's end, then removes the duplicates.
    ///
    /// Order: 0 flush: what was read may have been written by a process that was killed,
    /// and power loss could undo it, while origin writes rely on it →
    /// 1 units behind the one where the log ends zeroed → 2 durable →
    /// 3 the unit where it ends rewritten, durable (the terminator stays where
    /// it is through 1–3, so what is left of the junk stays dead) → 4 moves →
    /// 5 durable → 6 each step of the tail, durable before the next.
    ///
    /// # Errors
    /// I/O errors. The store is still the one that was loaded, and can be
    /// loaded again.
    pub fn settle(self, disk: &mut dyn Disk, device: DeviceId) -> Result<Metadata, StoreError> {
        let mut disk = StoreDisk::new(disk, device);
        disk.flush()?; // 0
        if let Some(Junk { bytes: junk, .. }) = &self.junk
            && !mutation::is(Mutation::JunkKept)
        {
            let behind = self
                .last_unit
                .offset
                .saturating_add(self.last_unit.data.len() as u64);
            let start = junk.start.max(behind);
            if start < junk.end {
                disk.write_zeroes(start, junk.end - start)?; // 1
                disk.flush()?; // 2
            }
            disk.write_durable(self.last_unit.offset, &self.last_unit.data)?; // 3
        }
        let RemovalPlan { moves, tail, .. } = &self.repair;
        if mutation::is(Mutation::RepetitionsKept) {
            return Ok(self.metadata);
        }
        for step in std::iter::once(moves).chain(tail) {
            disk.write_step(step)?; // 4–6
        }
        Ok(self.metadata)
    }
}

/// As [`ValidStore::settle`] for a store that was found invalid: once this has
/// returned, power loss does not make it valid again.
///
/// # Errors
/// I/O errors.
pub fn settle_invalid(disk: &mut dyn Disk, device: DeviceId) -> Result<(), StoreError> {
    StoreDisk::new(disk, device).flush()
}
