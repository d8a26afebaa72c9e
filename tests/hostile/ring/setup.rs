//! Rings that are set up in ways that make no sense, and kicks at the wrong time.

use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vm_memory::{Bytes, GuestAddress};

use crate::client::{HIGH, HIGH_LEN, IN, SECTOR_OF_CASES, Session, on_all_views};
use crate::raw::{INDIRECT, MEMORY, Raw, Ring, SIZE, WRITE, signalled};

/// VHOST_USER_SET_VRING_NUM, VHOST_USER_SET_VRING_ENABLE
const SET_NUM: u32 = 8;
const SET_ENABLE: u32 = 18;

fn read(raw: &Raw, ring: &mut Ring) {
    raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
    raw.run(ring, &[0]);
    assert_eq!(raw.status(ring, 0), 0);
}

/// Nothing is served.
fn is_still(raw: &Raw, ring: &mut Ring) {
    let before = raw.used_index(ring);
    raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
    raw.offer(ring, &[0]);
    ring.kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(raw.used_index(ring), before);
}

#[test]
fn a_ring_of_a_size_that_no_ring_has_does_not_run_until_it_has_another_one() {
    on_all_views(0, |session, _| {
        let sizes = [0, 3, 17, 1000, 1023, 1025, 2048, 32_768, 65_535];
        // And more than the protocol's library sends.
        for size in sizes.into_iter().chain([1 << 16, (1 << 16) + 16, u32::MAX]) {
            let payload = [0, size].map(u32::to_ne_bytes).concat();
            assert_eq!(session.raw.message(SET_NUM, &payload), Some(1), "{size}");
            assert!(signalled(&session.ring.err, 20_000), "{size}");
            is_still(&session.raw, &mut session.ring);
            session.reset();
            session.prove();
        }
    });
}

/// A request needs two descriptors, or one with a table.
#[test]
fn a_ring_of_one_and_of_two_entries_works() {
    const FLUSH: u32 = 4;
    on_all_views(INDIRECT, |session, _| {
        for size in [1, 2, 1] {
            session.stop();
            session.ring = session.raw.start_of(0, size);
            let (raw, ring) = (&session.raw, &mut session.ring);
            let header = raw.header(ring, 0);
            for _ in 0..5 {
                raw.memory.write_obj(FLUSH, GuestAddress(header)).unwrap();
                raw.memory
                    .write_obj(0xff_u8, GuestAddress(header + 16))
                    .unwrap();
                let parts = [(header, 16, 0), (header + 16, 1, WRITE)];
                if size == 1 {
                    raw.chain_at(HIGH, &parts);
                    raw.descriptor(ring, 0, (HIGH, 32, 4, 0));
                } else {
                    raw.chain(ring, 0, &parts);
                }
                raw.run(ring, &[0]);
                assert_eq!(raw.status(ring, 0), 0);
            }
        }
        session.stop();
        session.ring = session.raw.start(0);
    });
}

/// Where the three parts of a ring may not be: descriptor table, available and used ring.
fn places(raw: &Raw, ring: &Ring) -> Vec<(String, [u64; 3])> {
    let right = [ring.base, ring.base + 0x4000, ring.base + 0x5000].map(|at| raw.host(at));
    let ends = [
        raw.host(0) + MEMORY as u64,
        raw.host(HIGH) + HIGH_LEN as u64,
    ];
    // In the front end's addresses one part may follow the other.
    let [hole, end] = [ends[0].min(ends[1]), ends[0].max(ends[1])];
    let mut places = Vec::new();
    for part in 0..3 {
        let mut with = |what: &str, address: u64| {
            let mut addresses = right;
            addresses[part] = address;
            places.push((format!("part {part} {what}"), addresses));
        };
        with("unaligned", right[part] + 1);
        with("at address 0", 0);
        with("before the end of memory", end - 16);
        with("at the end of memory", end);
        with("before the end of another part", hole - 16);
        with("outside every address space", u64::MAX - 15);
        with("at an address of the guest", ring.base);
    }
    places
}

