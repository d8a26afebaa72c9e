//! Messages of front ends: memory, settings, starts, pauses and resets.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::raw::{CONFIG_WCE, FLUSH, INDIRECT, MEMORY, PROTOCOL, Raw, VERSION_1};
use crate::{SECTORS, Served, serve};

const OUT: u32 = 1;

const PLAIN: u64 = VERSION_1 | PROTOCOL | FLUSH;

fn connect(served: &Served) -> Raw {
    Raw::connect(&served.path, PLAIN)
}

#[test]
fn the_memory_table_changes_under_load() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    for round in 0..20 {
        for head in [0, 3, 6, 9] {
            raw.request(&ring, head, OUT, u64::from(head), 4096);
        }
        let want = raw.used_index(&ring) + 4;
        raw.offer(&mut ring, &[0, 3, 6, 9]);
        ring.kick.write(1).unwrap();
        match round % 3 {
            0 => raw.set_memory(),
            1 => {
                let far = VhostUserMemoryRegionInfo {
                    guest_phys_addr: 1 << 32,
                    userspace_addr: 1 << 40,
                    ..raw.region()
                };
                raw.frontend.add_mem_region(&far).unwrap();
                raw.frontend.remove_mem_region(&far).unwrap();
                assert!(raw.frontend.remove_mem_region(&far).is_err(), "it is gone");
            }
            _ => {}
        }
        raw.wait_used(&ring, want);
    }
    assert_eq!(
        served.call_log.read(),
        ["attached", "firmware"],
        "the guest did not notice"
    );
}

#[test]
fn memory_that_is_not_there_is_refused_and_the_connection_goes_on() {
    let served = serve();
    let mut raw = Raw::connect_only(&served.path, PLAIN);
    let good = raw.region();
    let pipe = rustix::pipe::pipe().unwrap();
    let cases = [
        (
            "past the end of the file",
            VhostUserMemoryRegionInfo {
                memory_size: MEMORY as u64 + 4096,
                ..good
            },
        ),
        (
            "from beyond the end",
            VhostUserMemoryRegionInfo {
                mmap_offset: MEMORY as u64,
                ..good
            },
        ),
        (
            "odd offset",
            VhostUserMemoryRegionInfo {
                mmap_offset: 12,
                memory_size: 4096,
                ..good
            },
        ),
        (
            "a pipe",
            VhostUserMemoryRegionInfo {
                mmap_handle: pipe.0.as_raw_fd(),
                ..good
            },
        ),
    ];
    for (name, region) in cases {
        assert!(raw.frontend.set_mem_table(&[region]).is_err(), "{name}");
        assert!(raw.frontend.add_mem_region(&region).is_err(), "{name}");
    }
    assert!(
        raw.frontend.set_mem_table(&[good, good]).is_err(),
        "overlap"
    );
    raw.set_memory();
    assert!(raw.frontend.add_mem_region(&good).is_err(), "overlap");
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
}

#[test]
fn settings_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let served = serve();
    let mut raw = connect(&served);
    for size in [0, 3, 1000, 2048] {
        assert!(raw.frontend.set_vring_num(0, size).is_err(), "{size}");
    }
    assert!(
        raw.frontend.set_vring_num(8, 128).is_err(),
        "the queue does not exist"
    );
    let ring = raw.ring(0);
    let mut outside = raw.addresses(&ring);
    outside.used_ring_addr = 0x1000;
    assert!(raw.frontend.set_vring_addr(0, &outside).is_err());
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
}

#[test]
fn a_ring_at_the_very_end_of_memory_is_refused() {
    let served = serve();
    let mut raw = connect(&served);
    let ring = raw.ring(0);
    let mut addresses = raw.addresses(&ring);
    addresses.desc_table_addr = raw.host(MEMORY as u64 - 16);
    raw.set_up_again(&ring, 0);
    raw.frontend.set_vring_addr(0, &addresses).unwrap();
    assert!(raw.frontend.set_vring_enable(0, true).is_err());
    raw.frontend
        .set_vring_addr(0, &raw.addresses(&ring))
        .unwrap();
    assert_eq!(
        served.volume.ports.load(Ordering::SeqCst),
        1,
        "it runs once it fits"
    );
}

#[test]
fn without_a_disk_no_ring_starts_until_there_is_one() {
    let served = serve();
    let mut raw = connect(&served);
    served.volume.broken.store(1, Ordering::SeqCst);
    let mut ring = raw.set_up(0, 0);
    assert!(raw.frontend.set_vring_enable(0, true).is_err());
    served.volume.broken.store(0, Ordering::SeqCst);
    raw.enable(&ring, true);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
}

