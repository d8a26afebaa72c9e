//! QEMU: its reset of a device, its releases before 7.2, and its configuration space.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use snapback::control::api::{RollbackRequest, RollbackWhen, Seen};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{MIB, Memory};
use super::ring::{BLOCK, IN, Ring, begin, judge, stamp};
use super::{
    CONFIG_WCE, EVENT_IDX, FIRMWARE, PROTOCOL, SYSTEM, VERSION_1, ask_for_replies, connect,
    eventually, rings, set_up,
};

fn negotiated() -> Protocol {
    Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::INFLIGHT_SHMFD
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
}

/// GET_INFLIGHT_FD, SET_INFLIGHT_FD, FEATURES, then all rings, then all ENABLE.
fn start(frontend: &mut Frontend, memory: &Memory, rings: &[Ring], features: u64) {
    use std::os::fd::AsRawFd;
    use vhost::vhost_user::message::VhostUserInflight;
    let ask = VhostUserInflight {
        num_queues: rings.len() as u16,
        queue_size: rings.iter().map(|ring| ring.size).max().unwrap(),
        ..Default::default()
    };
    let (region, file) = frontend.get_inflight_fd(&ask).unwrap();
    frontend.set_inflight_fd(&region, file.as_raw_fd()).unwrap();
    frontend.set_features(features | PROTOCOL).unwrap();
    frontend.set_mem_table(&memory.regions()).unwrap();
    for ring in rings {
        set_up(frontend, memory, ring, 0);
    }
    for ring in rings {
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
}

fn stop(frontend: &mut Frontend, rings: &[Ring]) -> Vec<u32> {
    for ring in rings {
        frontend.set_vring_enable(ring.index, false).unwrap();
    }
    let base = |ring: &Ring| frontend.get_vring_base(ring.index).unwrap();
    rings.iter().map(base).collect()
}

/// QEMU 8.2 and later: the rings stop, RESET_DEVICE, and at the next start everything
/// anew; the in-flight region is a new one, too.
#[test]
fn a_device_that_is_reset_by_message_is_as_new() {
    let daemon = Daemon::start();
    let memory = Memory::flat(2 * MIB);
    let mut frontend = connect(&daemon.socket(), 4, negotiated());
    let mut firmware = rings(&memory, 0, &[16]);
    start(&mut frontend, &memory, &firmware, FIRMWARE);
    begin(&memory, &mut firmware, 1);
    judge(&memory, &mut firmware, 1);
    stop(&mut frontend, &firmware);
    frontend.reset_device().unwrap();
    // Other sizes than before: nothing is left of the region and the ring.
    let mut system = rings(&memory, 0, &[128, 256, 64]);
    start(&mut frontend, &memory, &system, SYSTEM);
    begin(&memory, &mut system, 2);
    judge(&memory, &mut system, 2);
    stop(&mut frontend, &system);
    frontend.reset_device().unwrap();
    // A front end that asks for no region this time.
    let mut again = rings(&memory, 0, &[512, 16]);
    frontend.set_features(FIRMWARE | PROTOCOL).unwrap();
    for ring in &again {
        set_up(&mut frontend, &memory, ring, 0);
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
    begin(&memory, &mut again, 3);
    judge(&memory, &mut again, 3);
    let kinds = daemon.events();
    let starts: Vec<&str> = kinds
        .iter()
        .map(String::as_str)
        .filter(|k| matches!(*k, "guest-reset" | "driver-started"))
        .collect();
    assert_eq!(starts, ["guest-reset", "driver-started", "guest-reset"]);
    drop(frontend);
    daemon.end(0..2, 3);
}

/// A driver that did nothing and begins again looks like a pause, unless it is told.
#[test]
fn a_reset_by_message_shows_a_driver_that_begins_where_nothing_else_does() {
    for told in [false, true] {
        let daemon = Daemon::start();
        let memory = Memory::flat(MIB);
        let mut frontend = connect(&daemon.socket(), 1, negotiated());
        let idle = rings(&memory, 0, &[64]);
        start(&mut frontend, &memory, &idle, SYSTEM);
        assert_eq!(stop(&mut frontend, &idle), [0]);
        if told {
            frontend.reset_device().unwrap();
        }
        let mut idle = rings(&memory, 0, &[64]);
        start(&mut frontend, &memory, &idle, SYSTEM);
        begin(&memory, &mut idle, 1);
        judge(&memory, &mut idle, 1);
        let starts = |kind: &String| kind == "driver-started" || kind == "guest-reset";
        let count = daemon.events().iter().filter(|k| starts(k)).count();
        assert_eq!(count, 1 + usize::from(told));
    }
}

/// A rollback that waits for the machine's reset: the message shows a driver that begins,
/// and only a firmware that the machine was reset.
#[test]
fn a_reset_by_message_alone_rolls_nothing_back() {
    let mut daemon = Daemon::with_disk();
    let snapshot = "name=s,cow=s.cow,size=32M";
    daemon.serve(&["--socket-path", "a.sock", "--snapshot", snapshot]);
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 1, negotiated());
    let mut system = rings(&memory, 0, &[64]);
    start(&mut frontend, &memory, &system, SYSTEM);
    begin(&memory, &mut system, 1);
    judge(&memory, &mut system, 1);
    let request = RollbackRequest {
        snapshot: "s".into(),
        when: RollbackWhen::AtReset,
        ..Default::default()
    };
    daemon.client().rollback(&request).unwrap();
    for _ in 0..2 {
        stop(&mut frontend, &system);
        frontend.reset_device().unwrap();
        system = rings(&memory, 0, &[64]);
        start(&mut frontend, &memory, &system, SYSTEM);
        assert_eq!(system[0].run(&memory, IN, 0, &[]), stamp(1, 0));
        let pending = daemon.status().rollback.unwrap();
        assert_eq!(pending.seen, Some(Seen::DriverRestart));
    }
    stop(&mut frontend, &system);
    frontend.reset_device().unwrap();
    let firmware = &mut rings(&memory, 0, &[16])[0];
    start(
        &mut frontend,
        &memory,
        std::slice::from_ref(firmware),
        FIRMWARE,
    );
    assert_eq!(firmware.run(&memory, IN, 0, &[]), vec![0x5a; BLOCK]);
    assert!(daemon.status().rollback.is_none());
}

/// While requests are under way: those are finished first.
#[test]
fn a_reset_by_message_waits_for_what_is_under_way() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 2, negotiated());
    ask_for_replies(&mut frontend);
    let mut busy = rings(&memory, 0, &[64, 32]);
    start(&mut frontend, &memory, &busy, SYSTEM);
    // What was never seen is not there after a reset; what was taken is done.
    begin(&memory, &mut busy, 5);
    eventually("a request is done", || busy[0].used_index(&memory) > 0);
    frontend.reset_device().unwrap();
    let done: Vec<u16> = busy.iter().map(|ring| ring.used_index(&memory)).collect();
    let mut fresh = rings(&memory, 4 * super::ring::ROOM, &[64, 32]);
    start(&mut frontend, &memory, &fresh, SYSTEM);
    begin(&memory, &mut fresh, 6);
    judge(&memory, &mut fresh, 6);
    let later: Vec<u16> = busy.iter().map(|ring| ring.used_index(&memory)).collect();
    assert_eq!(done, later, "nothing is written to the old rings");
    drop(frontend);
    daemon.end(0..2, 6);
}

