//! One operation at a time, for callers that have nothing else to do (preparing a start,
//! offline verbs). The disk must be idle, because completions of other operations would
//! be lost.

use super::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind, OwnedBuffer};

/// Reads `len` bytes at `offset` (bytes, both multiples of the block size).
pub fn read_exact(
    disk: &mut dyn Disk,
    device: DeviceId,
    offset: u64,
    len: usize,
) -> Result<OwnedBuffer, Errno> {
    let buffer = Buffer::Owned(OwnedBuffer::zeroed(len));
    let done = run(disk, device, OpKind::Read { offset, buffer });
    buffer_of(done, len)
}

/// Writes all of `buffer` at `offset` (bytes, a multiple of the block size, as is
/// the length), and gives it back. With `durable` it survives power loss when this returns.
pub fn write_all(
    disk: &mut dyn Disk,
    device: DeviceId,
    offset: u64,
    buffer: OwnedBuffer,
    durable: bool,
) -> Result<OwnedBuffer, Errno> {
    let len = buffer.len();
    let write = OpKind::Write {
        offset,
        buffer: Buffer::Owned(buffer),
        durable,
    };
    buffer_of(run(disk, device, write), len)
}

/// Makes everything durable that was written before.
pub fn flush(disk: &mut dyn Disk, device: DeviceId) -> Result<(), Errno> {
    run(disk, device, OpKind::Flush).map_or(Err(Errno::EIO), |done| done.result)
}

/// The buffer of an operation of `len` bytes that has ended. A disk that lost the operation
/// (`None`) or its buffer is an I/O error, not a hang.
pub fn buffer_of(done: Option<Done>, len: usize) -> Result<OwnedBuffer, Errno> {
    let done = done.ok_or(Errno::EIO)?;
    done.result?;
    match done.buffer {
        Some(Buffer::Owned(buffer)) if buffer.len() == len => Ok(buffer),
        _ => Err(Errno::EIO),
    }
}

fn run(disk: &mut dyn Disk, device: DeviceId, kind: OpKind) -> Option<Done> {
    assert_eq!(
        disk.in_flight(),
        0,
        "waiting for one operation needs an idle disk"
    );
    disk.submit(Op {
        tag: 0,
        device,
        kind,
    });
    let mut done = Vec::with_capacity(1);
    while disk.in_flight() > 0 {
        disk.reap(true, &mut done);
    }
    done.pop()
}
