//! A simulated disk and the memory of a guest, for tests that move a port by hand.

use std::collections::BTreeMap;

use crate::engine::{Command, Execution, Patch, Slot, SlotData, SlotRange};
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

/// An operation under way: the engine's tag, and where read data goes.
struct Pending {
    tag: Tag,
    read_into: Option<SlotRange>,
}

pub struct GuestDisk {
    pub disk: SimDisk,
    pub memory: Memory,
    /// By the disk's tag: the engine gives all transfers of one request the same.
    pending: BTreeMap<Tag, Pending>,
    next_tag: Tag,
}

impl GuestDisk {
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            memory: Memory::default(),
            pending: BTreeMap::new(),
            next_tag: 0,
        }
    }

    /// Submits the command's I/O; returns what else there is to do.
    pub fn carry_out(&mut self, command: Command) -> Option<Execution> {
        match command.execution(&mut self.memory) {
            Execution::Submit(op) => {
                let read_into = self.memory.read_into.take();
                self.submit(op, read_into);
                None
            }
            Execution::Refuse(done) => {
                panic!("operation {} names data that is not there", done.tag)
            }
            other => Some(other),
        }
    }

    fn submit(&mut self, op: Op, read_into: Option<SlotRange>) {
        let (tag, device, kind) = (self.next_tag, op.device, op.kind);
        self.next_tag += 1;
        let pending = Pending {
            tag: op.tag,
            read_into,
        };
        self.pending.insert(tag, pending);
        self.disk.submit(Op { tag, device, kind });
    }

    /// The end of an operation as the engine expects it, with read data where it goes.
    pub fn finish(&mut self, done: Done) -> Done {
        let Pending { tag, read_into } = self.pending.remove(&done.tag).unwrap();
        if let (Some(range), Some(Buffer::Owned(read)), Ok(())) =
            (read_into, &done.buffer, done.result)
        {
            let data = self.memory.slots.get_mut(&range.slot).unwrap();
            data[range.offset..][..range.len].copy_from_slice(read.as_slice());
        }
        Done { tag, ..done }
    }
}
