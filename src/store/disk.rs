//! A disk that nothing else uses meanwhile, for loading and making stores before the
//! engine has them: one operation at a time, or reads in a row.

use std::collections::VecDeque;

use super::StoreError;
use super::metadata::MetaWrite;
use crate::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind, OwnedBuffer, blocking};

/// Largest transfer in bytes: a chunk may be 1 GiB, a buffer may not.
pub const PIECE: usize = 1 << 20;

/// Reads under way at once, and their bytes.
const READS: usize = 64;
const READ_BYTES: usize = 4 << 20;

/// Receives what was read at an offset; whether more is wanted.
pub type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<bool, StoreError> + 'a;

/// The store's device.
pub struct StoreDisk<'a> {
    disk: &'a mut dyn Disk,
    device: DeviceId,
}

impl<'a> StoreDisk<'a> {
    pub fn new(disk: &'a mut dyn Disk, device: DeviceId) -> Self {
        Self { disk, device }
    }

    /// Reads `len` bytes at `offset`.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<OwnedBuffer, StoreError> {
        blocking::read_exact(self.disk, self.device, offset, len)
            .map_err(|errno| failed("read", offset, len, errno))
    }

    /// Writes `data` at `offset`; durable when it returns.
    pub fn write_durable(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(offset, data, true)
    }

    /// Writes; a later flush makes it durable.
    pub fn write_volatile(&mut self, write: &MetaWrite) -> Result<(), StoreError> {
        self.write(write.offset, &write.data, false)
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
        self.write_buffer(offset, buffer, durable).map(drop)
    }

    fn write_buffer(
        &mut self,
        offset: u64,
        buffer: OwnedBuffer,
        durable: bool,
    ) -> Result<OwnedBuffer, StoreError> {
        let len = buffer.len();
        blocking::write_all(self.disk, self.device, offset, buffer, durable)
            .map_err(|errno| failed("write", offset, len, errno))
    }

    /// Writes `len` zero bytes at `offset`, the last piece first.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        let piece = PIECE as u64;
        let mut zeroes = OwnedBuffer::zeroed(usize::try_from(len.min(piece)).unwrap_or(PIECE));
        for at in (0..len.div_ceil(piece)).rev().map(|index| index * piece) {
            let part = usize::try_from((len - at).min(piece)).unwrap_or(PIECE);
            zeroes.set_len(part);
            zeroes = self.write_buffer(offset.saturating_add(at), zeroes, false)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        blocking::flush(self.disk, self.device).map_err(|errno| failed("flush", 0, 0, errno))
    }

    /// Reads `len` bytes at each of `offsets`, several at once, and passes them to `take`
    /// in this order until it returns false. Reads no further ahead than it has come, so
    /// that at most half of what is read is not needed. Returns whether `take` ended it.
    ///
    /// # Errors
    /// The first failed read whose bytes `take` wanted, and the errors of `take`.
    pub fn read_each(
        &mut self,
        mut offsets: impl Iterator<Item = u64>,
        len: usize,
        take: &mut Take<'_>,
    ) -> Result<bool, StoreError> {
        let most = (READ_BYTES / len.max(1)).clamp(1, READS);
        let mut reads = Reads::default();
        let ended = loop {
            let target = most.min(reads.taken.max(1));
            // Many at once, because each time may wake the threads of the disk.
            let refills = reads.waiting.len() <= target / 2;
            while refills
                && reads.waiting.len() < target
                && let Some(offset) = offsets.next()
            {
                let buffer = reads.spare.pop();
                let buffer = buffer.unwrap_or_else(|| OwnedBuffer::zeroed(len));
                let buffer = Buffer::Owned(buffer);
                self.disk.submit(Op {
                    tag: reads.next_tag(),
                    device: self.device,
                    kind: OpKind::Read { offset, buffer },
                });
                reads.waiting.push_back((offset, None));
            }
            let Some((offset, done)) = reads.waiting.pop_front() else {
                break Ok(false);
            };
            if done.is_none() && self.disk.in_flight() > 0 {
                reads.waiting.push_front((offset, done));
                reads.reap(self.disk);
                continue;
            }
            reads.taken += 1;
            let bytes = match blocking::buffer_of(done, len) {
                Ok(bytes) => bytes,
                Err(errno) => break Err(failed("read", offset, len, errno)),
            };
            match take(offset, bytes.as_slice()) {
                Ok(true) => reads.spare.push(bytes),
                Ok(false) => break Ok(true),
                Err(error) => break Err(error),
            }
        };
        // Nobody wants the others, but their completions must not be taken for those of
        // a later operation.
        while self.disk.in_flight() > 0 {
            reads.reap(self.disk);
        }
        ended
    }
}

