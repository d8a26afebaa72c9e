//! Real guests under QEMU against the `snapback` program that Cargo built.
//!
//! `qemu-tests/install.sh` brings QEMU; `images/build-guest.sh` makes the guest.
//! Nothing is skipped: without them the tests fail and say what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: a wrong value must stop them"
)]

mod bench;
#[path = "../images/guest/content.rs"]
mod content;
#[path = "../images/guest/cut.rs"]
mod cut;
mod daemon;
mod differential;
mod disk;
mod guest;
mod machine;
mod qmp;
#[path = "../tests/common/stop.rs"]
mod stop;

mod attach;
mod backup;
mod boot_during_merge;
mod damaged;
mod discards;
mod features;
mod forks;
mod hotplug;
mod inside;
mod kernel_merge;
mod libvirt;
mod linux;
mod logwrites;
mod lvm;
mod migration;
mod mixtures;
mod programs;
mod resets;
mod resize;
mod restarts;
mod rollback;
mod run;
mod short_snapshots;
mod snapshots;
