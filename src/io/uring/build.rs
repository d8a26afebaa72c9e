//! Makes a ring: its mode, and what it can be told.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

/// A ring that is not enabled yet, so that it belongs to the thread that enables it.
pub(super) fn ring(depth: u32) -> io::Result<IoUring> {
    let deferred = IoUring::builder()
        .setup_r_disabled()
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(depth);
    let ring = match deferred {
        // Before Linux 6.1.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .setup_r_disabled()
            .setup_clamp()
            .build(depth),
        other => other,
    }?;
    restrict(&ring)?;
    Ok(ring)
}

/// What a ring may be told when it is enabled: to be enabled, and to forget its event descriptor.
/// The numbers are those of `enum io_uring_register_op` in linux/io_uring.h.
const ENABLE_RINGS: u8 = 12;
const UNREGISTER_EVENTFD: u8 = 5;

/// Leaves the ring the operations of `uring.rs` and `watch.rs`. A ring carries operations out
/// that a filter of system calls does not see, and could otherwise open files and sockets.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::Nop::CODE,
    ];
    let changes = [ENABLE_RINGS, UNREGISTER_EVENTFD].map(Restriction::register_op);
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::SKIP_SUCCESS.bits());
    let mut all: Vec<Restriction> = operations.map(Restriction::sqe_op).into();
    all.extend(changes);
    all.push(flags);
    ring.submitter().register_restrictions(&mut all)
}
