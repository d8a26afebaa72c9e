//! cloud-hypervisor, which needs KVM to run: its messages in their order, each with an
//! answer. It tells where a ring goes on by the *available* index, also after the daemon
//! has died in the middle of requests.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{Dimm, MIB, Memory};
use super::ring::{Ring, SLOTS, begin, begin_slots, judge};
use super::{EVENT_IDX, FIRMWARE, PROTOCOL, SYSTEM, ask_for_replies, connect, eventually, rings};

const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 128;

/// What it keeps over a connection.
struct Vmm {
    protocol: Protocol,
    region: Option<(VhostUserInflight, File)>,
    features: u64,
}

impl Vmm {
    fn new() -> Self {
        let protocol = Protocol::CONFIG
            | Protocol::MQ
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::REPLY_ACK
            | Protocol::INFLIGHT_SHMFD;
        Self {
            protocol,
            region: None,
            features: SYSTEM | EVENT_IDX | PROTOCOL,
        }
    }

    fn without_region() -> Self {
        let mut vmm = Self::new();
        vmm.protocol -= Protocol::INFLIGHT_SHMFD;
        vmm
    }

    /// Tries every 100 ms, as long as nobody listens.
    fn connect(&self, daemon: &Daemon) -> Frontend {
        eventually("the daemon listens", || {
            let there = std::os::unix::net::UnixStream::connect(daemon.socket()).is_ok();
            if !there {
                std::thread::sleep(Duration::from_millis(100));
            }
            there
        });
        let mut frontend = connect(&daemon.socket(), QUEUES, self.protocol);
        ask_for_replies(&mut frontend);
        frontend
    }

    /// The first connection: it asks for the number of queues and the configuration.
    fn plug(&self, daemon: &Daemon) -> Frontend {
        let mut frontend = self.connect(daemon);
        assert!(frontend.get_queue_num().unwrap() >= QUEUES as u64);
        // Up to v50 from 0x100, then from 0.
        for offset in [0x100, 0] {
            let flags = VhostUserConfigFlags::WRITABLE;
            let (_, config) = frontend.get_config(offset, 60, flags, &[0; 60]).unwrap();
            assert_eq!(config[..8], (16_u64 << 20 >> 9).to_le_bytes());
        }
        frontend
    }

    /// FEATURES, MEM_TABLE, all NUM, the region, then each ring, and finally all ENABLE.
    fn set_up(&mut self, frontend: &mut Frontend, memory: &Memory, rings: &[Ring]) {
        frontend.set_features(self.features).unwrap();
        frontend.set_mem_table(&memory.regions()).unwrap();
        for ring in rings {
            frontend.set_vring_num(ring.index, ring.size).unwrap();
        }
        if self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            if self.region.is_none() {
                let ask = VhostUserInflight {
                    num_queues: rings.len() as u16,
                    queue_size: rings[0].size,
                    ..Default::default()
                };
                self.region = Some(frontend.get_inflight_fd(&ask).unwrap());
            }
            let (region, file) = self.region.as_ref().unwrap();
            frontend.set_inflight_fd(region, file.as_raw_fd()).unwrap();
        }
        for ring in rings {
            let index = ring.index;
            let addresses = ring.addresses(memory);
            frontend.set_vring_addr(index, &addresses).unwrap();
            frontend.set_vring_base(index, ring.avail_index()).unwrap();
            frontend.set_vring_call(index, &ring.call).unwrap();
            frontend.set_vring_kick(index, &ring.kick).unwrap();
        }
        enable(frontend, rings, true);
    }
}

fn enable(frontend: &mut Frontend, rings: &[Ring], enable: bool) {
    for ring in rings {
        frontend.set_vring_enable(ring.index, enable).unwrap();
    }
}

fn starts(daemon: &Daemon) -> Vec<String> {
    let mut kinds = daemon.events();
    kinds.retain(|kind| kind == "guest-reset" || kind == "driver-started");
    kinds
}

#[test]
fn firmware_then_system_then_pause_and_resume() {
    let daemon = Daemon::start();
    let memory = Memory::flat(2 * MIB);
    let mut vmm = Vmm::new();
    let mut frontend = vmm.plug(&daemon);
    // Its firmware: one ring of 16 entries without EVENT_IDX.
    vmm.features = FIRMWARE | PROTOCOL;
    let mut firmware = rings(&memory, 0, &[16]);
    vmm.set_up(&mut frontend, &memory, &firmware);
    for round in 0..10 {
        begin(&memory, &mut firmware, round);
        judge(&memory, &mut firmware, round);
    }
    // Older releases: the rings are disabled, and RESET_OWNER.
    enable(&mut frontend, &firmware, false);
    frontend.reset_owner().unwrap();
    vmm.features = SYSTEM | EVENT_IDX | PROTOCOL;
    vmm.region = None;
    let mut system = rings(&memory, 0, &[QUEUE_SIZE; QUEUES]);
    vmm.set_up(&mut frontend, &memory, &system);
    begin(&memory, &mut system, 20);
    judge(&memory, &mut system, 20);
    // A paused machine's requests wait.
    enable(&mut frontend, &system, false);
    begin(&memory, &mut system, 21);
    let done: Vec<u16> = system.iter().map(|ring| ring.used_index(&memory)).collect();
    std::thread::sleep(Duration::from_millis(30));
    let later: Vec<u16> = system.iter().map(|ring| ring.used_index(&memory)).collect();
    assert_eq!(done, later, "a disabled ring does nothing");
    enable(&mut frontend, &system, true);
    judge(&memory, &mut system, 21);
    // Later releases: each ring is disabled, and its base is asked for.
    for ring in &system {
        frontend.set_vring_enable(ring.index, false).unwrap();
        let base = frontend.get_vring_base(ring.index).unwrap();
        assert_eq!(base, u32::from(ring.avail_index()));
    }
    vmm.features = FIRMWARE | PROTOCOL;
    vmm.region = None;
    let mut again = rings(&memory, 0, &[16]);
    vmm.set_up(&mut frontend, &memory, &again);
    begin(&memory, &mut again, 22);
    judge(&memory, &mut again, 22);
    assert_eq!(
        starts(&daemon),
        ["guest-reset", "driver-started", "guest-reset"],
        "a pause is none"
    );
    drop(frontend);
    daemon.end(0..1, 22);
}

