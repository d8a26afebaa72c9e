//! One zeroing operation: which system call comes next, and how a result is handled.
//!
//! The cheapest call is tried first. A call that the file or device does not support is
//! not tried on it again; the last resort is to write zeroes, also once where the call finds no
//! space. Where a call that succeeds is not
//! known to zero (`known_zeroing.rs`), zeroes are written at once, and only hints use the call.

use super::allocate::Allocate;
use super::transfer::{Direction, Iovecs, Next, Transfer};
use super::{BlockFile, Buffer, Errno, Zeroing};

/// How often in a row the kernel may ask for a retry.
const RETRIES_MAX: u32 = 1000;

#[derive(Debug)]
enum Step {
    Allocate(Allocate),
    Write(Transfer),
    /// A hint that the file does not support.
    Nothing,
}

/// The system call to make now.
pub(super) enum Call<'a> {
    Allocate(Allocate),
    /// The transfer is prepared.
    Write(&'a Transfer),
}

/// See the module documentation. Contract: as [`Transfer`]'s.
#[derive(Debug)]
pub(super) struct ZeroWork {
    offset: u64,
    len: u64,
    how: Zeroing,
    step: Step,
    attempts: u32,
}

impl ZeroWork {
    /// Checks the range as for a write of it.
    pub(super) fn new(
        file: &BlockFile,
        offset: u64,
        len: u64,
        how: Zeroing,
    ) -> Result<Self, Errno> {
        // This transfer is made for its checks only and then dropped; it has no memory.
        write(file, offset, len)?;
        let mut work = Self {
            offset,
            len,
            how,
            step: Step::Nothing,
            attempts: 0,
        };
        if len > 0 {
            work.step = work.choose(file)?;
        }
        Ok(work)
    }

    /// Bytes of the range: offset and length.
    pub(super) const fn range(&self) -> (u64, u64) {
        (self.offset, self.len)
    }

    /// There is no call to make.
    pub(super) const fn is_nothing(&self) -> bool {
        matches!(self.step, Step::Nothing)
    }

    /// The best way that the file is not known to be without.
    fn choose(&self, file: &BlockFile) -> Result<Step, Errno> {
        let reliable = file.zeroes_reliably();
        let punch = match self.how {
            Zeroing::Keep => false,
            Zeroing::Unmap => reliable && !file.keeps_space(),
            Zeroing::Discard => !file.keeps_space(),
        };
        Ok(if punch && file.abilities().can(Allocate::Punch) {
            Step::Allocate(Allocate::Punch)
        } else if self.how == Zeroing::Discard {
            Step::Nothing
        } else if reliable && file.abilities().can(Allocate::ZeroRange) {
            Step::Allocate(Allocate::ZeroRange)
        } else {
            Step::Write(write(file, self.offset, self.len)?)
        })
    }

    /// The next call; `None` if none is left.
    pub(super) fn prepare(&mut self, file: &BlockFile) -> Option<Call<'_>> {
        match &mut self.step {
            Step::Allocate(how) => Some(Call::Allocate(*how)),
            Step::Write(transfer) => {
                transfer.prepare(file);
                Some(Call::Write(transfer))
            }
            Step::Nothing => None,
        }
    }

    /// Takes the result of the call.
    pub(super) fn advance(&mut self, file: &BlockFile, result: Result<usize, Errno>) -> Next {
        let how = match &mut self.step {
            Step::Write(transfer) => return transfer.advance(file, result),
            Step::Nothing => return Next::Finished(Ok(())),
            Step::Allocate(how) => *how,
        };
        match result {
            Ok(_) => Next::Finished(Ok(())),
            Err(Errno(libc::EINTR | libc::EAGAIN)) => {
                self.attempts += 1;
                if self.attempts < RETRIES_MAX {
                    Next::Again
                } else {
                    Next::Finished(Err(Errno(libc::EAGAIN)))
                }
            }
            Err(Errno(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)) => {
                file.abilities().cannot(how);
                match self.choose(file) {
                    Ok(Step::Nothing) => Next::Finished(Ok(())),
                    Ok(step) => {
                        self.step = step;
                        Next::Again
                    }
                    Err(errno) => Next::Finished(Err(errno)),
                }
            }
            // The call may need space for the file system's own records where the file has its
            // space already, so that data can still be written.
            Err(Errno(libc::ENOSPC | libc::EDQUOT)) => match self.how {
                Zeroing::Discard => Next::Finished(Ok(())),
                Zeroing::Keep | Zeroing::Unmap => match write(file, self.offset, self.len) {
                    Ok(transfer) => {
                        self.step = Step::Write(transfer);
                        Next::Again
                    }
                    Err(errno) => Next::Finished(Err(errno)),
                },
            },
            Err(errno) => Next::Finished(Err(errno)),
        }
    }
}

fn write(file: &BlockFile, offset: u64, len: u64) -> Result<Transfer, Errno> {
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let (write, zeroes) = (Direction::Write { durable: false }, Buffer::Zeroes { len });
    Transfer::new(file, write, offset, zeroes, Iovecs::default()).map_err(|(errno, _)| errno)
}
