//! One read or write operation: the part that is left, as iovecs that suit the file, and
//! how a result is handled.
//!
//! All real disks share it, so that short transfers, the end of a file, alignment and
//! retries are handled and tested once.
#![allow(unsafe_code)] // Named file: iovecs point into buffers and cross threads.

use super::buffer::zero_pages;
use super::{BlockFile, Buffer, Errno, GuestSlice, OwnedBuffer};
use crate::mutation::{self, Mutation};

/// Most bytes of one system call whose memory has to be copied. It bounds the memory that
/// misaligned requests of a guest cost.
const BOUNCE: usize = 128 * 1024;
/// Most bytes of one system call: a guest may request gigabytes at once, and a stop waits
/// for the call under way.
const CALL_BYTES_MAX: usize = 4 << 20;
/// Most pieces of memory in one system call (the kernel's UIO_MAXIOV).
const PIECES: usize = 1024;
/// How often in a row the kernel may ask for a retry.
const RETRIES_MAX: u32 = 1000;

/// The direction of a transfer; a write may have to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write { durable: bool },
}

/// See the module documentation. Contract: between [`Self::prepare`] and
/// [`Self::advance`] the kernel may use the memory that [`Self::iovecs`] names,
/// so the transfer must neither be dropped nor prepared again.
#[derive(Debug)]
pub(super) struct Transfer {
    direction: Direction,
    offset: u64,
    done: usize,
    buffer: Buffer,
    bounce: Option<OwnedBuffer>,
    /// The prepared part is in `bounce`.
    bounced: bool,
    /// The kernel refused memory that is aligned as reported: copy from now on.
    copy_always: bool,
    iovecs: Iovecs,
    prepared: usize,
    attempts: u32,
}

/// Memory for iovecs, to be used again by the next transfer.
#[derive(Debug, Default)]
pub(super) struct Iovecs(Vec<libc::iovec>);

// SAFETY: an iovec is an address and a length; only the kernel dereferences it,
// and what it names belongs to the transfer that holds it, which is Send.
unsafe impl Send for Iovecs {}

/// The step after a system call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Prepare and submit again.
    Again,
    Finished(Result<(), Errno>),
}

impl Next {
    /// After `done` of `total` bytes: a short transfer is continued.
    pub(super) fn after(done: usize, total: usize) -> Self {
        if done >= total || mutation::is(Mutation::ShortTransferTakenForWhole) {
            Self::Finished(Ok(()))
        } else {
            Self::Again
        }
    }
}

impl Transfer {
    /// Checks the rules of [`super::Op`] against the file and takes the buffer;
    /// gives it back with the reason otherwise. `iovecs` is memory to use again.
    pub(super) fn new(
        file: &BlockFile,
        direction: Direction,
        offset: u64,
        buffer: Buffer,
        iovecs: Iovecs,
    ) -> Result<Self, (Errno, Buffer)> {
        let read = direction == Direction::Read;
        let block = u64::from(file.block_size());
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let refusal =
            if !offset.is_multiple_of(block) || !len.is_multiple_of(block) || !buffer.fits(read) {
                Some(Errno::EINVAL)
            } else if !read && file.is_read_only() {
                Some(Errno(libc::EROFS))
            } else if offset
                .checked_add(len)
                .is_some_and(|end| end <= file.size())
            {
                None
            } else if read {
                Some(Errno::EIO)
            } else {
                // A regular file would grow; it must not.
                Some(Errno::ENOSPC)
            };
        if let Some(errno) = refusal {
            return Err((errno, buffer));
        }
        Ok(Self {
            direction,
            offset,
            done: 0,
            buffer,
            bounce: None,
            bounced: false,
            copy_always: false,
            iovecs,
            prepared: 0,
            attempts: 0,
        })
    }

