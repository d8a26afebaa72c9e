//! What changes or is shared while requests are under way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

use super::super::client::{IN, OUT, PARTS, PLAIN, SECTOR_OF_CASES};
use super::super::common::stamps;
use super::super::common::volume::Volume;
use super::super::raw::{CONFIG_WCE, Raw, Ring, WRITE};
use super::super::world::{View, World};
use super::{FREE, ROOM, bytes, header};

/// The place of the write cache's byte in the configuration space.
const WRITEBACK: u32 = 32;

fn connect(world: &World, view: View, features: u64) -> Raw {
    let mut raw = Raw::with_memory(&world.path(view), PLAIN | features, &PARTS);
    raw.set_memory();
    raw
}

/// Offers the requests of all rings, and waits for them.
fn at_once(raw: &Raw, rings: &mut [&mut Ring]) {
    let mut want = Vec::new();
    for ring in rings.iter_mut() {
        want.push(raw.used_index(ring).wrapping_add(1));
        raw.offer(ring, &[0]);
    }
    for ring in rings.iter() {
        ring.kick.write(1).unwrap();
    }
    for (ring, want) in rings.iter().zip(want) {
        raw.wait_used(ring, want);
    }
}

/// One header, one buffer, one status byte, in the rings of two queues.
#[test]
fn the_same_descriptors_may_be_on_two_queues_at_once() {
    let world = World::new();
    for view in View::ALL {
        let mut raw = connect(&world, view, 0);
        let (mut first, mut second) = (raw.start(0), raw.start(1));
        for (kind, sector) in [(IN, SECTOR_OF_CASES), (OUT, FREE), (IN, FREE)] {
            let refused = kind == OUT && view == View::ReadOnly;
            for _ in 0..100 {
                let header = header(&raw, &first, kind, sector);
                let flags = if kind == IN { WRITE } else { 0 };
                let parts = [
                    (header, 16, 0),
                    (ROOM, 4096, flags),
                    (header + 16, 1, WRITE),
                ];
                raw.chain(&first, 0, &parts);
                raw.chain(&second, 0, &parts);
                at_once(&raw, &mut [&mut first, &mut second]);
                assert_eq!(raw.status(&first, 0), u8::from(refused), "{view:?}");
            }
            let data = bytes(&raw, ROOM, 4096);
            if sector == SECTOR_OF_CASES {
                let expected: Vec<u64> = (sector..sector + 8).collect();
                stamps::check("read by two queues", sector, &data, &expected);
            }
        }
    }
    world.end();
}

#[test]
fn queues_of_one_device_may_have_different_sizes() {
    let world = World::new();
    for view in View::ALL {
        let mut raw = connect(&world, view, 0);
        let mut rings = [
            raw.start_of(0, 4),
            raw.start_of(1, 1024),
            raw.start_of(2, 16),
        ];
        // Often enough that the indices pass the ends of all rings.
        for _ in 0..1100 {
            for ring in &rings {
                raw.request(ring, 0, IN, SECTOR_OF_CASES, 4096);
            }
            let [first, second, third] = &mut rings;
            at_once(&raw, &mut [first, second, third]);
            for ring in &rings {
                assert_eq!(raw.status(ring, 0), 0);
            }
        }
        for ring in &rings {
            let data = bytes(&raw, raw.data(ring, 0), 4096);
            let expected: Vec<u64> = (SECTOR_OF_CASES..SECTOR_OF_CASES + 8).collect();
            stamps::check("each ring", SECTOR_OF_CASES, &data, &expected);
        }
    }
    world.end();
}

