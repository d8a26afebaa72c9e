//! Rings that no honest driver would make, and those that all make.

use std::sync::atomic::Ordering;

use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

use crate::raw::{
    DATA, EVENT_IDX, FLUSH, INDIRECT, MEMORY, NEXT, PROTOCOL, Raw, Ring, SIZE, VERSION_1, WRITE,
    signalled,
};
use crate::{SECTORS, Served, eventually, serve};

const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;

const PLAIN: u64 = VERSION_1 | PROTOCOL | FLUSH;

fn connect(served: &Served) -> Raw {
    Raw::connect(&served.path, PLAIN)
}

#[test]
fn a_request_returns_its_head_with_status_and_length() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    raw.request(&ring, 3, OUT, 5, 1024);
    raw.memory
        .write_slice(&[7; 1024], GuestAddress(raw.data(&ring, 3)))
        .unwrap();
    raw.run(&mut ring, &[3]);
    assert_eq!((raw.used(&ring, 0), raw.status(&ring, 3)), ((3, 1), 0));
    raw.request(&ring, 6, IN, 5, 1024);
    raw.run(&mut ring, &[6]);
    assert_eq!((raw.used(&ring, 1), raw.status(&ring, 6)), ((6, 1025), 0));
    let mut read = [0; 1024];
    raw.memory
        .read_slice(&mut read, GuestAddress(raw.data(&ring, 6)))
        .unwrap();
    assert_eq!(read, [7; 1024]);
}

#[test]
fn get_id_fills_the_room_there_is() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    let id = b"snapback-test\0\0\0\0\0\0\0";
    for (at, (room, written)) in [(20, 20), (7, 7), (30, 20)].into_iter().enumerate() {
        raw.memory
            .write_slice(&[0xee; 32], GuestAddress(raw.data(&ring, 0)))
            .unwrap();
        raw.request(&ring, 0, GET_ID, 0, room);
        raw.run(&mut ring, &[0]);
        assert_eq!(raw.used(&ring, at as u16), (0, written as u32 + 1));
        let mut there = [0; 32];
        raw.memory
            .read_slice(&mut there, GuestAddress(raw.data(&ring, 0)))
            .unwrap();
        assert_eq!(there[..written], id[..written]);
        assert_eq!(there[written], 0xee, "nothing beyond");
    }
}

#[test]
fn bad_chains_get_their_heads_back_and_the_ring_lives_on() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN | INDIRECT);
    let mut ring = raw.start(0);
    let header = raw.header(&ring, 0);
    // Each puts a broken chain at head 0; the used length that is expected.
    type Breakage<'a> = (&'a str, u32, &'a dyn Fn(&Raw, &Ring));
    let breakages: &[Breakage<'_>] = &[
        ("loop", 0, &|raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT, 0))
        }),
        ("next out of range", 0, &|raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, NEXT, SIZE))
        }),
        ("no status", 0, &|raw, ring| {
            raw.descriptor(ring, 1, (DATA, 512, 0, 0))
        }),
        ("status outside memory", 0, &|raw, ring| {
            raw.descriptor(ring, 2, (MEMORY as u64, 1, WRITE, 0))
        }),
        ("empty indirect table", 0, &|raw, ring| {
            raw.descriptor(ring, 0, (DATA, 0, 4, 0))
        }),
        ("header outside memory", 1, &|raw, ring| {
            raw.descriptor(ring, 0, (MEMORY as u64, 16, NEXT, 1))
        }),
        ("data outside memory", 1, &|raw, ring| {
            raw.descriptor(ring, 1, (MEMORY as u64 - 512, 1024, NEXT, 2))
        }),
        ("data beyond the address space", 1, &|raw, ring| {
            raw.descriptor(ring, 1, (u64::MAX - 100, 512, NEXT, 2))
        }),
        ("half a sector", 1, &|raw, ring| {
            raw.descriptor(ring, 1, (DATA, 256, NEXT, 2))
        }),
        ("beyond the end", 1, &|raw, _| {
            raw.memory
                .write_obj(SECTORS, GuestAddress(header + 8))
                .unwrap()
        }),
        ("sector overflow", 1, &|raw, _| {
            raw.memory
                .write_obj(u64::MAX >> 9, GuestAddress(header + 8))
                .unwrap()
        }),
    ];
    for (name, len, breakage) in breakages {
        let at = raw.used_index(&ring);
        raw.request(&ring, 0, OUT, 0, 512);
        breakage(&raw, &ring);
        raw.request(&ring, 8, OUT, 0, 512);
        raw.run(&mut ring, &[0, 8]);
        let mut back = [raw.used(&ring, at), raw.used(&ring, at + 1)];
        back.sort_unstable();
        assert_eq!(back, [(0, *len), (8, 1)], "{name}");
        assert_eq!(raw.status(&ring, 8), 0, "{name}");
        assert_eq!(
            raw.status(&ring, 0),
            if *len == 0 { 0xff } else { 1 },
            "{name}"
        );
    }
}