    /// Bytes from the start of the file.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) const fn direction(&self) -> Direction {
        self.direction
    }

    /// Bytes of the prepared part.
    pub(super) const fn prepared(&self) -> usize {
        self.prepared
    }

    /// Where the prepared part starts in the file.
    pub(super) fn position(&self) -> u64 {
        self.offset
            .saturating_add(u64::try_from(self.done).unwrap_or(u64::MAX))
    }

    /// Where it ends in the file.
    pub(super) fn end(&self) -> u64 {
        let len = u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        self.offset.saturating_add(len)
    }

    /// Memory of the prepared part. Its pointers are good until `advance`.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs.0
    }

    /// Takes the buffer (and the iovecs' memory) out at the end.
    pub(super) fn into_parts(mut self) -> (Buffer, Iovecs) {
        self.iovecs.0.clear();
        (self.buffer, self.iovecs)
    }

    /// Nothing to move.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Sets the iovecs to the memory of the next part.
    pub(super) fn prepare(&mut self, file: &BlockFile) {
        self.iovecs.0.clear();
        let left = self.buffer.len().saturating_sub(self.done);
        self.bounced = self.copy_always || !self.direct_memory(file, left.min(CALL_BYTES_MAX));
        if !self.bounced {
            return;
        }
        let block = usize::try_from(file.block_size()).unwrap_or(512);
        let part = left.min(BOUNCE.max(block));
        let bounce = self.bounce.get_or_insert_with(|| OwnedBuffer::zeroed(part));
        bounce.set_len(part.min(bounce.capacity()));
        if self.direction != Direction::Read {
            self.buffer.read_at(self.done, bounce.as_mut_slice());
        }
        let memory = bounce.as_mut_slice();
        self.prepared = memory.len();
        let iov_base = memory.as_mut_ptr().cast();
        self.iovecs.0.clear();
        self.iovecs.0.push(libc::iovec {
            iov_base,
            iov_len: memory.len(),
        });
    }

    /// Fills `iovecs` with the buffer's own memory, at most `most` bytes; false
    /// if that does not suit the file.
    fn direct_memory(&mut self, file: &BlockFile, most: usize) -> bool {
        let (mut skip, mut left) = (self.done, most);
        let block = usize::try_from(file.block_size()).unwrap_or(512);
        let iovecs = &mut self.iovecs.0;
        let mut add = |slice: GuestSlice| {
            let start = skip.min(slice.len);
            skip -= start;
            let len = left.min(slice.len - start);
            if len == 0 || iovecs.len() == PIECES {
                return true;
            }
            left -= len;
            let pointer = slice.pointer.wrapping_add(start);
            iovecs.push(libc::iovec {
                iov_base: pointer.cast(),
                iov_len: len,
            });
            !file.is_direct()
                || (pointer.addr().is_multiple_of(file.memory_align()) && len.is_multiple_of(block))
        };
        let suits = match &mut self.buffer {
            Buffer::Owned(b) => {
                let memory = b.as_mut_slice();
                add(GuestSlice {
                    pointer: memory.as_mut_ptr(),
                    len: memory.len(),
                })
            }
            Buffer::Guest(b) => b.slices().iter().all(|slice| add(*slice)),
            Buffer::Zeroes { len } => {
                let page = zero_pages();
                (0..*len).step_by(page.len().max(1)).all(|at| {
                    // Zeroes are only written from, so the kernel only reads this memory.
                    add(GuestSlice {
                        pointer: page.as_ptr().cast_mut(),
                        len: page.len().min(*len - at),
                    })
                })
            }
            shared @ Buffer::Shared { .. } => {
                // A shared buffer is only written from, so the kernel only reads it.
                let memory = shared.shared_slice().unwrap_or_default();
                add(GuestSlice {
                    pointer: memory.as_ptr().cast_mut(),
                    len: memory.len(),
                })
            }
        };
        self.prepared = most - left;
        // If one call cannot take all pieces, it could end inside a block.
        suits && self.prepared.is_multiple_of(block)
    }

    /// Takes the result of the system call on the prepared part: bytes moved or errno.
    pub(super) fn advance(&mut self, file: &BlockFile, result: Result<usize, Errno>) -> Next {
        let moved = match result {
            Ok(moved) => moved.min(self.prepared),
            Err(Errno(libc::EINTR | libc::EAGAIN)) => {
                if result == Err(Errno(libc::EAGAIN)) {
                    file.may_block();
                }
                return self.again(Errno(libc::EAGAIN));
            }
            Err(Errno::EINVAL) if file.is_direct() && !self.bounced => {
                // The file needs a stricter alignment than it reported.
                self.copy_always = true;
                return self.again(Errno::EINVAL);
            }
            Err(Errno(libc::EFAULT)) if !self.bounced => {
                // Guest memory that is gone. Its pages are replaced when this process
                // accesses them, and what waits for the transfer goes on.
                self.copy_always = true;
                return self.again(Errno(libc::EFAULT));
            }
            Err(errno) => return Next::Finished(Err(errno)),
        };
        // The rest must start at a block again: only whole blocks count.
        let block = usize::try_from(file.block_size()).unwrap_or(512);
        let moved = moved - moved % block;
        if moved == 0 {
            // The end of the file, or of a device that shrank.
            return Next::Finished(Err(Errno::EIO));
        }
        if let (Direction::Read, true, Some(bounce)) = (self.direction, self.bounced, &self.bounce)
        {
            let data = bounce.as_slice().get(..moved).unwrap_or_default();
            self.buffer.write_at(self.done, data);
        }
        self.done += moved;
        self.attempts = 0;
        Next::after(self.done, self.buffer.len())
    }

    fn again(&mut self, errno: Errno) -> Next {
        self.attempts += 1;
        if self.attempts < RETRIES_MAX {
            Next::Again
        } else {
            Next::Finished(Err(errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Direct, OpenOptions};

    fn file(len: u64) -> (tempfile::TempDir, BlockFile) {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            create: Some(len),
            direct: Direct::Off,
            ..OpenOptions::default()
        };
        let file = BlockFile::open(dir.path().join("file"), options).unwrap();
        (dir, file)
    }

    fn transfer(file: &BlockFile, len: usize) -> Transfer {
        let buffer = Buffer::Owned(OwnedBuffer::zeroed(len));
        Transfer::new(
            file,
            Direction::Write { durable: false },
            1024,
            buffer,
            Iovecs::default(),
        )
        .unwrap()
    }

    #[test]
    fn short_transfer_goes_on_behind_the_last_whole_block() {
        let (_dir, file) = file(8192);
        let mut t = transfer(&file, 4096);
        t.prepare(&file);
        assert_eq!((t.position(), t.iovecs()[0].iov_len), (1024, 4096));
        assert_eq!(t.advance(&file, Ok(1500)), Next::Again);
        t.prepare(&file);
        assert_eq!((t.position(), t.iovecs()[0].iov_len), (2048, 3072));
        assert_eq!(t.advance(&file, Ok(3072)), Next::Finished(Ok(())));
    }

    #[test]
    fn one_call_moves_no_more_than_a_stop_can_wait_for() {
        let (_dir, file) = file(64 << 20);
        let mut t = transfer(&file, 10 << 20);
        for (at, len) in [(0, 4 << 20), (4 << 20, 4 << 20), (8 << 20, 2 << 20)] {
            t.prepare(&file);
            assert_eq!((t.position(), t.iovecs()[0].iov_len), (1024 + at, len));
            t.advance(&file, Ok(len));
        }
    }

    #[test]
    fn no_progress_is_an_error_not_a_loop() {
        let (_dir, file) = file(8192);
        for moved in [0, 511] {
            let mut t = transfer(&file, 4096);
            t.prepare(&file);
            assert_eq!(t.advance(&file, Ok(moved)), Next::Finished(Err(Errno::EIO)));
        }
    }

    #[test]
    fn interrupted_call_is_repeated_but_not_for_ever() {
        let (_dir, file) = file(8192);
        let mut t = transfer(&file, 4096);
        let mut calls = 0;
        let end = loop {
            t.prepare(&file);
            calls += 1;
            match t.advance(&file, Err(Errno(libc::EINTR))) {
                Next::Again => {}
                Next::Finished(end) => break end,
            }
        };
        assert_eq!((calls, end), (RETRIES_MAX, Err(Errno(libc::EAGAIN))));
    }

    #[test]
    fn errno_survives() {
        let (_dir, file) = file(8192);
        let mut t = transfer(&file, 4096);
        t.prepare(&file);
        assert_eq!(
            t.advance(&file, Err(Errno::ENOSPC)),
            Next::Finished(Err(Errno::ENOSPC))
        );
    }
}
