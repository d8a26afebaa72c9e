//! What an executor has to do for a command. All executors use this translation: the
//! queue worker, the executor of ports without guests, and those of the tests.

use super::api::*;
use crate::io::{Buffer, DeviceId, Done, Errno, Op, OpKind, Tag};

/// A part of a request's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    pub slot: Slot,
    /// Bytes from the start of the request's data.
    pub offset: usize,
    pub len: usize,
}

/// The data of the requests that an executor has under way.
pub trait SlotData {
    /// The buffer for a read into this part; `None` if the request lacks it.
    fn read_buffer(&mut self, range: SlotRange) -> Option<Buffer>;

    /// The operation that writes this part to `offset` of a device; `None` if the
    /// request lacks it.
    fn write_op(&mut self, range: SlotRange, offset: u64, durable: bool) -> Option<OpKind>;

    /// Copies the part that `patch` names into an engine's buffer; false if the
    /// request or the buffer lacks it.
    fn lay_over(&mut self, buffer: &mut Buffer, patch: Patch) -> bool;
}

/// For executors whose port has no requests.
#[derive(Clone, Copy, Debug)]
pub struct NoSlots;

impl SlotData for NoSlots {
    fn read_buffer(&mut self, _: SlotRange) -> Option<Buffer> {
        None
    }

    fn write_op(&mut self, _: SlotRange, _: u64, _: bool) -> Option<OpKind> {
        None
    }

    fn lay_over(&mut self, _: &mut Buffer, _: Patch) -> bool {
        false
    }
}

/// What an executor does with a command.
#[derive(Debug)]
pub enum Execution {
    /// Submits it to its disk, and reports the end with [`Port::io_done`].
    Submit(Op),
    /// Reports this end: the command names data that its request does not have.
    Refuse(Done),
    /// Ends the request in `slot`.
    Complete { slot: Slot, status: Status },
    /// Ends a control request.
    ControlDone {
        id: u64,
        result: Result<(), ControlError>,
    },
    /// Passes a notice on.
    Notice(Notice),
}

impl Command {
    /// What to do for this command, with the data of the executor's requests.
    pub fn execution(self, data: &mut impl SlotData) -> Execution {
        match self {
            Self::GuestRead {
                tag,
                device,
                offset,
                slot,
                slot_offset,
                len,
            } => {
                let buffer = data.read_buffer(SlotRange::new(slot, slot_offset, len));
                let read = buffer.map(|buffer| OpKind::Read { offset, buffer });
                submit(tag, device, read)
            }
            Self::GuestWrite {
                tag,
                device,
                offset,
                slot,
                slot_offset,
                len,
                durable,
            } => {
                let range = SlotRange::new(slot, slot_offset, len);
                submit(tag, device, data.write_op(range, offset, durable))
            }
            Self::Read {
                tag,
                device,
                offset,
                buffer,
            } => submit(tag, device, Some(OpKind::Read { offset, buffer })),
            Self::Write {
                tag,
                device,
                offset,
                mut buffer,
                durable,
                patch,
            } => {
                if patch.is_some_and(|patch| !data.lay_over(&mut buffer, patch)) {
                    return refuse(tag, Some(buffer));
                }
                let write = OpKind::Write {
                    offset,
                    buffer,
                    durable,
                };
                submit(tag, device, Some(write))
            }
            Self::Flush { tag, device } => submit(tag, device, Some(OpKind::Flush)),
            Self::Zero {
                tag,
                device,
                offset,
                len,
                how,
            } => submit(tag, device, Some(OpKind::Zero { offset, len, how })),
            Self::Complete { slot, status } => Execution::Complete { slot, status },
            Self::ControlDone { id, result } => Execution::ControlDone { id, result },
            Self::Notice(notice) => Execution::Notice(notice),
        }
    }
}

impl SlotRange {
    const fn new(slot: Slot, offset: usize, len: usize) -> Self {
        Self { slot, offset, len }
    }
}

fn submit(tag: Tag, device: DeviceId, kind: Option<OpKind>) -> Execution {
    match kind {
        Some(kind) => Execution::Submit(Op { tag, device, kind }),
        None => refuse(tag, None),
    }
}

fn refuse(tag: Tag, buffer: Option<Buffer>) -> Execution {
    Execution::Refuse(Done {
        tag,
        result: Err(Errno::EINVAL),
        buffer,
    })
}
