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

/// Closes everything but standard input, output and error, in a process that has opened nothing
/// itself: what it has inherited is not meant for it.
///
/// # Errors
/// The kernel does not say what is open.
pub fn close_others() -> io::Result<()> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok()),
        );
    }
    // The folder itself is closed by now, so its number is an error; so is 0, 1 and 2.
    open.into_iter().for_each(|fd| drop(take(fd)));
    Ok(())
}
