//! The I/O commands that the critical section has given out, each with its purpose.
//!
//! An operation counts for one snapshot at most, as [`IoPurpose::snapshot`] says,
//! from [`Core::issue`] to its end. A removal and the end of a merge wait until
//! nothing counts for their snapshot any more.

use slab::Slab;

use super::Core;
use super::waiting::RequestId;
use crate::engine::api::{Command, SnapshotId};
use crate::engine::failure::{FailedDevice, Failure, Operation};
use crate::engine::tags;
use crate::io::{DeviceId, Errno, Tag};

/// What an I/O command of the critical section is for.
#[derive(Clone, Debug)]
pub(in crate::engine) enum IoPurpose {
    /// Guest data of a request; `fresh`: chunks that get their exception with it.
    Guest {
        request: RequestId,
        /// Set if the request is a write to this snapshot's view.
        snapshot: Option<SnapshotId>,
        fresh: Vec<u64>,
    },
    RequestFlush {
        request: RequestId,
        /// `None`: of the origin.
        store: Option<SnapshotId>,
    },
    PatchRead {
        request: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
    },
    PatchWrite {
        request: RequestId,
        snapshot: SnapshotId,
        chunk: u64,
    },
    CopyRead {
        job: usize,
        piece: usize,
    },
    CopyWrite {
        job: usize,
        piece: usize,
        snapshot: SnapshotId,
    },
    Commit {
        snapshot: SnapshotId,
    },
    /// A commit's write that keeps the log without gaps until its entries are written.
    Padding {
        snapshot: SnapshotId,
    },
    Header {
        snapshot: SnapshotId,
    },
    /// Zeroes where data will be.
    ZeroAhead {
        snapshot: SnapshotId,
    },
    /// A write of the store's record.
    Record {
        snapshot: SnapshotId,
    },
    MergeRead {
        batch: u64,
        origin_sector: u64,
        sectors: u64,
    },
    MergeWrite {
        batch: u64,
        sectors: u64,
    },
    /// A guest's write that replaces the chunks of a batch.
    MergeGuestWrite {
        batch: u64,
        request: RequestId,
    },
    MergeFlush,
    MergeMove,
    MergeZero,
    SyncFlush {
        /// `None`: the origin.
        snapshot: Option<SnapshotId>,
    },
    CutFlush,
}

impl IoPurpose {
    /// The snapshot that the operation counts for. Other uses of a store are known
    /// from the registration of their request, or from the batch under way.
    const fn snapshot(&self) -> Option<SnapshotId> {
        match self {
            Self::Guest { snapshot, .. } | Self::SyncFlush { snapshot } => *snapshot,
            Self::PatchRead { snapshot, .. }
            | Self::PatchWrite { snapshot, .. }
            | Self::CopyWrite { snapshot, .. }
            | Self::Commit { snapshot }
            | Self::Padding { snapshot }
            | Self::Header { snapshot }
            | Self::Record { snapshot }
            | Self::ZeroAhead { snapshot } => Some(*snapshot),
            Self::RequestFlush { .. }
            | Self::CopyRead { .. }
            | Self::MergeRead { .. }
            | Self::MergeWrite { .. }
            | Self::MergeGuestWrite { .. }
            | Self::MergeFlush
            | Self::MergeMove
            | Self::MergeZero
            | Self::CutFlush => None,
        }
    }

    const fn writes_metadata(&self) -> bool {
        match self {
            Self::Commit { .. }
            | Self::Padding { .. }
            | Self::Header { .. }
            | Self::MergeMove
            | Self::MergeZero => true,
            Self::Guest { .. }
            | Self::RequestFlush { .. }
            | Self::PatchRead { .. }
            | Self::PatchWrite { .. }
            | Self::CopyRead { .. }
            | Self::CopyWrite { .. }
            | Self::ZeroAhead { .. }
            | Self::MergeRead { .. }
            | Self::MergeWrite { .. }
            | Self::MergeGuestWrite { .. }
            | Self::MergeFlush
            | Self::Record { .. }
            | Self::SyncFlush { .. }
            | Self::CutFlush => false,
        }
    }
}

/// What an I/O command does, kept until it ends so that a failure can be described.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    device: DeviceId,
    operation: Operation,
    offset: Option<u64>,
}

