//! One operation at a time on a disk that nothing else uses meanwhile, for loading and
//! making stores before the engine has them.

use super::StoreError;
use super::metadata::MetaWrite;
use crate::io::{Buffer, DeviceId, Disk, Errno, Op, OpKind, OwnedBuffer};

/// Largest transfer in bytes: a chunk may be 1 GiB, a buffer may not.
pub const PIECE: usize = 1 << 20;

/// The store's device.
pub struct StoreDisk<'a> {
    disk: &'a mut dyn Disk,
    device: DeviceId,
}

impl<'a> StoreDisk<'a> {
    pub fn new(disk: &'a mut dyn Disk, device: DeviceId) -> Self {
        Self { disk, device }
    }

    /// Fills `buffer` from `offset` and gives it back.
    pub fn read(&mut self, offset: u64, buffer: OwnedBuffer) -> Result<OwnedBuffer, StoreError> {
        let len = buffer.len();
        let kind = OpKind::Read {
            offset,
            buffer: Buffer::Owned(buffer),
        };
        self.run("read", offset, len, kind)
    }

    /// Writes `data` at `offset`; durable when it returns.
    pub fn write_durable(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(offset, data, true)
    }

    /// Carries out the writes of one step; durable when it returns.
    pub fn write_step(&mut self, step: &[MetaWrite]) -> Result<(), StoreError> {
        if let [only] = step {
            return self.write_durable(only.offset, &only.data);
        }
        for write in step {
            self.write(write.offset, &write.data, false)?;
        }
        if step.is_empty() {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> Result<(), StoreError> {
        let mut buffer = OwnedBuffer::zeroed(data.len());
        buffer.as_mut_slice().copy_from_slice(data);
        let kind = OpKind::Write {
            offset,
            buffer: Buffer::Owned(buffer),
            durable,
        };
        self.run("write", offset, data.len(), kind).map(drop)
    }

    /// Writes `len` zero bytes at `offset`, the last piece first.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        let piece = PIECE as u64;
        let mut zeroes = OwnedBuffer::zeroed(usize::try_from(len.min(piece)).unwrap_or(PIECE));
        for at in (0..len.div_ceil(piece)).rev().map(|index| index * piece) {
            let part = usize::try_from((len - at).min(piece)).unwrap_or(PIECE);
            zeroes.set_len(part);
            let at = offset.saturating_add(at);
            let buffer = Buffer::Owned(zeroes);
            let kind = OpKind::Write {
                offset: at,
                buffer,
                durable: false,
            };
            zeroes = self.run("write", at, part, kind)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.run("flush", 0, 0, OpKind::Flush).map(drop)
    }

    /// Runs one operation to its end. A disk that loses the operation or its
    /// buffer is an I/O error, not a hang.
    fn run(
        &mut self,
        action: &'static str,
        offset: u64,
        len: usize,
        kind: OpKind,
    ) -> Result<OwnedBuffer, StoreError> {
        let failed = |errno| StoreError::Io {
            action,
            offset,
            len,
            errno,
        };
        self.disk.submit(Op {
            tag: 0,
            device: self.device,
            kind,
        });
        let mut done = Vec::with_capacity(1);
        while done.is_empty() && self.disk.in_flight() > 0 {
            self.disk.reap(true, &mut done);
        }
        let done = done.pop().ok_or_else(|| failed(Errno::EIO))?;
        done.result.map_err(failed)?;
        match done.buffer {
            Some(Buffer::Owned(buffer)) if buffer.len() == len => Ok(buffer),
            None if len == 0 => Ok(OwnedBuffer::zeroed(0)),
            _ => Err(failed(Errno::EIO)),
        }
    }
}
