//! The cases of QEMU's own test of vhost-user-blk, made anew on every kind of view. Its
//! server takes one range in a discard; this one takes more.

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

use super::block::{
    DISCARD, F_DISCARD, F_WRITE_ZEROES, FREE, ROOM, WRITE_ZEROES, bytes, fill, header, put,
    put_indirect, range,
};
use super::client::{IN, OUT, PARTS, PLAIN};
use super::raw::{EVENT_IDX, INDIRECT, Raw, Ring, WRITE, signalled};
use super::world::{SECTORS, View, World};

const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_ENABLE: u32 = 18;

/// A guest with one ring on `view`.
fn guest(world: &World, view: View, features: u64) -> (Raw, Ring) {
    let mut raw = Raw::with_memory(&world.path(view), PLAIN | features, &PARTS);
    raw.set_memory();
    let ring = raw.start(0);
    (raw, ring)
}

fn carry_out(raw: &Raw, ring: &mut Ring) -> u8 {
    raw.run(ring, &[0]);
    raw.status(ring, 0)
}

/// Runs `test` on each view that can be written.
fn on_writable(features: u64, test: impl Fn(&Raw, &mut Ring, View)) {
    let world = World::new();
    for view in [View::Origin, View::Snapshot, View::Merge] {
        let (raw, mut ring) = guest(&world, view, features);
        test(&raw, &mut ring, view);
    }
    world.end();
}