/// Reads in the order of their places.
#[derive(Default)]
struct Reads {
    /// Those whose bytes were taken. The tag of a read is its number.
    taken: usize,
    waiting: VecDeque<(u64, Option<Done>)>,
    spare: Vec<OwnedBuffer>,
}

impl Reads {
    fn next_tag(&self) -> u64 {
        (self.taken + self.waiting.len()) as u64
    }

    fn reap(&mut self, disk: &mut dyn Disk) {
        let mut done = Vec::new();
        disk.reap(true, &mut done);
        for done in done {
            let number = usize::try_from(done.tag).ok();
            let index = number.and_then(|number| number.checked_sub(self.taken));
            if let Some((_, place)) = index.and_then(|index| self.waiting.get_mut(index)) {
                *place = Some(done);
            }
        }
    }
}

fn failed(action: &'static str, offset: u64, len: usize, errno: Errno) -> StoreError {
    StoreError::Io {
        action,
        offset,
        len,
        errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::BorrowedFd;

    /// Each block of 512 bytes holds its number. The last operation ends first.
    #[derive(Default)]
    struct Backwards {
        waiting: Vec<Op>,
        fails: Vec<u64>,
        most: usize,
        reads: usize,
    }

    impl Disk for Backwards {
        fn submit(&mut self, op: Op) {
            self.waiting.push(op);
            self.most = self.most.max(self.waiting.len());
            self.reads += 1;
        }

        fn reap(&mut self, _wait: bool, done: &mut Vec<Done>) {
            let Some(op) = self.waiting.pop() else { return };
            let OpKind::Read { offset, mut buffer } = op.kind else {
                panic!("{op:?}")
            };
            buffer.write_at(0, &offset.to_le_bytes());
            let result = match self.fails.contains(&offset) {
                true => Err(Errno::EIO),
                false => Ok(()),
            };
            done.push(Done {
                tag: op.tag,
                result,
                buffer: Some(buffer),
            });
        }

        fn in_flight(&self) -> usize {
            self.waiting.len()
        }

        fn event_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    /// Reads `places` blocks until `wanted` were taken.
    fn read(disk: &mut Backwards, places: u64, wanted: usize) -> Result<bool, StoreError> {
        let mut taken = 0;
        let offsets = (0..places).map(|n| n * 512);
        let ended = StoreDisk::new(disk, DeviceId(0)).read_each(offsets, 512, &mut |at, bytes| {
            assert_eq!(at, taken * 512, "in order");
            assert_eq!(bytes.first_chunk(), Some(&at.to_le_bytes()));
            taken += 1;
            Ok(taken < wanted as u64)
        });
        assert_eq!(disk.in_flight(), 0, "nothing is left");
        if ended.is_ok() {
            assert_eq!(taken, places.min(wanted as u64));
        }
        ended
    }

    #[test]
    fn reads_are_taken_in_order_in_whichever_they_end_and_many_are_under_way() {
        let mut disk = Backwards::default();
        assert_eq!(read(&mut disk, 1000, usize::MAX), Ok(false));
        assert_eq!((disk.most, disk.reads), (READS, 1000));
    }

    #[test]
    fn a_short_row_is_not_read_far_behind_its_end() {
        for wanted in [1, 2, 3, 10, 40, 500] {
            let mut disk = Backwards::default();
            assert_eq!(read(&mut disk, 1000, wanted), Ok(true));
            let most = (2 * wanted).min(wanted + READS);
            assert!(disk.reads <= most, "{} for {wanted}", disk.reads);
        }
    }

    #[test]
    fn only_what_is_wanted_must_be_readable() {
        let mut disk = Backwards {
            fails: vec![512 * 70],
            ..Backwards::default()
        };
        assert_eq!(read(&mut disk, 1000, 70), Ok(true));
        let error = read(&mut disk, 1000, 71).unwrap_err();
        assert!(matches!(
            error,
            StoreError::Io {
                offset: 35840,
                len: 512,
                ..
            }
        ));
    }
}
