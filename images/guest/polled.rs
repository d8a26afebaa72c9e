//! Reads a disk with requests whose ends are polled for, without interrupts.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::AsRawFd;

use crate::content::{BLOCK, SUM_BLOCK, checksum};
use crate::{Buffer, Result, open};

const HIGH_PRIORITY: c_int = 1;

#[repr(C)]
struct Piece {
    start: *mut c_void,
    len: usize,
}

unsafe extern "C" {
    fn preadv2(
        file: c_int,
        pieces: *const Piece,
        count: c_int,
        offset: i64,
        flags: c_int,
    ) -> c_long;
}

/// One checksum for each 256 KiB.
pub fn sums(device: &str) -> Result<()> {
    let disk = open(device)?;
    let mut buffer = Buffer::new(SUM_BLOCK / BLOCK);
    let bytes = buffer.blocks(SUM_BLOCK / BLOCK);
    let mut offset = 0;
    loop {
        let piece = Piece {
            start: bytes.as_mut_ptr().cast(),
            len: bytes.len(),
        };
        // SAFETY: the piece is the buffer, which lives until the call returns.
        let read = unsafe { preadv2(disk.as_raw_fd(), &piece, 1, offset, HIGH_PRIORITY) };
        let Ok(length) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return Err(format!("polled read of {device} at {offset}: {error}"));
        };
        if length == 0 {
            return Ok(());
        }
        println!("{:016x}", checksum(&bytes[..length]));
        offset += length as i64;
    }
}