#[test]
fn a_ring_whose_parts_are_unaligned_or_outside_memory_does_not_start_until_they_are_mended() {
    on_all_views(0, |session, _| {
        for (name, [table, avail, used]) in places(&session.raw, &session.ring) {
            session.stop();
            let mut ring = session.raw.ring(0);
            let mut addresses = session.raw.addresses(&ring);
            addresses.desc_table_addr = table;
            addresses.avail_ring_addr = avail;
            addresses.used_ring_addr = used;
            let frontend = &mut session.raw.frontend;
            frontend.set_vring_num(0, SIZE).unwrap();
            frontend.set_vring_base(0, 0).unwrap();
            frontend.set_vring_err(0, &ring.err).unwrap();
            let mut refused = frontend.set_vring_addr(0, &addresses).is_err();
            // The ring is still enabled: the kick starts it, if anything.
            refused |= frontend.set_vring_kick(0, &ring.kick).is_err();
            assert!(refused, "{:?}: {name}", session.view);
            assert!(signalled(&ring.err, 20_000), "{:?}: {name}", session.view);
            is_still(&session.raw, &mut ring);
            session.stop();
            let ring = session.raw.ring(0);
            session.raw.set_up_again(&ring, 0);
            session.raw.enable(&ring, true);
            session.ring = ring;
            session.prove();
        }
    });
}

/// As QEMU sends them: it learns nothing of a ring that cannot be used, and the guest's next
/// reset repairs it.
#[test]
fn a_front_end_that_wants_no_answers_keeps_its_connection_whatever_ring_its_guest_sets_up() {
    on_all_views(0, |session, _| {
        let places = places(&session.raw, &session.ring);
        for (name, [table, avail, used]) in places {
            session.stop();
            let ring = session.raw.ring(0);
            session
                .raw
                .frontend
                .set_hdr_flags(VhostUserHeaderFlag::empty());
            let mut addresses = session.raw.addresses(&ring);
            addresses.desc_table_addr = table;
            addresses.avail_ring_addr = avail;
            addresses.used_ring_addr = used;
            let frontend = &mut session.raw.frontend;
            frontend.set_vring_num(0, SIZE).unwrap();
            frontend.set_vring_base(0, 0).unwrap();
            frontend.set_vring_err(0, &ring.err).unwrap();
            frontend.set_vring_addr(0, &addresses).unwrap();
            frontend.set_vring_kick(0, &ring.kick).unwrap();
            frontend.set_vring_enable(0, true).unwrap();
            frontend.set_vring_err(0, &ring.err).unwrap();
            frontend.set_vring_base(0, 0).unwrap();
            assert!(signalled(&ring.err, 20_000), "{:?}: {name}", session.view);
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            session.reset();
            session.prove();
        }
        session.stop();
        let ring = session.raw.ring(0);
        session
            .raw
            .frontend
            .set_hdr_flags(VhostUserHeaderFlag::empty());
        session.raw.set_up_again(&ring, 0);
        session.raw.frontend.set_vring_num(0, 3).unwrap();
        assert!(signalled(&ring.err, 20_000), "{:?}", session.view);
        session
            .raw
            .frontend
            .set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        session.reset();
    });
}

/// The guest spoils its own ring, and nothing else.
#[test]
fn a_ring_whose_parts_overlap_costs_that_ring_only() {
    on_all_views(0, |session, _| {
        let base = session.ring.base;
        for [table, avail, used] in [
            [0, 0, 0],
            [0, 0x10, 0x4000],
            [0x4000, 0x4000, 0x5000],
            [0, 0x5000, 0x5000],
            [0x5000, 0x4000, 0x5000],
            [0, 0x4000, 0x4000 + 4],
        ] {
            session.stop();
            let mut ring = session.raw.ring(0);
            let mut addresses = session.raw.addresses(&ring);
            addresses.desc_table_addr = session.raw.host(base + table);
            addresses.avail_ring_addr = session.raw.host(base + avail);
            addresses.used_ring_addr = session.raw.host(base + used);
            session.raw.set_up_again(&ring, 0);
            session.raw.frontend.set_vring_addr(0, &addresses).unwrap();
            session.raw.enable(&ring, true);
            session.raw.request(&ring, 0, IN, SECTOR_OF_CASES, 512);
            for _ in 0..8 {
                session.raw.offer(&mut ring, &[0; 2]);
                ring.kick.write(1).unwrap();
            }
            session.reset();
            session.prove();
        }
    });
}

