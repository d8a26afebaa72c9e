//! Submission queue entries of io_uring for the operations of a disk.

use io_uring::{opcode, squeue, types};

use super::allocate::Allocate;
use super::transfer::{Direction, Transfer};

/// Makes durable what was written before.
pub(super) fn flush_sqe(fd: types::Fd) -> squeue::Entry {
    let flush = opcode::Fsync::new(fd);
    flush.flags(types::FsyncFlags::DATASYNC).build()
}

/// Zeroes `len` bytes at `offset` by `how`.
pub(super) fn allocate_sqe(fd: types::Fd, how: Allocate, offset: u64, len: u64) -> squeue::Entry {
    let mode = i32::try_from(how.flags().bits()).unwrap_or(0);
    let allocate = opcode::Fallocate::new(fd, len);
    allocate.offset(offset).mode(mode).build()
}

/// The prepared part of `transfer`. The entry points at its memory. Without `dsync` a
/// durable write needs a flush afterwards.
pub(super) fn transfer_sqe(fd: types::Fd, transfer: &Transfer, dsync: bool) -> squeue::Entry {
    let offset = transfer.position();
    let iovecs = transfer.iovecs();
    let flags = |durable| if durable && dsync { libc::RWF_DSYNC } else { 0 };
    if let [one] = iovecs {
        // A transfer's part has at most 2^30 bytes.
        let len = u32::try_from(one.iov_len).unwrap_or(0);
        return match transfer.direction() {
            Direction::Read => opcode::Read::new(fd, one.iov_base.cast(), len)
                .offset(offset)
                .build(),
            Direction::Write { durable } => {
                let write = opcode::Write::new(fd, one.iov_base.cast_const().cast(), len);
                write.offset(offset).rw_flags(flags(durable)).build()
            }
        };
    }
    let count = u32::try_from(iovecs.len()).unwrap_or(0);
    match transfer.direction() {
        Direction::Read => opcode::Readv::new(fd, iovecs.as_ptr(), count)
            .offset(offset)
            .build(),
        Direction::Write { durable } => opcode::Writev::new(fd, iovecs.as_ptr(), count)
            .offset(offset)
            .rw_flags(flags(durable))
            .build(),
    }
}
