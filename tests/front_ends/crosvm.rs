//! crosvm: no message asks for an answer; it stops each ring by its base, also to sleep.

use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{Dimm, MIB, Memory};
use super::ring::{Ring, begin, judge};
use super::{EVENT_IDX, FIRMWARE, PROTOCOL, SYSTEM, connect, eventually, rings};

fn open(daemon: &Daemon) -> (Frontend, UnixStream) {
    let protocol = Protocol::CONFIG | Protocol::MQ | Protocol::BACKEND_REQ | Protocol::REPLY_ACK;
    let mut frontend = connect(&daemon.socket(), 256, protocol);
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    assert_eq!(frontend.get_queue_num().unwrap(), 256);
    // The guest reads the configuration field by field.
    for (offset, len) in [(0, 4), (4, 4), (20, 4), (32, 1), (34, 2)] {
        let flags = VhostUserConfigFlags::WRITABLE;
        let room = vec![0; len as usize];
        frontend.get_config(offset, len, flags, &room).unwrap();
    }
    (frontend, ours)
}

/// MEM_TABLE, then for each ring NUM, ADDR, BASE, CALL, KICK, ENABLE.
fn activate(frontend: &mut Frontend, memory: &Memory, rings: &[Ring], bases: &[u16]) {
    frontend.set_mem_table(&memory.regions()).unwrap();
    for (ring, base) in rings.iter().zip(bases) {
        let index = ring.index;
        frontend.set_vring_num(index, ring.size).unwrap();
        let addresses = ring.addresses(memory);
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_base(index, *base).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
}

fn deactivate(frontend: &mut Frontend, rings: &[Ring]) -> Vec<u16> {
    let stop = |ring: &Ring| {
        frontend.set_vring_enable(ring.index, false).unwrap();
        frontend.get_vring_base(ring.index).unwrap() as u16
    };
    rings.iter().map(stop).collect()
}

#[test]
fn a_machine_starts_sleeps_wakes_and_is_reset() {
    let daemon = Daemon::start();
    let dimm = |guest, offset| Dimm {
        guest,
        len: 2 * MIB,
        offset,
    };
    let memory = Memory::of(&[dimm(0, 0x1000), dimm(1 << 32, 0x40_0000)]);
    let (mut frontend, _channel) = open(&daemon);
    frontend.set_features(FIRMWARE | PROTOCOL).unwrap();
    let mut firmware = rings(&memory, 0, &[16]);
    activate(&mut frontend, &memory, &firmware, &[0]);
    begin(&memory, &mut firmware, 1);
    judge(&memory, &mut firmware, 1);
    deactivate(&mut frontend, &firmware);
    // A driver acknowledges its features in two halves.
    frontend
        .set_features(SYSTEM & 0xffff_ffff | PROTOCOL)
        .unwrap();
    frontend
        .set_features(SYSTEM | EVENT_IDX | PROTOCOL)
        .unwrap();
    let mut system = rings(&memory, 1 << 32, &[256, 64, 1024]);
    activate(&mut frontend, &memory, &system, &[0; 3]);
    for round in 2..6 {
        begin(&memory, &mut system, round);
        // Asleep in the middle of it, and awake again.
        let bases = deactivate(&mut frontend, &system);
        activate(&mut frontend, &memory, &system, &bases);
        judge(&memory, &mut system, round);
    }
    let mut kinds = daemon.events();
    kinds.retain(|kind| kind == "guest-reset" || kind == "driver-started");
    assert_eq!(kinds, ["guest-reset", "driver-started"]);
    drop(frontend);
    daemon.end(0..3, 5);
}

/// Unless it is limited, crosvm lets its guests have rings of 32768 entries.
#[test]
fn a_ring_that_is_too_large_is_refused_by_its_size() {
    let daemon = Daemon::start();
    let (frontend, _channel) = open(&daemon);
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    let _ = frontend.set_vring_num(0, 32768);
    let want = "SET_VRING_NUM (message 8): handler failed to handle request: a ring of 32768 \
                entries; a power of two up to 1024 is needed";
    eventually(want, || daemon.log().contains(want));
}
