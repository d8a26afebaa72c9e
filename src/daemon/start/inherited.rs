//! A descriptor that the parent process left open for the daemon (`--fd N`).
#![allow(unsafe_code)] // Named file: a number becomes an owned descriptor.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over descriptor `fd`. Nothing else in this process may use the number,
/// which only the command line may have given.
///
/// # Errors
/// It is not open, or is standard input, output or error.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "0, 1 and 2 are standard input, output and error",
        ));
    }
    // SAFETY: `fd` is not -1, and the borrow ends with this statement; a closed
    // number gives EBADF.
    let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) });
    open.map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not open in this process",
        )
    })?;
    // SAFETY: it is open, was inherited, and nothing else uses it by the contract above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
