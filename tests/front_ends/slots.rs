//! Guest memory that changes while rings run: slots one at a time, and whole tables.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::daemon::Daemon;
use super::memory::{Dimm, MIB, Memory};
use super::ring::{Ring, begin, judge};
use super::{PROTOCOL, SYSTEM, ask_for_replies, connect, rings, set_up};

const QUEUES: usize = 3;
/// Slots that a front end may fill.
const SLOTS: u64 = 509;

/// DIMMs of 1 MiB with gaps between them, each from elsewhere in its file.
fn dimms(count: u64) -> Vec<Dimm> {
    let dimm = |i: u64| Dimm {
        guest: i * 4 * MIB,
        len: MIB,
        offset: (i + 1) * 0x1000,
    };
    (0..count).map(dimm).collect()
}

fn begun(daemon: &Daemon, replies: bool, memory: &Memory) -> (Frontend, Vec<Ring>) {
    let mut features = Protocol::MQ | Protocol::CONFIG | Protocol::CONFIGURE_MEM_SLOTS;
    if replies {
        features |= Protocol::REPLY_ACK;
    }
    let mut frontend = connect(&daemon.socket(), QUEUES, features);
    if replies {
        ask_for_replies(&mut frontend);
    }
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    // In the first one.
    (frontend, rings(memory, 0, &[64, 16, 256]))
}

fn start(frontend: &mut Frontend, memory: &Memory, rings: &[Ring]) {
    for ring in rings {
        set_up(frontend, memory, ring, 0);
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
}

/// Waits until all messages were carried out, whether they are answered or not.
fn settled(frontend: &mut Frontend) {
    frontend.get_features().unwrap();
}

fn all_slots_come_and_go(replies: bool) {
    let daemon = Daemon::start();
    // One memory for all slots behind the first, so that the test itself stays small.
    let memory = Memory::of(&dimms(1));
    let more = Memory::of(&dimms(SLOTS));
    let (mut frontend, mut rings) = begun(&daemon, replies, &memory);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), SLOTS);
    frontend.add_mem_region(&memory.regions()[0]).unwrap();
    start(&mut frontend, &memory, &rings);
    let others: Vec<VhostUserMemoryRegionInfo> = more.regions()[1..].to_vec();
    let mut round = 0;
    for (at, region) in others.iter().enumerate() {
        if at % 50 == 0 {
            round += 1;
            begin(&memory, &mut rings, round);
        }
        frontend.add_mem_region(region).unwrap();
        if at % 50 == 49 {
            judge(&memory, &mut rings, round);
        }
    }
    settled(&mut frontend);
    judge(&memory, &mut rings, round);
    if replies {
        let one_too_many = VhostUserMemoryRegionInfo {
            guest_phys_addr: 1 << 40,
            userspace_addr: 1 << 46,
            ..others[0]
        };
        assert!(frontend.add_mem_region(&one_too_many).is_err());
    }
    begin(&memory, &mut rings, 1000);
    for region in others.iter().rev() {
        frontend.remove_mem_region(region).unwrap();
    }
    settled(&mut frontend);
    judge(&memory, &mut rings, 1000);
    drop(frontend);
    daemon.end(0..QUEUES, 1000);
}

#[test]
fn all_509_memory_slots_come_and_go_while_three_rings_run() {
    all_slots_come_and_go(true);
}

#[test]
fn slots_come_and_go_without_answers_too() {
    all_slots_come_and_go(false);
}

/// Memory hot-plug of a front end without slots: the table with one more DIMM each time,
/// and back.
fn tables_are_replaced(replies: bool) {
    let daemon = Daemon::start();
    let memory = Memory::of(&dimms(16));
    let (mut frontend, mut rings) = begun(&daemon, replies, &memory);
    let table = memory.regions();
    frontend.set_mem_table(&table[..1]).unwrap();
    // The second ring's memory is in the last DIMM, from the moment it is there.
    start(&mut frontend, &memory, &rings);
    for count in (1..=16).chain((1..16).rev()) {
        begin(&memory, &mut rings, count);
        frontend.set_mem_table(&table[..count as usize]).unwrap();
        if count == 16 {
            let last = table[15].guest_phys_addr;
            let mut far = [Ring::new(&memory, QUEUES - 1, 64, last)];
            judge(&memory, &mut rings, count);
            let old = rings.pop().unwrap();
            frontend.set_vring_enable(old.index, false).unwrap();
            frontend.get_vring_base(old.index).unwrap();
            start(&mut frontend, &memory, &far);
            begin(&memory, &mut far, count);
            judge(&memory, &mut far, count);
            frontend.set_vring_enable(old.index, false).unwrap();
            frontend.get_vring_base(old.index).unwrap();
            continue;
        }
        judge(&memory, &mut rings, count);
    }
    drop(frontend);
    daemon.end(0..QUEUES - 1, 1);
}

#[test]
fn a_table_grows_to_16_dimms_and_back_while_rings_run() {
    tables_are_replaced(true);
}

#[test]
fn tables_are_replaced_without_answers_too() {
    tables_are_replaced(false);
}