#[test]
fn memory_that_is_plugged_in_is_used_at_once() {
    let daemon = Daemon::start();
    let dimm = |guest, offset| Dimm {
        guest,
        len: MIB,
        offset,
    };
    let memory = Memory::of(&[dimm(0, 0), dimm(1 << 32, 0x20_0000)]);
    let mut vmm = Vmm::new();
    let mut frontend = vmm.plug(&daemon);
    let mut near = rings(&memory, 0, &[QUEUE_SIZE; QUEUES]);
    frontend.set_features(vmm.features).unwrap();
    vmm.set_up(&mut frontend, &memory, &near[..1]);
    let far = memory.regions()[1];
    frontend.remove_mem_region(&far).unwrap();
    begin(&memory, &mut near[..1], 1);
    frontend.add_mem_region(&far).unwrap();
    judge(&memory, &mut near[..1], 1);
    vmm.region = None;
    let mut plugged = [Ring::new(&memory, 1, QUEUE_SIZE, 1 << 32)];
    frontend.set_vring_num(1, QUEUE_SIZE).unwrap();
    let addresses = plugged[0].addresses(&memory);
    frontend.set_vring_addr(1, &addresses).unwrap();
    frontend.set_vring_base(1, 0).unwrap();
    frontend.set_vring_call(1, &plugged[0].call).unwrap();
    frontend.set_vring_kick(1, &plugged[0].kick).unwrap();
    frontend.set_vring_enable(1, true).unwrap();
    begin(&memory, &mut plugged, 2);
    judge(&memory, &mut plugged, 2);
    drop(frontend);
    daemon.end(1..2, 2);
}

/// A snapshot of the machine is restored by another process, with a copy of its memory.
#[test]
fn a_machine_that_is_restored_from_a_snapshot_goes_on() {
    let mut daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut vmm = Vmm::new();
    let mut frontend = vmm.plug(&daemon);
    let mut running = rings(&memory, 0, &[QUEUE_SIZE; QUEUES]);
    vmm.set_up(&mut frontend, &memory, &running);
    begin(&memory, &mut running, 1);
    judge(&memory, &mut running, 1);
    enable(&mut frontend, &running, false);
    let saved = memory.read(0, MIB as usize);
    drop(frontend);
    // The daemon may be another one, too.
    daemon.terminate();
    daemon.serve(&["--socket-path", "a.sock"]);
    let memory = Memory::flat(MIB);
    memory.write(0, &saved);
    let mut vmm = Vmm::new();
    let mut frontend = vmm.connect(&daemon);
    vmm.set_up(&mut frontend, &memory, &running);
    begin(&memory, &mut running, 2);
    judge(&memory, &mut running, 2);
    assert!(starts(&daemon).is_empty(), "it was not reset");
    drop(frontend);
    daemon.end(0..QUEUES, 2);
}

/// The daemon dies with requests under way; more come while there is none. Whichever the
/// dead one had taken, all are done by its successor.
fn killed_under_load(mut vmm: Vmm) {
    let mut daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut frontend = vmm.plug(&daemon);
    let mut running = rings(&memory, 0, &[QUEUE_SIZE; QUEUES]);
    vmm.set_up(&mut frontend, &memory, &running);
    for round in 0..12 {
        begin_slots(&memory, &mut running, round, 0..SLOTS / 2);
        if round % 2 == 1 {
            // Some are done, some not.
            eventually("one is done", || {
                running[0].used_index(&memory) != running[0].seen
            });
        }
        daemon.kill();
        begin_slots(&memory, &mut running, round, SLOTS / 2..SLOTS);
        // It notices, and tries until there is a daemon again.
        daemon.serve(&["--socket-path", "a.sock"]);
        frontend = vmm.connect(&daemon);
        vmm.set_up(&mut frontend, &memory, &running);
        judge(&memory, &mut running, round);
    }
    assert!(starts(&daemon).is_empty(), "it was not reset");
    drop(frontend);
    daemon.end(0..QUEUES, 11);
}

#[test]
fn requests_are_replayed_after_a_reconnect_with_a_region() {
    killed_under_load(Vmm::new());
}

#[test]
fn requests_are_replayed_after_a_reconnect_without_a_region() {
    killed_under_load(Vmm::without_region());
}