#[test]
fn requests_made_before_the_ring_is_enabled_are_served_without_a_kick() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.set_up(0, 0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(raw.used_index(&ring), 0, "not enabled");
    ring.kick.read().unwrap();
    raw.enable(&ring, true);
    raw.wait_used(&ring, 1);
    raw.enable(&ring, false);
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(raw.used_index(&ring), 1, "disabled");
    raw.enable(&ring, true);
    raw.wait_used(&ring, 2);
}

#[test]
fn without_protocol_features_rings_start_at_once() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, VERSION_1 | FLUSH);
    let mut ring = raw.set_up(0, 0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 1);
}

#[test]
fn a_pause_is_resumed_and_a_reset_is_told_with_everything_drained() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
    // Pause and resume.
    raw.enable(&ring, false);
    assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 1);
    raw.set_up_again(&ring, 1);
    raw.enable(&ring, true);
    raw.run(&mut ring, &[0]);
    assert_eq!(served.call_log.read(), ["attached", "firmware", "resume"]);
    // Reset: two rings, of which the new driver starts one after the other.
    raw.enable(&ring, false);
    assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 2);
    let mut ring = raw.start(0);
    let mut second = raw.start(1);
    for ring in [&mut ring, &mut second] {
        raw.request(ring, 0, OUT, 0, 512);
        raw.run(ring, &[0]);
    }
    let lines = served.call_log.lines.lock().unwrap().clone();
    let firmware = ("firmware", 0);
    assert_eq!(lines, [("attached", 0), firmware, ("resume", 0), firmware]);
}

/// A front end that sets up and enables one ring after the other, of which the
/// first had been idle: only the second shows that a driver begins.
#[test]
fn a_driver_that_begins_is_noticed_when_a_later_ring_shows_it() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN | INDIRECT);
    let idle = raw.start(0);
    let mut busy = raw.start(1);
    raw.request(&busy, 0, OUT, 0, 512);
    raw.run(&mut busy, &[0]);
    for (ring, position) in [(&idle, 0), (&busy, 1)] {
        raw.enable(ring, false);
        assert_eq!(raw.frontend.get_vring_base(ring.index).unwrap(), position);
    }
    let mut first = raw.start(0);
    raw.request(&first, 0, OUT, 0, 512);
    raw.run(&mut first, &[0]);
    let mut second = raw.start(1);
    // Both serve the new driver, the first from where it was.
    for ring in [&mut first, &mut second] {
        raw.request(ring, 0, OUT, 0, 512);
        raw.run(ring, &[0]);
    }
    let lines = served.call_log.lines.lock().unwrap().clone();
    let expected = ["attached", "unclear", "resume", "driver restart"];
    assert_eq!(lines, expected.map(|line| (line, 0)));
}

#[test]
fn the_configuration_space_is_read_in_any_window_and_the_cache_can_be_turned_off() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN | CONFIG_WCE);
    let flags = VhostUserConfigFlags::empty();
    let mut get = |offset: u32, len: usize| {
        let (_, bytes) = raw
            .frontend
            .get_config(offset, len as u32, flags, &vec![0; len])
            .unwrap();
        assert_eq!(bytes.len(), len);
        bytes
    };
    assert_eq!(get(0, 8), SECTORS.to_le_bytes());
    assert_eq!(get(0x100, 8), SECTORS.to_le_bytes());
    assert_eq!(get(34, 3)[..2], 4_u16.to_le_bytes());
    assert_eq!(get(0, 60)[32], 1);
    assert_eq!(get(200, 56), [0; 56]);
    assert!(
        raw.frontend
            .set_config(0, VhostUserConfigFlags::WRITABLE, &[0; 8])
            .is_err()
    );
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(served.volume.durable.load(Ordering::SeqCst), 0);
    raw.frontend
        .set_config(32, VhostUserConfigFlags::WRITABLE, &[0])
        .unwrap();
    raw.run(&mut ring, &[0]);
    assert_eq!(served.volume.durable.load(Ordering::SeqCst), 1);
    // A front end that reconnects remembers what it set.
    drop(raw);
    let mut raw = Raw::connect(&served.path, PLAIN | CONFIG_WCE);
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(served.volume.durable.load(Ordering::SeqCst), 2);
}