/// `tests/daemon/write_cache.rs` shows that writes are durable when they have to be.
#[test]
fn the_write_cache_may_be_turned_on_and_off_under_load() {
    let world = World::new();
    for view in View::ALL {
        let mut raw = connect(&world, view, CONFIG_WCE);
        let mut rings = [raw.start(0), raw.start(1)];
        let ends = AtomicBool::new(false);
        let mut frontend = raw.frontend.clone();
        std::thread::scope(|scope| {
            let toggler = scope.spawn(|| {
                let flags = VhostUserConfigFlags::WRITABLE;
                let mut on = true;
                while !ends.load(Ordering::Acquire) {
                    on = !on;
                    let byte = [u8::from(on)];
                    frontend.set_config(WRITEBACK, flags, &byte).unwrap();
                    let read = frontend.get_config(WRITEBACK, 1, flags, &[0]).unwrap();
                    assert_eq!(read.1, byte);
                }
                frontend.set_config(WRITEBACK, flags, &[1]).unwrap();
            });
            for round in 0..300_u64 {
                for ring in &rings {
                    let data = raw.data(ring, 0);
                    let mut block = [0; 4096];
                    stamps::fill(&mut block, stamps::stamp(9, round));
                    raw.memory.write_slice(&block, GuestAddress(data)).unwrap();
                    let sector = FREE + 8 * ring.index as u64;
                    raw.request(ring, 0, OUT, sector, 4096);
                }
                let [first, second] = &mut rings;
                at_once(&raw, &mut [first, second]);
                for ring in &rings {
                    let refused = view == View::ReadOnly;
                    assert_eq!(raw.status(ring, 0), u8::from(refused), "{view:?}");
                }
            }
            ends.store(true, Ordering::Release);
            toggler.join().unwrap();
        });
    }
    world.end();
}

/// Nothing but the byte of the write cache can be written, whatever the front end says.
#[test]
fn the_configuration_space_is_read_only_but_for_one_byte() {
    let world = World::new();
    for view in View::ALL {
        let mut raw = connect(&world, view, CONFIG_WCE);
        let flags = VhostUserConfigFlags::WRITABLE;
        let read = |raw: &mut Raw| raw.frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1;
        let before = read(&mut raw);
        for (offset, len) in [
            (0, 8),
            (0, 60),
            (20, 4),
            (31, 1),
            (31, 2),
            (32, 2),
            (33, 1),
            (60, 1),
        ] {
            let data = vec![0x55; len];
            let set = raw.frontend.set_config(offset, flags, &data);
            assert!(set.is_err(), "{view:?}: {offset}+{len}");
        }
        assert_eq!(read(&mut raw), before, "{view:?}");
    }
    world.end();
}

/// A capacity that is read while the disk grows is one that it had.
#[test]
fn a_configuration_that_is_read_while_it_changes_is_never_torn() {
    const FIRST: u64 = 2048;
    const STEPS: u64 = 40;
    let mut volume = Volume::new(FIRST);
    volume.start(&["--socket-path", "origin.sock"]);
    let mut raw = Raw::connect(&volume.path("origin.sock"), PLAIN);
    let mut ring = raw.start(0);
    let ends = AtomicBool::new(false);
    let mut frontend = raw.frontend.clone();
    let (seen, reads) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = vec![FIRST];
            let mut reads = 0_u64;
            while !ends.load(Ordering::Acquire) {
                let flags = VhostUserConfigFlags::empty();
                let config = frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1;
                let capacity = u64::from_le_bytes(config[..8].try_into().unwrap());
                reads += 1;
                if seen.last() != Some(&capacity) {
                    seen.push(capacity);
                }
            }
            (seen, reads)
        });
        let start = Instant::now();
        for step in 1..=STEPS {
            let size = (FIRST + 8 * step) * 512;
            volume.client().resize(Some(size)).unwrap();
            // The new part can be used, and what lies behind it cannot.
            for (sector, status) in [(FIRST + 8 * step - 8, 0), (FIRST + 8 * step, 1)] {
                raw.request(&ring, 0, IN, sector, 4096);
                raw.run(&mut ring, &[0]);
                assert_eq!(raw.status(&ring, 0), status);
            }
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        ends.store(true, Ordering::Release);
        reader.join().unwrap()
    });
    assert!(reads > 0);
    assert!(seen.is_sorted(), "{seen:?}");
    for capacity in seen {
        let grown = capacity - FIRST;
        assert!(grown <= 8 * STEPS && grown.is_multiple_of(8), "{capacity}");
    }
}
