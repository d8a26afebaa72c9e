//! Seeded bugs between the engine and the disk: a flush that is dropped, a write that
//! is volatile or reported too early, an error that is reported as success.
//!
//! The program contains nothing of these. The tests' executor asks here before it
//! carries out a command, and the engine says what the command is for.

use crate::engine::core::IoPurpose;
use crate::engine::{Command, Port, Request, RequestKind};
use crate::io::sim::SimDisk;
use crate::io::{Buffer, Disk, Done, Op, OpKind};
use crate::mutation::{self, Mutation};

/// How an operation is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As the engine asks for it.
    AsAsked,
    /// Not at all; reported as successful.
    Dropped,
    /// Reported as successful at once, carried out later.
    ReportedEarly,
    /// A durable write without its durability.
    Volatile,
    /// With its error reported as success.
    ErrorIgnored,
}

use Manner::{AsAsked, Dropped, ErrorIgnored, ReportedEarly, Volatile};

/// The bugs that can be in an operation of this purpose.
fn bugs(port: &Port, purpose: Option<&IoPurpose>, op: &OpKind) -> &'static [(Mutation, Manner)] {
    let Some(purpose) = purpose else {
        return match op {
            OpKind::Flush if port.shows_merge() => &[(Mutation::FlushForgetsStore, Dropped)],
            OpKind::Flush => &[(Mutation::FlushCompletedEarly, Dropped)],
            _ => &[(Mutation::FailedIoReportedOk, ErrorIgnored)],
        };
    };
    match (purpose, op) {
        (IoPurpose::Commit { .. }, OpKind::Flush) => &[
            (Mutation::CommitFlushDropped, Dropped),
            (Mutation::FailedCommitIgnored, ErrorIgnored),
        ],
        (IoPurpose::Commit { .. }, OpKind::Write { durable: true, .. }) => &[
            (Mutation::EntryVolatile, Volatile),
            (Mutation::FailedCommitIgnored, ErrorIgnored),
        ],
        // The next area.
        (IoPurpose::Commit { .. }, _) => &[
            (Mutation::NextAreaNotZeroed, Dropped),
            (Mutation::NextAreaZeroedLate, ReportedEarly),
            (Mutation::FailedCommitIgnored, ErrorIgnored),
        ],
        (IoPurpose::Padding { .. }, _) => &[
            (Mutation::PaddingDropped, Dropped),
            (Mutation::PaddingWrittenLate, ReportedEarly),
            (Mutation::FailedCommitIgnored, ErrorIgnored),
        ],
        (IoPurpose::Record { .. }, _) => &[
            (Mutation::RecordDropped, Dropped),
            (Mutation::RecordWrittenLate, ReportedEarly),
        ],
        (IoPurpose::Header { .. }, _) => &[
            (Mutation::InvalidationVolatile, Volatile),
            (Mutation::OriginWriteBeforeInvalid, ReportedEarly),
            (Mutation::FailedInvalidationIgnored, ErrorIgnored),
        ],
        (IoPurpose::CopyRead { .. }, _) => &[(Mutation::FailedCopyReadIgnored, ErrorIgnored)],
        (IoPurpose::CopyWrite { .. }, _) => &[
            (Mutation::EntryBeforeData, ReportedEarly),
            (Mutation::FailedCopyWriteIgnored, ErrorIgnored),
        ],
        (
            IoPurpose::MergeRead { .. }
            | IoPurpose::MergeWrite { .. }
            | IoPurpose::MergeFlush
            | IoPurpose::MergeMove
            | IoPurpose::MergeZero,
            _,
        ) => merge_bugs(purpose, op),
        (IoPurpose::CutFlush, _) => &[(Mutation::CutFlushDropped, Dropped)],
        (IoPurpose::SyncFlush { .. }, _) => &[(Mutation::SyncFlushDropped, Dropped)],
        (
            IoPurpose::Guest { .. }
            | IoPurpose::ZeroAhead { .. }
            | IoPurpose::MergeGuestWrite { .. }
            | IoPurpose::RequestFlush { .. }
            | IoPurpose::PatchRead { .. }
            | IoPurpose::PatchWrite { .. },
            _,
        ) => &[],
    }
}

