//! SIGTERM, SIGINT and SIGHUP as a descriptor on which the main loop waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::Signal;
use vmm_sys_util::signal::{Error, block_signal, register_signal_handler, unblock_signal};

use crate::event_flag::EventFlag;

/// A signal handler can only access statics.
static RUNG: OnceLock<EventFlag> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Whether SIGHUP came since it was looked for.
static RELOAD: AtomicBool = AtomicBool::new(false);

const STOPS: &[Signal] = &[Signal::TERM, Signal::INT];
const WITH_RELOAD: &[Signal] = &[Signal::TERM, Signal::INT, Signal::HUP];

/// Does only what is allowed in a signal handler: an atomic addition and a write. The second
/// argument is libc's `siginfo_t`, which is not used.
extern "C" fn handle<T>(signal: i32, _: *mut T, _: *mut std::ffi::c_void) {
    if signal == Signal::HUP.as_raw() {
        RELOAD.store(true, Ordering::Release);
    } else {
        COUNT.fetch_add(1, Ordering::Release);
    }
    if let Some(rung) = RUNG.get() {
        rung.set();
    }
}

/// The signals that end the daemon, and the one that asks it to read its configuration again.
pub struct Signals {
    rung: &'static EventFlag,
    taken: &'static [Signal],
}

impl Signals {
    /// Blocks the signals in this thread and those that it starts from now on, so that no
    /// system call of another thread is interrupted. Without `reload`, SIGHUP keeps its meaning.
    pub fn hold(reload: bool) -> io::Result<Self> {
        let wake = EventFlag::new()?;
        let rung = RUNG.get_or_init(|| wake);
        let taken = if reload { WITH_RELOAD } else { STOPS };
        hold_back(taken)?;
        for signal in taken {
            register_signal_handler(signal.as_raw(), handle)?;
        }
        Ok(Self { rung, taken })
    }

    /// Unblocks the signals in this thread.
    pub fn release(&self) -> io::Result<()> {
        for signal in self.taken {
            unblock_signal(signal.as_raw()).map_err(|e| io::Error::other(e.to_string()))?;
        }
        Ok(())
    }

    /// Runs `wait`, during which signals are taken, for a thread that still has others to start.
    pub fn listen<T>(&self, wait: impl FnOnce() -> T) -> io::Result<T> {
        self.release()?;
        let waited = wait();
        hold_back(self.taken)?;
        Ok(waited)
    }

    /// Whether SIGHUP came since the last call.
    pub fn take_reload(&self) -> bool {
        RELOAD.swap(false, Ordering::AcqRel)
    }

    /// Number of signals to stop received so far.
    pub fn count(&self) -> u32 {
        self.rung.clear();
        COUNT.load(Ordering::Acquire)
    }
}

/// Blocks the signals in this thread.
fn hold_back(signals: &[Signal]) -> io::Result<()> {
    for signal in signals {
        match block_signal(signal.as_raw()) {
            // The parent process may have blocked it.
            Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => {}
            Err(e) => return Err(io::Error::other(e.to_string())),
        }
    }
    Ok(())
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rung.as_fd()
    }
}
