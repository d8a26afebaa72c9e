//! A simulated disk and the memory of a guest, for tests that move a port by hand.

use std::collections::BTreeMap;

use super::seeded_bugs::{self, Manner};
use crate::engine::{Command, Execution, Patch, Port, Slot, SlotData, SlotRange};
use crate::io::sim::SimDisk;
use crate::io::{Buffer, Disk, Done, Op, OpKind, OwnedBuffer, Tag, Zeroing};

/// The data of the requests under way.
#[derive(Default)]
pub struct Memory {
    pub slots: BTreeMap<Slot, Vec<u8>>,
    /// Where the data of the last read that was translated goes.
    read_into: Option<SlotRange>,
}

impl Memory {
    fn data(&self, slot: Slot, offset: usize, len: usize) -> Option<&[u8]> {
        self.slots.get(&slot)?.get(offset..)?.get(..len)
    }
}

impl SlotData for Memory {
    fn read_buffer(&mut self, range: SlotRange) -> Option<Buffer> {
        self.data(range.slot, range.offset, range.len)?;
        self.read_into = Some(range);
        Some(Buffer::Owned(OwnedBuffer::zeroed(range.len)))
    }

    fn write_op(&mut self, range: SlotRange, offset: u64, durable: bool) -> Option<OpKind> {
        let data = self.data(range.slot, range.offset, range.len)?;
        if !durable && data.iter().all(|b| *b == 0) {
            // As a queue worker does it with a write of zeroes.
            let (len, how) = (range.len as u64, Zeroing::Unmap);
            return Some(OpKind::Zero { offset, len, how });
        }
        let mut buffer = OwnedBuffer::zeroed(range.len);
        buffer.as_mut_slice().copy_from_slice(data);
        Some(OpKind::Write {
            offset,
            buffer: Buffer::Owned(buffer),
            durable,
        })
    }

    fn lay_over(&mut self, buffer: &mut Buffer, patch: Patch) -> bool {
        self.data(patch.slot, patch.slot_offset, patch.len)
            .is_some_and(|data| buffer.write_at(patch.buffer_offset, data))
    }
}

/// An operation under way.
struct Pending {
    /// The engine's tag; `None` if the engine has its end already.
    tag: Option<Tag>,
    /// Where read data goes.
    read_into: Option<SlotRange>,
    error_ignored: bool,
}

pub struct GuestDisk {
    disk: SimDisk,
    pub memory: Memory,
    /// By the disk's tag: the engine gives all transfers of one request the same.
    pending: BTreeMap<Tag, Pending>,
    next_tag: Tag,
    /// Ends that a seeded bug reports before the disk does.
    early: Vec<Done>,
}

impl GuestDisk {
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            memory: Memory::default(),
            pending: BTreeMap::new(),
            next_tag: 0,
            early: Vec::new(),
        }
    }

    /// Submits the command's I/O; returns what else there is to do.
    pub fn carry_out(&mut self, port: &Port, mut command: Command) -> Option<Execution> {
        seeded_bugs::spoil(&mut command);
        match command.execution(&mut self.memory) {
            Execution::Submit(op) => {
                self.submit(seeded_bugs::manner(port, &op), op);
                None
            }
            Execution::Refuse(done) => {
                panic!("operation {} names data that is not there", done.tag)
            }
            other => Some(other),
        }
    }

    fn submit(&mut self, manner: Manner, op: Op) {
        let Op {
            tag,
            device,
            mut kind,
        } = op;
        let mut pending = Pending {
            tag: Some(tag),
            read_into: self.memory.read_into.take(),
            error_ignored: manner == Manner::ErrorIgnored,
        };
        match manner {
            Manner::AsAsked | Manner::ErrorIgnored => {}
            Manner::Volatile => {
                if let OpKind::Write { durable, .. } = &mut kind {
                    *durable = false;
                }
            }
            Manner::Dropped => return self.report_early(tag, buffer_of(kind)),
            Manner::ReportedEarly => {
                let buffer = match &mut kind {
                    OpKind::Read { buffer, .. } | OpKind::Write { buffer, .. } => {
                        Some(std::mem::replace(buffer, copy(buffer)))
                    }
                    OpKind::Flush | OpKind::Zero { .. } => None,
                };
                self.report_early(tag, buffer);
                pending.tag = None;
            }
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.pending.insert(tag, pending);
        self.disk.submit(Op { tag, device, kind });
    }

    fn report_early(&mut self, tag: Tag, buffer: Option<Buffer>) {
        let result = Ok(());
        self.early.push(Done {
            tag,
            result,
            buffer,
        });
    }

    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    pub fn in_flight(&self) -> usize {
        self.early.len() + self.disk.in_flight()
    }

    /// Ends one operation, chosen by the seed; false if there is none.
    pub fn step(&mut self, done: &mut Vec<Done>) -> bool {
        if !self.early.is_empty() {
            done.append(&mut self.early);
            return true;
        }
        let mut ended = Vec::new();
        let moved = self.disk.step(&mut ended);
        done.extend(ended.into_iter().filter_map(|d| self.finish(d)));
        moved
    }

    /// As [`Disk::reap`].
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    pub fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        done.append(&mut self.early);
        let mut ended = Vec::new();
        self.disk.reap(wait && done.is_empty(), &mut ended);
        done.extend(ended.into_iter().filter_map(|d| self.finish(d)));
    }

    /// The end of an operation as the engine expects it, with read data where it goes.
    fn finish(&mut self, done: Done) -> Option<Done> {
        let pending = self.pending.remove(&done.tag).unwrap();
        if let (Some(range), Some(Buffer::Owned(read)), Ok(())) =
            (pending.read_into, &done.buffer, done.result)
        {
            let data = self.memory.slots.get_mut(&range.slot).unwrap();
            data[range.offset..][..range.len].copy_from_slice(read.as_slice());
        }
        Some(Done {
            tag: pending.tag?,
            result: done.result.or(if pending.error_ignored {
                Ok(())
            } else {
                done.result
            }),
            buffer: done.buffer,
        })
    }
}

fn buffer_of(kind: OpKind) -> Option<Buffer> {
    match kind {
        OpKind::Read { buffer, .. } | OpKind::Write { buffer, .. } => Some(buffer),
        OpKind::Flush | OpKind::Zero { .. } => None,
    }
}

fn copy(buffer: &Buffer) -> Buffer {
    let mut owned = OwnedBuffer::zeroed(buffer.len());
    assert!(buffer.read_at(0, owned.as_mut_slice()));
    Buffer::Owned(owned)
}
