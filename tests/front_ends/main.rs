//! Front ends as they are: their orders of messages, re-created with the daemon as a
//! process. Every session does I/O on each of its rings and compares what comes back.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod cloud_hypervisor;
mod conventions;
mod crosvm;
mod daemon;
mod memory;
mod qemu;
mod queues;
mod ring;
mod slots;
mod spdk;
mod waiting;

use std::path::Path;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use memory::Memory;
use ring::Ring;

pub const FLUSH: u64 = 1 << 9;
pub const CONFIG_WCE: u64 = 1 << 11;
pub const MQ: u64 = 1 << 12;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
/// Of an operating system's driver. (The rings here signal every request.)
pub const SYSTEM: u64 = VERSION_1 | FLUSH | MQ | INDIRECT;
/// Of a firmware's.
pub const FIRMWARE: u64 = VERSION_1 | FLUSH;

/// Waits until `condition` holds; fails after twenty seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 20, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Connects, and negotiates these protocol features as most front ends do: without
/// SET_FEATURES, which comes with the driver.
pub fn connect(path: &Path, queues: usize, protocol: VhostUserProtocolFeatures) -> Frontend {
    let frontend = Frontend::connect(path, queues as u64).unwrap();
    negotiate(frontend, protocol)
}

/// As [`connect`], on a connection that is there.
pub fn negotiate(mut frontend: Frontend, protocol: VhostUserProtocolFeatures) -> Frontend {
    frontend.set_owner().unwrap();
    assert_ne!(frontend.get_features().unwrap() & PROTOCOL, 0);
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(protocol), "{offered:?}");
    frontend.set_protocol_features(protocol).unwrap();
    frontend
}

/// From now on every message asks for an answer.
pub fn ask_for_replies(frontend: &mut Frontend) {
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
}

/// NUM, BASE, ADDR, KICK, CALL, as QEMU does.
pub fn set_up(frontend: &mut Frontend, memory: &Memory, ring: &Ring, base: u16) {
    let index = ring.index;
    frontend.set_vring_num(index, ring.size).unwrap();
    frontend.set_vring_base(index, base).unwrap();
    let addresses = ring.addresses(memory);
    frontend.set_vring_addr(index, &addresses).unwrap();
    frontend.set_vring_kick(index, &ring.kick).unwrap();
    frontend.set_vring_call(index, &ring.call).unwrap();
}

/// Rings of these sizes, one after the other from the guest's address `at`.
pub fn rings(memory: &Memory, at: u64, sizes: &[u16]) -> Vec<Ring> {
    let place = |(index, size): (usize, &u16)| {
        Ring::new(memory, index, *size, at + index as u64 * ring::ROOM)
    };
    sizes.iter().enumerate().map(place).collect()
}