#[test]
fn a_ring_that_is_enabled_without_addresses_waits_for_them() {
    on_all_views(0, |session, _| {
        // Queues that were never set up.
        for index in [2, 3] {
            session.raw.frontend.set_vring_enable(index, true).unwrap();
            let mut ring = session.raw.ring(index);
            session
                .raw
                .frontend
                .set_vring_kick(index, &ring.kick)
                .unwrap();
            is_still(&session.raw, &mut ring);
            session.raw.frontend.set_vring_num(index, SIZE).unwrap();
            is_still(&session.raw, &mut ring);
            let addresses = session.raw.addresses(&ring);
            session
                .raw
                .frontend
                .set_vring_addr(index, &addresses)
                .unwrap();
            session.raw.wait_used(&ring, 2);
            read(&session.raw, &mut ring);
        }
        let last = session.raw.frontend.get_queue_num().unwrap() as usize;
        for index in [last as u32, u32::MAX] {
            let payload = [index, 1].map(u32::to_ne_bytes).concat();
            assert_eq!(
                session.raw.message(SET_ENABLE, &payload),
                Some(1),
                "{index}"
            );
        }
    });
}

/// Before the driver is ready, during each step of the set-up, after a stop, and while it
/// is disabled.
#[test]
fn kicks_at_any_time_of_the_set_up_start_nothing_and_lose_nothing() {
    on_all_views(0, |session, _| {
        session.stop();
        let old = std::mem::replace(&mut session.ring, session.raw.ring(0));
        old.kick.write(1).unwrap();
        let (raw, ring) = (&mut session.raw, &mut session.ring);
        raw.frontend.set_vring_enable(0, false).unwrap();
        let addresses = raw.addresses(ring);
        let index = ring.index;
        is_still(raw, ring);
        raw.frontend.set_vring_num(index, SIZE).unwrap();
        is_still(raw, ring);
        raw.frontend.set_vring_base(index, 0).unwrap();
        is_still(raw, ring);
        raw.frontend.set_vring_addr(index, &addresses).unwrap();
        is_still(raw, ring);
        raw.frontend.set_vring_call(index, &ring.call).unwrap();
        is_still(raw, ring);
        raw.frontend.set_vring_kick(index, &ring.kick).unwrap();
        is_still(raw, ring);
        raw.enable(ring, true);
        raw.wait_used(ring, 6);
        raw.enable(ring, false);
        is_still(raw, ring);
        raw.enable(ring, true);
        raw.wait_used(ring, 7);
        session_stop(raw);
        is_still(raw, ring);
        raw.set_up_again(ring, 7);
        raw.wait_used(ring, 8);
        raw.frontend.set_vring_err(0, &ring.err).unwrap();
    });
}

fn session_stop(raw: &Raw) {
    assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 7);
}

#[test]
fn a_storm_of_kicks_and_signals_disturbs_nobody() {
    on_all_views(0, |session: &mut Session, world| {
        let kick = session.ring.kick.try_clone().unwrap();
        let good = session.good.kick.try_clone().unwrap();
        std::thread::scope(|scope| {
            let storm = scope.spawn(move || {
                for _ in 0..20_000 {
                    kick.write(1).unwrap();
                    good.write(1).unwrap();
                }
            });
            for _ in 0..50 {
                session.prove();
            }
            storm.join().unwrap();
        });
        world.check();
    });
}