/// Writes a pattern and reads it, and a read-only view refuses.
#[test]
fn basic() {
    on_writable(0, |raw, ring, view| {
        fill(raw, ROOM, 0x54, 512);
        put(raw, ring, OUT, FREE, &[(ROOM, 512, 0)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        fill(raw, ROOM, 0, 512);
        put(raw, ring, IN, FREE, &[(ROOM, 512, WRITE)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        assert_eq!(bytes(raw, ROOM, 512), [0x54; 512], "{view:?}");
    });
    let world = World::new();
    let (raw, mut ring) = guest(&world, View::ReadOnly, 0);
    put(&raw, &ring, OUT, FREE, &[(ROOM, 512, 0)]);
    assert_eq!(carry_out(&raw, &mut ring), 1);
    world.end();
}

/// Header and data in one descriptor, status in the other; and data and status.
#[test]
fn any_layout() {
    on_writable(0, |raw, ring, view| {
        let from = header(raw, ring, OUT, FREE);
        let whole = [bytes(raw, from, 16), vec![0x33; 512]].concat();
        raw.memory.write_slice(&whole, GuestAddress(ROOM)).unwrap();
        raw.chain(ring, 0, &[(ROOM, 528, 0), (from + 16, 1, WRITE)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        header(raw, ring, IN, FREE);
        fill(raw, ROOM, 0xff, 513);
        raw.chain(ring, 0, &[(from, 16, 0), (ROOM, 513, WRITE)]);
        raw.run(ring, &[0]);
        let data = bytes(raw, ROOM, 513);
        assert_eq!(data[..512], [0x33; 512], "{view:?}");
        assert_eq!(data[512], 0, "{view:?}");
    });
}

#[test]
fn indirect() {
    on_writable(INDIRECT, |raw, ring, view| {
        fill(raw, ROOM, 0x71, 512);
        put_indirect(raw, ring, OUT, FREE, &[(ROOM, 512, 0)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        fill(raw, ROOM, 0, 512);
        put_indirect(raw, ring, IN, FREE, &[(ROOM, 512, WRITE)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        assert_eq!(bytes(raw, ROOM, 512), [0x71; 512], "{view:?}");
    });
}

/// An interrupt comes with the request at which the driver wants one, and not before.
#[test]
fn used_event() {
    on_writable(EVENT_IDX, |raw, ring, view| {
        // The signal with which the device begins is over when it has answered.
        raw.set_used_event(ring, 0x7000);
        put(raw, ring, IN, FREE, &[(ROOM, 512, WRITE)]);
        assert_eq!(carry_out(raw, ring), 0, "{view:?}");
        for round in 0..10_u16 {
            let done = raw.used_index(ring);
            while signalled(&ring.call, 0) {}
            // Wanted behind the second request.
            raw.set_used_event(ring, done.wrapping_add(1));
            put(raw, ring, IN, FREE, &[(ROOM, 512, WRITE)]);
            assert_eq!(carry_out(raw, ring), 0, "{view:?}");
            assert!(!signalled(&ring.call, 20), "{view:?}: too early in {round}");
            assert_eq!(carry_out(raw, ring), 0, "{view:?}");
            assert!(signalled(&ring.call, 20_000), "{view:?}: none in {round}");
        }
    });
}

/// The capacity and limits, whole and field by field.
#[test]
fn config() {
    let world = World::new();
    for view in View::ALL {
        let (mut raw, _ring) = guest(&world, view, 0);
        let flags = VhostUserConfigFlags::empty();
        let mut read = |offset, len: u32| {
            let buffer = vec![0; len as usize];
            raw.frontend
                .get_config(offset, len, flags, &buffer)
                .unwrap()
                .1
        };
        let whole = read(0, 60);
        assert_eq!(whole[..8], SECTORS.to_le_bytes(), "{view:?}");
        for (offset, len) in [
            (0, 8),
            (12, 4),
            (20, 4),
            (24, 8),
            (32, 1),
            (34, 2),
            (36, 24),
        ] {
            let field = read(offset, len);
            let from = offset as usize;
            assert_eq!(
                field,
                whole[from..from + len as usize],
                "{view:?}: {offset}"
            );
        }
        // What newer front ends know, and this device does not have, is zero.
        assert_eq!(read(60, 36), [0; 36]);
    }
    world.end();
}

/// Messages about a queue that does not exist are refused, and nothing else happens.
#[test]
fn nxvirtq() {
    let world = World::new();
    for view in View::ALL {
        let (mut raw, mut ring) = guest(&world, view, 0);
        let count = raw.frontend.get_queue_num().unwrap() as u32;
        let addresses = raw.addresses(&raw.ring(1));
        let parts = [
            addresses.desc_table_addr,
            addresses.used_ring_addr,
            addresses.avail_ring_addr,
            0,
        ];
        // By hand, because the front end's library knows the number of queues. (A message
        // with a descriptor has 8 bits for the queue, and all 256 exist.)
        for queue in [count, count + 1, u32::MAX] {
            let words = |second: u32| [queue, second].map(u32::to_ne_bytes).concat();
            let place = [words(0), parts.map(u64::to_ne_bytes).concat()].concat();
            for (request, payload) in [
                (SET_VRING_NUM, words(16)),
                (SET_VRING_ADDR, place),
                (SET_VRING_BASE, words(0)),
                (SET_VRING_ENABLE, words(1)),
            ] {
                let answer = raw.message(request, &payload);
                assert!(
                    answer.is_some_and(|answer| answer != 0),
                    "{view:?}: {request}"
                );
            }
        }
        put(&raw, &ring, IN, FREE, &[(ROOM, 512, WRITE)]);
        assert_eq!(carry_out(&raw, &mut ring), 0, "{view:?}");
    }
    world.end();
}

/// A device that is unplugged and plugged in again is a front end that leaves and another.
#[test]
fn hotplug() {
    let world = World::new();
    for view in View::ALL {
        for _ in 0..20 {
            let (raw, mut ring) = guest(&world, view, 0);
            put(&raw, &ring, IN, FREE, &[(ROOM, 512, WRITE)]);
            assert_eq!(carry_out(&raw, &mut ring), 0, "{view:?}");
        }
    }
    world.end();
}

#[test]
fn eight_queues() {
    let world = World::new();
    for view in View::ALL {
        let (mut raw, first) = guest(&world, view, 0);
        assert!(raw.frontend.get_queue_num().unwrap() >= 8);
        let mut rings = vec![first];
        for queue in 1..8 {
            rings.push(raw.start(queue));
        }
        for ring in &mut rings {
            put(&raw, ring, IN, FREE, &[(ROOM, 512, WRITE)]);
            assert_eq!(carry_out(&raw, ring), 0, "{view:?}");
        }
    }
    world.end();
}

/// Ranges of DISCARD and WRITE_ZEROES, right and wrong.
#[test]
fn discard_and_write_zeroes() {
    let features = F_DISCARD | F_WRITE_ZEROES;
    let world = World::new();
    for view in [View::Origin, View::Merge] {
        let (raw, mut ring) = guest(&world, view, features);
        for kind in [DISCARD, WRITE_ZEROES] {
            for (list, status) in [
                (vec![(FREE, 8, 0)], 0),
                (vec![(FREE, 8, 0), (FREE + 8, 8, 0)], 0),
                (vec![(FREE, 8, 0); 33], 2),
                (vec![(FREE, u32::MAX, 0)], 1),
                (vec![(SECTORS, 1, 0)], 1),
                (vec![(FREE, 8, u32::MAX)], 2),
                (vec![(FREE, 8, 1)], if kind == DISCARD { 2 } else { 0 }),
            ] {
                let ranges = list.iter().flat_map(|r| range(r.0, r.1, r.2));
                let ranges: Vec<u8> = ranges.collect();
                raw.memory.write_slice(&ranges, GuestAddress(ROOM)).unwrap();
                put(&raw, &ring, kind, 0, &[(ROOM, ranges.len() as u32, 0)]);
                assert_eq!(
                    carry_out(&raw, &mut ring),
                    status,
                    "{view:?}: {kind} {list:?}"
                );
            }
        }
        // The last one wrote zeroes.
        put(&raw, &ring, IN, FREE, &[(ROOM, 4096, WRITE)]);
        assert_eq!(carry_out(&raw, &mut ring), 0);
        assert_eq!(bytes(&raw, ROOM, 4096), [0; 4096], "{view:?}");
    }
    world.end();
}
