//! What happens to the critical section, from outside.

use crate::engine::api::{ControlRequest, Part, Request, Slot, SnapshotId};
use crate::engine::failure::Failure;
use crate::io::{Buffer, Errno};

#[derive(Debug)]
pub(in crate::engine) enum Event {
    /// A guest's request that the fast path could not settle, and whose registration there
    /// has ended.
    Request(Request, Part),
    /// An I/O command of the critical section has ended.
    IoDone {
        /// From its tag.
        number: usize,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
    },
    /// A flush of the fast path failed.
    FlushFailed {
        /// `None`: of the origin.
        store: Option<SnapshotId>,
        failure: Failure,
    },
    /// A request of the fast path has ended while a change waits for some to end.
    RegistrationEnded { slot: Slot },
    /// A control request; [`Command::ControlDone`](super::super::Command::ControlDone)
    /// with `id` answers it.
    Control { id: u64, request: ControlRequest },
    /// The merger asks for a batch: see [`Port::merge_step`](super::super::Port::merge_step).
    MergeStep { background: u64, urgent: u64 },
}
