//! As many queues as the messages can number.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::daemon::Daemon;
use super::memory::{MIB, Memory};
use super::ring::{begin, judge};
use super::{PROTOCOL, SYSTEM, connect, rings, set_up};

#[test]
fn a_guest_with_256_queues_of_different_sizes_uses_them_all() {
    const QUEUES: usize = 256;
    let daemon = Daemon::start();
    let memory = Memory::flat(64 * MIB);
    let features = Protocol::MQ | Protocol::CONFIG;
    let mut frontend = connect(&daemon.socket(), QUEUES, features);
    assert_eq!(frontend.get_queue_num().unwrap(), QUEUES as u64);
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    frontend.set_mem_table(&memory.regions()).unwrap();
    let sizes: Vec<u16> = (0..QUEUES).map(|i| [16, 1024, 128][i % 3]).collect();
    let mut rings = rings(&memory, 0, &sizes);
    for ring in &rings {
        set_up(&mut frontend, &memory, ring, 0);
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
    for round in 0..3 {
        begin(&memory, &mut rings, round);
        if round == 1 {
            // All of them stop, and go on with the same memory.
            frontend.set_mem_table(&memory.regions()).unwrap();
        }
        judge(&memory, &mut rings, round);
    }
    // Two of them, of different sizes, go on while the others are stopped.
    for ring in rings.drain(2..) {
        frontend.set_vring_enable(ring.index, false).unwrap();
        frontend.get_vring_base(ring.index).unwrap();
    }
    begin(&memory, &mut rings, 7);
    judge(&memory, &mut rings, 7);
    drop(frontend);
    daemon.end(0..2, 7);
}
