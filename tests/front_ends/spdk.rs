//! SPDK's virtio-user, and others that drive the disk themselves: guest addresses are their
//! own, rings are enabled before they exist, and the memory table is sent for each piece.

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{Dimm, MIB, Memory};
use super::ring::{ROOM, Ring, begin, judge};
use super::{EVENT_IDX, FLUSH, INDIRECT, MQ, PROTOCOL, VERSION_1};

const QUEUES: usize = 3;
const QUEUE_SIZE: u16 = 512;

#[test]
fn a_program_with_its_own_memory_and_rings_of_512_entries_uses_the_disk() {
    let daemon = Daemon::start();
    // Huge pages of one file each; not where a machine has its memory.
    let page = |i: u64| Dimm {
        guest: 0x1000_0000 + i * 4 * MIB,
        len: 2 * MIB,
        offset: i * 2 * MIB,
    };
    let pages: Vec<Dimm> = (0..6).map(page).collect();
    let memory = Memory::of(&pages);
    for round in 0..3 {
        visit(&daemon, &memory, &pages, round);
    }
    let events = daemon.client().events(0, None).unwrap().events;
    let seen: Vec<&str> = events
        .iter()
        .filter_map(|event| event["seen"].as_str())
        .collect();
    assert_eq!(seen, ["program"; 3]);
    daemon.end(0..QUEUES, 2);
}

fn visit(daemon: &Daemon, memory: &Memory, pages: &[Dimm], round: u64) {
    let mut frontend = Frontend::connect(daemon.socket(), QUEUES as u64).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    let wanted = VERSION_1 | FLUSH | MQ | INDIRECT | EVENT_IDX | PROTOCOL;
    frontend.set_features(offered & wanted).unwrap();
    frontend.get_protocol_features().unwrap();
    let protocol = Protocol::MQ | Protocol::CONFIG;
    frontend.set_protocol_features(protocol).unwrap();
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = frontend.get_config(0, 256, flags, &[0; 256]).unwrap();
    assert_eq!(config.len(), 256);
    // One ring in each of the last pages.
    let ring = |index: usize| {
        let base = pages[pages.len() - 1 - index].guest + index as u64 * ROOM;
        Ring::new(memory, index, QUEUE_SIZE, base).with_own_addresses(memory)
    };
    let mut rings: Vec<Ring> = (0..QUEUES).map(ring).collect();
    for ring in &rings {
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
    assert!(frontend.get_queue_num().unwrap() >= QUEUES as u64);
    for ring in &rings {
        frontend.set_vring_call(ring.index, &ring.call).unwrap();
    }
    let table = memory.own_regions();
    for count in 1..=table.len() {
        frontend.set_mem_table(&table[..count]).unwrap();
        frontend.get_features().unwrap();
    }
    for ring in &rings {
        let index = ring.index;
        frontend.set_vring_num(index, ring.size).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        let addresses = ring.addresses(memory);
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
    }
    begin(memory, &mut rings, round);
    judge(memory, &mut rings, round);
    for ring in &rings {
        let base = frontend.get_vring_base(ring.index).unwrap();
        assert_eq!(base, u32::from(ring.avail_index()));
    }
    // It takes its memory back piece by piece, with the rings stopped.
    for count in (1..table.len()).rev() {
        frontend.set_mem_table(&table[..count]).unwrap();
        frontend.get_features().unwrap();
    }
}
