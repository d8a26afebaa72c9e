//! The signals that this process passes on to the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use vmm_sys_util::signal::register_signal_handler;

use crate::event_flag::EventFlag;

/// A signal handler can only access statics.
static RUNG: OnceLock<EventFlag> = OnceLock::new();
/// A bit for each signal that came.
static CAME: AtomicU64 = AtomicU64::new(0);

const PASSED_ON: [Signal; 6] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
];

/// Does only what is allowed in a signal handler. The second argument is libc's `siginfo_t`,
/// which is not used.
extern "C" fn handle<T>(signal: i32, _: *mut T, _: *mut std::ffi::c_void) {
    CAME.fetch_or(bit(signal), Ordering::Release);
    if let Some(rung) = RUNG.get() {
        rung.set();
    }
}

const fn bit(signal: i32) -> u64 {
    // Signals are numbered from 1 to 64.
    1 << ((signal - 1) & 63)
}

pub struct Signals {
    rung: &'static EventFlag,
}

impl Signals {
    /// From now on these signals do not end the process. One that the parent process has
    /// ignored, as `nohup` does, stays so, for the command as well.
    pub fn take() -> io::Result<Self> {
        let new = EventFlag::new()?;
        let rung = RUNG.get_or_init(|| new);
        let ignored = ignored();
        for signal in PASSED_ON {
            if ignored & bit(signal.as_raw()) == 0 {
                register_signal_handler(signal.as_raw(), handle)?;
            }
        }
        Ok(Self { rung })
    }

    /// The signals that came since the last call.
    pub fn came(&self) -> Vec<Signal> {
        self.rung.clear();
        let came = CAME.swap(0, Ordering::AcqRel);
        let each = PASSED_ON.into_iter();
        each.filter(|signal| came & bit(signal.as_raw()) != 0)
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rung.as_fd()
    }
}

/// The signals that this process ignores, a bit for each; 0 if the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).unwrap_or(0)
}