/// QEMU before 7.2 negotiates protocol features and does not acknowledge the bit for
/// them in SET_FEATURES: its rings are enabled from the start.
#[test]
fn a_front_end_that_does_not_acknowledge_protocol_features_needs_no_enable() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 2, negotiated());
    ask_for_replies(&mut frontend);
    for (round, driver) in [FIRMWARE, SYSTEM, SYSTEM].into_iter().enumerate() {
        frontend.set_features(driver).unwrap();
        frontend.set_mem_table(&memory.regions()).unwrap();
        let mut rings = rings(
            &memory,
            0,
            if driver == FIRMWARE {
                &[16]
            } else {
                &[128, 64]
            },
        );
        for ring in &rings {
            set_up(&mut frontend, &memory, ring, 0);
        }
        begin(&memory, &mut rings, round as u64);
        judge(&memory, &mut rings, round as u64);
        // A refusal reaches it as an answer, and the connection goes on.
        let flags = VhostUserConfigFlags::WRITABLE;
        assert!(frontend.set_config(0, flags, &[1]).is_err());
        begin(&memory, &mut rings, 10);
        judge(&memory, &mut rings, 10);
        for ring in &rings {
            assert_eq!(
                frontend.get_vring_base(ring.index).unwrap(),
                u32::from(ring.avail_index())
            );
        }
    }
    drop(frontend);
    daemon.end(0..2, 10);
}

/// Kicked while it is not enabled: nothing happens before, and everything after.
#[test]
fn a_ring_that_is_kicked_before_it_is_enabled_waits_and_loses_nothing() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 1, Protocol::MQ | Protocol::CONFIG);
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    frontend.set_mem_table(&memory.regions()).unwrap();
    let mut rings = rings(&memory, 0, &[32]);
    begin(&memory, &mut rings, 1);
    set_up(&mut frontend, &memory, &rings[0], 0);
    rings[0].kick();
    frontend.get_features().unwrap();
    assert_eq!(rings[0].used_index(&memory), 0);
    frontend.set_vring_enable(0, true).unwrap();
    judge(&memory, &mut rings, 1);
    drop(frontend);
    daemon.end(0..1, 1);
}

