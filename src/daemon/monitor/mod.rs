//! QEMU's monitor (QMP): commands, and the resets that it reports.

pub mod qmp;
pub mod watch;
