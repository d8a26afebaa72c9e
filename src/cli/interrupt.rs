//! Signals that do not end the process: Ctrl-C while a verb waits for what a daemon does, and the
//! one for files that are too large.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use vmm_sys_util::signal::register_signal_handler;

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// Does only what is allowed in a signal handler. The second argument is libc's `siginfo_t`,
/// which is not used.
extern "C" fn handle<T>(_: i32, _: *mut T, _: *mut std::ffi::c_void) {
    HAPPENED.store(true, Ordering::Relaxed);
}

/// From now on an interruption is noted and does not end the process. If that cannot be had, it
/// ends the process, as without this.
pub fn watch() {
    let _ = register_signal_handler(Signal::INT.as_raw(), handle);
}

/// The same for an end by SIGTERM or with the terminal, for verbs that leave a terminal as it was.
pub fn watch_all() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let _ = register_signal_handler(signal.as_raw(), handle);
    }
}

extern "C" fn ignore<T>(_: i32, _: *mut T, _: *mut std::ffi::c_void) {}

/// From now on a write beyond the limit for the size of files (`ulimit -f`) is an error of that
/// write. Its signal would end the process, and a guest chooses where it writes. A handler does not
/// outlive an exec, so programs that are run have their own way.
pub fn survive_size_limit() {
    let _ = register_signal_handler(Signal::XFSZ.as_raw(), ignore);
}

/// There was an interruption.
pub fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}