impl Attempt {
    /// `None` for a command that is no I/O.
    fn of(command: &Command) -> Option<Self> {
        let (device, operation, offset) = match command {
            Command::GuestRead { device, offset, .. } | Command::Read { device, offset, .. } => {
                (device, Operation::Read, Some(*offset))
            }
            Command::GuestWrite { device, offset, .. }
            | Command::Write { device, offset, .. }
            | Command::Zero { device, offset, .. } => (device, Operation::Write, Some(*offset)),
            Command::Flush { device, .. } => (device, Operation::Flush, None),
            Command::Complete { .. } | Command::ControlDone { .. } | Command::Notice(_) => {
                return None;
            }
        };
        Some(Self {
            device: *device,
            operation,
            offset,
        })
    }

    fn failed(self, origin: DeviceId, purpose: &IoPurpose, errno: Errno) -> Failure {
        Failure {
            device: match purpose {
                _ if self.device == origin => FailedDevice::Origin,
                IoPurpose::Record { .. } => FailedDevice::Record,
                _ => FailedDevice::Cow,
            },
            operation: match self.operation {
                Operation::Write if purpose.writes_metadata() => Operation::WriteMetadata,
                operation => operation,
            },
            offset: self.offset,
            errno,
        }
    }
}

/// Operations under way, by the number in their tag.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    open: Slab<(IoPurpose, Attempt)>,
}

impl Accounts {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl Core {
    /// Gives an I/O command to a port and keeps account of it until it ends.
    pub(super) fn issue(
        &mut self,
        port: usize,
        purpose: IoPurpose,
        command: impl FnOnce(Tag) -> Command,
    ) {
        let entry = self.accounts.open.vacant_entry();
        let command = command(tags::core(entry.key()));
        let Some(attempt) = Attempt::of(&command) else {
            return self.emit(port, command);
        };
        if let Some(snap) = purpose.snapshot().and_then(|id| self.snaps.get_mut(&id)) {
            snap.start_io();
        }
        entry.insert((purpose, attempt));
        self.emit(port, command);
    }

    /// The purpose and the outcome of an operation that has ended, and the snapshot that
    /// it counted for. [`Core::close_account`] must follow when its end is processed.
    pub(super) fn ended_io(
        &mut self,
        number: usize,
        result: Result<(), Errno>,
    ) -> Option<(IoPurpose, Result<(), Failure>, Option<SnapshotId>)> {
        let (purpose, attempt) = self.accounts.open.try_remove(number)?;
        let origin = self.origin_device();
        let result = result.map_err(|errno| attempt.failed(origin, &purpose, errno));
        match result {
            Ok(()) if matches!(attempt.operation, Operation::Flush) => self.count_flush(&purpose),
            Ok(()) => {}
            Err(failure) => self.count_failure(failure),
        }
        let snapshot = purpose.snapshot();
        Some((purpose, result, snapshot))
    }

    fn count_flush(&mut self, purpose: &IoPurpose) {
        let store = match purpose {
            IoPurpose::RequestFlush { store, .. } => *store,
            IoPurpose::Commit { snapshot } => Some(*snapshot),
            IoPurpose::SyncFlush { snapshot } => *snapshot,
            _ => None,
        };
        if let Some(snap) = store.and_then(|id| self.snaps.get_mut(&id)) {
            snap.counts.flushes += 1;
        }
    }

    pub(super) fn count_failure(&mut self, failure: Failure) {
        self.counts.failures.add(failure.device, failure.operation);
    }

    /// What an operation under way is for, for the seeded bugs in the tests' executor.
    #[cfg(test)]
    pub fn io_purpose(&self, tag: Tag) -> Option<IoPurpose> {
        let tags::Owner::Core(number) = tags::owner(tag)? else {
            return None;
        };
        let (purpose, _) = self.accounts.open.get(number)?;
        Some(purpose.clone())
    }

    /// The operation does not count for the snapshot any more.
    pub(super) fn close_account(&mut self, snapshot: Option<SnapshotId>) {
        if let Some(snap) = snapshot.and_then(|id| self.snaps.get_mut(&id)) {
            snap.end_io();
        }
    }
}