#[test]
fn a_broken_ring_is_reported_and_others_go_on() {
    let served = serve();
    let mut raw = connect(&served);
    let mut good = raw.start(1);
    for jump in [SIZE + 1, 0x8000, 0xffff] {
        let bad = raw.start(0);
        raw.request(&bad, 0, OUT, 0, 512);
        raw.set_avail(&bad, jump);
        bad.kick.write(1).unwrap();
        assert!(signalled(&bad.err, 5000), "jump to {jump}");
        assert_eq!(raw.used_index(&bad), 0);
        raw.request(&good, 0, OUT, 0, 512);
        raw.run(&mut good, &[0]);
        // It can be stopped and started again.
        assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 0);
    }
    let mut again = raw.start(0);
    raw.request(&again, 0, OUT, 0, 512);
    raw.run(&mut again, &[0]);
    let out_of_range = SIZE;
    raw.offer(&mut again, &[out_of_range]);
    again.kick.write(1).unwrap();
    assert!(signalled(&again.err, 5000), "a head outside the table");
}

#[test]
fn no_more_requests_are_taken_than_the_ring_holds() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    served.volume.held.store(1, Ordering::SeqCst);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.offer(&mut ring, &[0; SIZE as usize]);
    ring.kick.write(1).unwrap();
    let mut submitted = 0;
    eventually("all are with the disk", || {
        submitted += served.volume.devices.take_log().len();
        submitted == usize::from(SIZE)
    });
    // The same head once more, though all are under way.
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    assert!(signalled(&ring.err, 5000));
    served.volume.held.store(0, Ordering::SeqCst);
    raw.wait_used(&ring, SIZE);
}

#[test]
fn stopping_a_ring_waits_for_what_it_took_and_tells_where_it_stopped() {
    let served = serve();
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    served.volume.held.store(1, Ordering::SeqCst);
    for head in [0, 3, 6, 9] {
        raw.request(&ring, head, OUT, u64::from(head), 512);
    }
    raw.offer(&mut ring, &[0, 3, 6, 9]);
    ring.kick.write(1).unwrap();
    let mut submitted = 0;
    eventually("all are with the disk", || {
        submitted += served.volume.devices.take_log().len();
        submitted == 4
    });
    let memory = raw.memory.clone();
    let stop = std::thread::spawn(move || {
        let base = raw.frontend.get_vring_base(0).unwrap();
        let used = raw.used_index(&ring);
        (raw, ring, base, used)
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!stop.is_finished());
    served.volume.held.store(0, Ordering::SeqCst);
    let (_raw, _ring, base, used) = stop.join().unwrap();
    assert_eq!((base, used), (4, 4));
    drop(memory);
}

#[test]
fn a_started_ring_and_a_new_call_descriptor_are_signalled_once() {
    let served = serve();
    let mut raw = connect(&served);
    let ring = raw.start(0);
    assert!(signalled(&ring.call, 5000));
    let other = raw.ring(7);
    raw.frontend.set_vring_call(0, &other.call).unwrap();
    assert!(signalled(&other.call, 5000));
    assert!(!signalled(&other.call, 20));
}

#[test]
fn the_driver_is_signalled_only_when_it_asked_to_be() {
    let served = serve();
    for event_idx in [false, true] {
        let features = if event_idx { PLAIN | EVENT_IDX } else { PLAIN };
        let mut raw = Raw::connect(&served.path, features);
        let mut ring = raw.start(0);
        assert!(signalled(&ring.call, 5000));
        raw.request(&ring, 0, OUT, 0, 512);
        if event_idx {
            raw.set_used_event(&ring, 2);
        } else {
            raw.set_avail_flags(&ring, 1);
        }
        raw.run(&mut ring, &[0]);
        raw.run(&mut ring, &[0]);
        assert!(!signalled(&ring.call, 30), "event_idx {event_idx}");
        raw.set_avail_flags(&ring, 0);
        raw.run(&mut ring, &[0]);
        assert!(signalled(&ring.call, 5000), "event_idx {event_idx}");
    }
}

/// It kicks only when it is asked to, and waits for signals only; the indices wrap.
#[test]
fn a_driver_that_keeps_to_event_idx_is_never_left_waiting() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN | EVENT_IDX);
    let mut ring = raw.start_at(0, 65_000);
    for head in [0, 3, 6, 9] {
        raw.request(&ring, head, IN, 0, 512);
    }
    assert!(signalled(&ring.call, 20_000), "a ring that starts");
    for round in 0..1000_u16 {
        let heads = &[0, 3, 6, 9][..usize::from(round % 4) + 1];
        let count = heads.len() as u16;
        let used = raw.used_index(&ring);
        // For the last of them only.
        raw.set_used_event(&ring, used.wrapping_add(count - 1));
        raw.offer(&mut ring, heads);
        std::sync::atomic::fence(Ordering::SeqCst);
        // The available index is where the used index stood, and `count` ahead.
        let event = raw.avail_event(&ring);
        if (0..count).any(|n| used.wrapping_add(n) == event) {
            ring.kick.write(1).unwrap();
        }
        let wanted = used.wrapping_add(count);
        while raw.used_index(&ring) != wanted {
            assert!(signalled(&ring.call, 20_000), "round {round}: {used}");
        }
    }
    assert_eq!(raw.used_index(&ring), 65_000_u16.wrapping_add(2500));
}

