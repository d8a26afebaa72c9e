//! What the engine counts, as plain numbers under its lock. They only grow.

use super::failure::{FailedDevice, Operation};

/// Of one snapshot, since the engine has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Chunks of the origin that were copied into its store.
    pub copied_chunks: u64,
    /// Groups of exceptions that were made durable, each with one write of metadata.
    pub commits: u64,
    /// Flushes of its store that have succeeded: those of commits, of guests if entries had to
    /// become durable with them, and of control requests.
    pub flushes: u64,
}

/// Of all merges together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeCounts {
    /// What is in the origin, and durably removed from the stores.
    pub chunks: u64,
    pub bytes: u64,
    /// Groups of chunks that were begun, and those of them that a guest's write makes.
    pub batches: u64,
    /// Times that a guest's write had to wait for chunks to be merged.
    pub write_waits: u64,
    /// Times that a merge stopped on an error.
    pub failures: u64,
}

/// Operations of the engine on its disks that failed. What a guest's own request transfers
/// without a change of state is not among them: the view counts that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureCounts([[u64; 4]; 3]);

impl FailureCounts {
    pub(super) fn add(&mut self, device: FailedDevice, operation: Operation) {
        let counts = self.0.get_mut(device as usize);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(operation as usize)) {
            *count += 1;
        }
    }

    pub fn get(&self, device: FailedDevice, operation: Operation) -> u64 {
        let counts = self.0.get(device as usize);
        let count = counts.and_then(|counts| counts.get(operation as usize));
        count.copied().unwrap_or_default()
    }
}

/// Since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    pub merge: MergeCounts,
    pub failures: FailureCounts,
    /// Snapshots that became invalid because their stores were full.
    pub invalid_full: u64,
    /// The same because of an error.
    pub invalid_io: u64,
}