fn merge_bugs(purpose: &IoPurpose, op: &OpKind) -> &'static [(Mutation, Manner)] {
    match (purpose, op) {
        (IoPurpose::MergeRead { .. }, _) => &[(Mutation::FailedMergeReadIgnored, ErrorIgnored)],
        (IoPurpose::MergeWrite { .. }, _) => &[(Mutation::FailedMergeWriteIgnored, ErrorIgnored)],
        (IoPurpose::MergeFlush, _) => &[
            (Mutation::MergeFlushDropped, Dropped),
            (Mutation::FailedMergeFlushIgnored, ErrorIgnored),
        ],
        (IoPurpose::MergeMove, OpKind::Flush) => &[(Mutation::MovesFlushDropped, Dropped)],
        (IoPurpose::MergeZero, OpKind::Flush) => &[(Mutation::RemovalFlushDropped, Dropped)],
        (IoPurpose::MergeMove, _) => &[
            (Mutation::MovesDropped, Dropped),
            (Mutation::MoveVolatile, Volatile),
            (Mutation::TailZeroedBeforeMoves, ReportedEarly),
        ],
        (IoPurpose::MergeZero, _) => &[
            (Mutation::RemovalVolatile, Volatile),
            (Mutation::TailZeroedBeforePadding, ReportedEarly),
        ],
        _ => &[],
    }
}

/// How the port's operation is carried out with the bug that this thread runs with.
pub fn manner(port: &Port, op: &Op) -> Manner {
    if !mutation::is_any() {
        return AsAsked;
    }
    let purpose = port.io_purpose(op.tag);
    if purpose.is_none() && port.is_origin_flush(op) {
        return AsAsked;
    }
    let bugs = bugs(port, purpose.as_ref(), &op.kind);
    let chosen = bugs.iter().find(|(bug, _)| mutation::is(*bug));
    chosen.map_or(AsAsked, |(_, manner)| *manner)
}

/// Puts the bug that this thread runs with into a request.
pub fn spoil_request(request: &mut Request) {
    if let RequestKind::Write { durable } = &mut request.kind
        && mutation::is(Mutation::WriteThroughBeforeEntry)
    {
        *durable = false; // its data is written durably all the same, see below
    }
}

/// Puts the bug that this thread runs with into a command that moves guest data.
pub fn spoil(command: &mut Command) {
    match command {
        Command::GuestWrite { durable, .. } if mutation::is(Mutation::WriteThroughBeforeEntry) => {
            *durable = true;
        }
        Command::Write {
            offset,
            buffer,
            patch: Some(patch),
            ..
        } if mutation::is(Mutation::PartialWriteTakenForWhole) => {
            *offset += patch.buffer_offset as u64;
            patch.buffer_offset = 0;
            if let Buffer::Owned(buffer) = buffer {
                buffer.set_len(patch.len);
            }
        }
        Command::GuestRead { slot_offset, .. } | Command::GuestWrite { slot_offset, .. }
            if mutation::is(Mutation::SlotOffsetIgnored) =>
        {
            *slot_offset = 0;
        }
        Command::Write { patch, .. } if mutation::is(Mutation::PatchDropped) => *patch = None,
        Command::Write {
            patch: Some(patch), ..
        } if mutation::is(Mutation::PatchOffsetIgnored) => patch.slot_offset = 0,
        _ => {}
    }
}

/// The disk on which a start loads and settles stores.
pub struct StartDisk {
    disk: SimDisk,
    /// Ends of flushes that a seeded bug drops.
    dropped: Vec<Done>,
}

impl StartDisk {
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            dropped: Vec::new(),
        }
    }
}

impl Disk for StartDisk {
    fn submit(&mut self, mut op: Op) {
        match &mut op.kind {
            OpKind::Flush if mutation::is(Mutation::LoadedStoreVolatile) => {
                return self.dropped.push(Done {
                    tag: op.tag,
                    result: Ok(()),
                    buffer: None,
                });
            }
            OpKind::Write { durable, .. } if mutation::is(Mutation::RepairVolatile) => {
                *durable = false;
            }
            OpKind::Read { .. } | OpKind::Write { .. } | OpKind::Flush | OpKind::Zero { .. } => {}
        }
        self.disk.submit(op);
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        done.append(&mut self.dropped);
        self.disk.reap(wait && done.is_empty(), done);
    }

    fn in_flight(&self) -> usize {
        self.dropped.len() + self.disk.in_flight()
    }

    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