/// What no front end may ask for is named in the log. The front end gets the refusal, and the
/// connection ends, because both sides would go by different features.
#[test]
fn features_that_are_not_offered_are_refused_by_name() {
    let daemon = Daemon::start();
    for (bit, name) in [
        (33, "ACCESS_PLATFORM"),
        (35, "IN_ORDER"),
        (38, "NOTIFICATION_DATA"),
        (40, "RING_RESET"),
        (50, "bit 50"),
    ] {
        let mut frontend = connect(&daemon.socket(), 1, negotiated());
        let offered = frontend.get_features().unwrap();
        ask_for_replies(&mut frontend);
        assert_eq!(offered & 1 << bit, 0, "{name}");
        let asked = SYSTEM | PROTOCOL | 1 << bit;
        assert!(frontend.set_features(asked).is_err(), "{name}");
        let want = format!("features {name} were not offered");
        eventually(&want, || daemon.log().contains(&want));
        assert!(
            frontend.get_features().is_err(),
            "{name}: the connection goes on"
        );
    }
    let frontend = connect(&daemon.socket(), 1, negotiated());
    frontend
        .set_features(SYSTEM | PROTOCOL | EVENT_IDX | CONFIG_WCE)
        .unwrap();
}

/// Such as SET_STATUS without STATUS: it ends the connection, with its name, and the view
/// is served on.
#[test]
fn messages_that_were_not_negotiated_end_the_connection_by_name() {
    let daemon = Daemon::start();
    for (request, name) in [
        (39_u32, "SET_STATUS (message 39)"),
        (40, "GET_STATUS (message 40)"),
        (34, "RESET_DEVICE (message 34)"),
        (999, "message 999, which is unknown"),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let body: &[u8] = if request == 39 { &[0; 8] } else { &[] };
        let header = [request, 1, body.len() as u32].map(u32::to_ne_bytes);
        stream.write_all(header.as_flattened()).unwrap();
        stream.write_all(body).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "{name}");
        let want = format!("connection closed: {name}");
        eventually(&want, || daemon.log().contains(&want));
    }
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 1, negotiated());
    let mut rings = rings(&memory, 0, &[128]);
    start(&mut frontend, &memory, &rings, SYSTEM);
    begin(&memory, &mut rings, 1);
    judge(&memory, &mut rings, 1);
}

/// From 0, and from 0x100 as cloud-hypervisor up to v50 reads it; in any size.
#[test]
fn the_configuration_is_read_from_both_offsets_in_any_size() {
    let daemon = Daemon::start();
    let mut frontend = connect(&daemon.socket(), 1, negotiated());
    frontend.set_features(VERSION_1 | PROTOCOL).unwrap();
    let mut get = |offset: u32, len: u32| {
        let flags = VhostUserConfigFlags::WRITABLE;
        let room = vec![0; len as usize];
        let (answer, bytes) = frontend.get_config(offset, len, flags, &room).unwrap();
        assert_eq!((answer.offset, answer.size), (offset, len));
        bytes
    };
    let whole = get(0, 60);
    assert_eq!(whole[..8], (16_u64 << 20 >> 9).to_le_bytes());
    for len in [1, 3, 8, 24, 36, 37, 59, 60, 61, 96, 256] {
        for base in [0, 0x100] {
            let bytes = get(base, len);
            let known = (len as usize).min(60);
            assert_eq!(bytes[..known], whole[..known], "{len} bytes from {base:#x}");
            assert!(bytes[known..].iter().all(|b| *b == 0));
        }
    }
    for offset in 1..60 {
        assert_eq!(get(offset, 1)[0], whole[offset as usize]);
        assert_eq!(get(0x100 + offset, 1)[0], whole[offset as usize]);
    }
}

/// SeaBIOS and iPXE: one ring of 16 entries without EVENT_IDX, one request at a time, no
/// interrupts; again and again around the ring.
#[test]
fn a_firmware_reads_one_block_at_a_time_before_its_system_starts() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let mut frontend = connect(&daemon.socket(), 4, negotiated());
    for boot in 0..3_u64 {
        let firmware = &mut rings(&memory, 0, &[16])[0];
        firmware.without_interrupts(&memory);
        start(
            &mut frontend,
            &memory,
            std::slice::from_ref(firmware),
            VERSION_1,
        );
        let want = if boot == 0 {
            vec![0x5a; BLOCK]
        } else {
            stamp(boot - 1, 0)
        };
        for _ in 0..50 {
            assert_eq!(firmware.run(&memory, IN, 0, &[]), want);
        }
        // The start and a new descriptor are signalled once.
        let signals = firmware.call.read().unwrap_or(0);
        assert!(signals <= 2, "it asked for no interrupts: {signals}");
        stop(&mut frontend, std::slice::from_ref(firmware));
        frontend.reset_device().unwrap();
        let mut system = rings(&memory, 0, &[256, 256]);
        start(&mut frontend, &memory, &system, SYSTEM | EVENT_IDX);
        begin(&memory, &mut system, boot);
        judge(&memory, &mut system, boot);
        stop(&mut frontend, &system);
        frontend.reset_device().unwrap();
    }
    drop(frontend);
    daemon.end(0..2, 2);
}
