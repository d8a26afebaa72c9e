//! The service manager that started this process, if one did: what systemd calls notification,
//! socket activation and the store of descriptors. Without one, nothing here does anything.
//!
//! Whether there is a manager is a property of the process, as its signals are, so that this
//! module has state of the process.
//!
//! ```text
//!  passed ─► kept ─► notify
//! ```

mod kept;
mod notify;
mod passed;

pub use kept::{Kept, keep, sockets_stay, stays_for_the_next};
pub use notify::{is_notified, ready, reloading, status, stopping, watchdog, watchdog_interval};
pub use passed::{Passed, drop_kept, is_passed, left_over, names, take, take_at, take_over};

/// What the manager says in the environment to this process, and not to those that it starts.
pub const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];