#[test]
fn a_thousand_kicks_lose_no_request() {
    let served = serve();
    for features in [PLAIN, PLAIN | EVENT_IDX] {
        let mut raw = Raw::connect(&served.path, features);
        let mut ring = raw.start(0);
        raw.request(&ring, 0, IN, 0, 512);
        for round in 1..=1000_u16 {
            raw.offer(&mut ring, &[0]);
            ring.kick.write(1).unwrap();
            raw.wait_used(&ring, round);
        }
    }
}

#[test]
fn garbage_in_a_ring_costs_that_ring_only() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN | INDIRECT | EVENT_IDX);
    let mut good = raw.start(1);
    // Xorshift: the same garbage every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let mut bad = raw.start(0);
        for index in 0..SIZE {
            raw.request(&bad, 0, (random() % 12) as u32, random() % SECTORS, 512);
            let address = match random() % 4 {
                0 => random(),
                1 => MEMORY as u64 - random() % 64,
                _ => random() % MEMORY as u64,
            };
            let len = if random() % 2 == 0 {
                random() as u32
            } else {
                (random() % 4096) as u32
            };
            let next = (random() % u64::from(SIZE + 2)) as u16;
            raw.descriptor(&bad, index, (address, len, (random() % 8) as u16, next));
        }
        let heads: Vec<u16> = (0..SIZE)
            .map(|_| (random() % u64::from(SIZE)) as u16)
            .collect();
        raw.offer(&mut bad, &heads);
        if round % 5 == 0 {
            raw.set_avail(&bad, random() as u16);
        }
        bad.kick.write(1).unwrap();
        raw.request(&good, 0, OUT, 0, 512);
        raw.run(&mut good, &[0]);
        raw.frontend.get_vring_base(0).unwrap();
    }
    assert_eq!(raw.status(&good, 0), 0);
}

/// Otherwise the kernel ends the process, with every other view.
#[test]
fn a_front_end_that_takes_its_memory_away_ends_its_session_and_nothing_else() {
    let (served, other) = (serve(), serve());
    let mut neighbour = connect(&other);
    let mut its = neighbour.start(0);
    // Where the ring itself is gone, and where only the data is.
    for left in [0, DATA] {
        let mut raw = connect(&served);
        let mut ring = raw.start(0);
        raw.request(&ring, 0, IN, 0, 512);
        raw.run(&mut ring, &[0]);
        raw.request(&ring, 0, IN, 0, 512);
        raw.file.set_len(left).unwrap();
        if left > 0 {
            raw.offer(&mut ring, &[0]);
        }
        ring.kick.write(1).unwrap();
        eventually("the session ends", || raw.frontend.get_features().is_err());
        neighbour.request(&its, 0, IN, 0, 512);
        neighbour.run(&mut its, &[0]);
        assert_eq!(neighbour.status(&its, 0), 0);
    }
    // The next front end is served as ever.
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    raw.request(&ring, 3, IN, 5, 1024);
    raw.run(&mut ring, &[3]);
    assert_eq!(raw.status(&ring, 3), 0);
}

/// What is not taken costs nothing, and nobody waits for it.
#[test]
fn requests_for_which_there_is_no_memory_wait_on_the_ring() {
    let served = serve();
    served.volume.weight.store(64 << 20, Ordering::SeqCst);
    served.volume.held.store(1, Ordering::SeqCst);
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    let heads = [0, 3, 6, 9, 12];
    for head in heads {
        raw.request(&ring, head, IN, u64::from(head), 512);
    }
    raw.offer(&mut ring, &heads);
    ring.kick.write(1).unwrap();
    let submitted = || served.volume.submitted.load(Ordering::SeqCst);
    eventually("one is taken", || submitted() == 1);
    ring.kick.write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!((submitted(), raw.used_index(&ring)), (1, 0));
    served.volume.held.store(0, Ordering::SeqCst);
    raw.wait_used(&ring, 5);
    for (at, head) in (0..).zip(heads) {
        assert_eq!(raw.used(&ring, at), (u32::from(head), 513));
        assert_eq!(raw.status(&ring, head), 0);
    }
}

/// The engine keeps a long write on one side of a new snapshot, if it is told what follows.
#[test]
fn every_part_of_a_long_request_but_the_last_one_says_that_another_follows() {
    let served = serve();
    let followed = || served.volume.followed.load(Ordering::SeqCst);
    let mut raw = connect(&served);
    let mut ring = raw.start(0);
    // Windows are 256 sectors, and end at their multiples.
    for (sector, sectors, parts) in [(100, 600, 3), (0, 256, 1), (256, 512, 2), (255, 2, 2)] {
        let before = followed();
        raw.request(&ring, 0, OUT, sector, sectors * 512);
        raw.run(&mut ring, &[0]);
        assert_eq!(raw.status(&ring, 0), 0);
        assert_eq!(followed() - before, parts - 1, "{sector}, {sectors}");
    }
}
