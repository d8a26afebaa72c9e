//! What a guest and its front end do while a request waits for the disk.

use std::time::Duration;

use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{Bytes, GuestAddress};

use crate::client::{Case, HELD, HIGH, IN, IO_ERROR, PLAIN, Session, sector};
use crate::raw::{AVAIL, EVENT_IDX, NEXT, SIZE, USED, WRITE};
use crate::world::{View, World};

/// For each view: a session with a read that the disk does not answer until it is released.
fn with_a_request_in_flight(features: u64, test: impl Fn(&mut Session, &World, u16)) {
    let world = World::with_holds();
    for view in View::ALL {
        let mut session = Session::open(&world, view, features, SIZE);
        session.prove();
        world.pause_witness(view, true);
        world.hold(view);
        let (raw, ring) = (&session.raw, &mut session.ring);
        raw.request(ring, 0, IN, HELD, 512);
        raw.descriptor(ring, 1, (HIGH, 512, NEXT | WRITE, 2));
        raw.memory
            .write_slice(&[0xee; 512], GuestAddress(HIGH))
            .unwrap();
        raw.offer(ring, &[0]);
        ring.kick.write(1).unwrap();
        world.until_held(view);
        let wanted = ring.avail;
        test(&mut session, &world, wanted);
        world.pause_witness(view, false);
        session.prove();
        session.compare();
        drop(session);
        world.check();
    }
    world.end();
}

/// The request that was in flight has ended well.
fn is_back(session: &Session, wanted: u16) {
    let (raw, ring) = (&session.raw, &session.ring);
    raw.wait_used(ring, wanted);
    assert_eq!(raw.used(ring, wanted.wrapping_sub(1)), (0, 513));
    assert_eq!((raw.status(ring, 0), sector(raw, HIGH)), (0, HELD));
}

/// A message whose answer comes only when nothing is in flight any more. Meanwhile another
/// queue goes on, if `others`, and the daemon answers to its operator.
fn waits<T: Send>(
    session: &mut Session,
    world: &World,
    others: bool,
    message: impl FnOnce(&Frontend) -> T + Send,
) -> T {
    let frontend = session.raw.frontend.clone();
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || message(&frontend));
        std::thread::sleep(Duration::from_millis(30));
        if others {
            session.prove_good();
        }
        world.answers(session.view);
        assert!(!answer.is_finished(), "{:?}", session.view);
        world.release(session.view);
        answer.join().unwrap()
    })
}

#[test]
fn a_chain_that_is_rewritten_while_it_is_in_flight_ends_as_it_was_offered() {
    with_a_request_in_flight(0, |session, world, wanted| {
        let (raw, ring) = (&session.raw, &session.ring);
        for index in 0..SIZE {
            raw.descriptor(ring, index, (u64::MAX - 7, u32::MAX, 7, u16::MAX));
        }
        let garbage = |offset: u64, len: usize| {
            let place = GuestAddress(ring.base + offset);
            raw.memory.write_slice(&vec![0xff; len], place).unwrap();
        };
        garbage(AVAIL + 4, 2 * usize::from(SIZE) + 2);
        garbage(USED + 4, 8 * usize::from(SIZE) + 2);
        let header = GuestAddress(raw.header(ring, 0));
        raw.memory.write_slice(&[0xff; 16], header).unwrap();
        session.prove_good();
        world.release(session.view);
        is_back(session, wanted);
    });
}

/// Before the device has taken it: then either of both is carried out.
pub fn rewritten_before_it_is_taken() -> Case {
    Case::ring("rewritten before it is taken", IO_ERROR, |raw, ring| {
        raw.request(ring, 0, IN, HELD, 512);
        raw.offer(ring, &[0]);
        raw.memory
            .write_obj(u64::MAX, GuestAddress(raw.header(ring, 0) + 8))
            .unwrap();
        raw.descriptor(ring, 1, (raw.data(ring, 0), 1024, NEXT | WRITE, 2));
    })
}

/// The part of the memory that holds the data of the request.
fn high(session: &Session) -> VhostUserMemoryRegionInfo {
    session.raw.regions().swap_remove(1)
}

/// A request into the part that is gone.
fn is_gone(session: &mut Session) {
    let (raw, ring) = (&session.raw, &mut session.ring);
    raw.request(ring, 0, IN, HELD, 512);
    raw.descriptor(ring, 1, (HIGH, 512, NEXT | WRITE, 2));
    raw.run(ring, &[0]);
    assert_eq!(raw.status(ring, 0), 1);
}

#[test]
fn memory_is_removed_only_when_no_request_uses_it_any_more() {
    with_a_request_in_flight(0, |session, world, wanted| {
        let high = high(session);
        waits(session, world, false, |frontend| {
            frontend.clone().remove_mem_region(&high).unwrap();
        });
        is_back(session, wanted);
        is_gone(session);
        session.raw.frontend.add_mem_region(&high).unwrap();
    });
}

#[test]
fn the_memory_table_is_replaced_only_when_no_request_uses_it_any_more() {
    with_a_request_in_flight(0, |session, world, wanted| {
        let low = session.raw.region();
        waits(session, world, false, |frontend| {
            frontend.set_mem_table(&[low]).unwrap();
        });
        is_back(session, wanted);
        is_gone(session);
        session.raw.set_memory();
    });
}

#[test]
fn a_queue_that_is_disabled_with_a_request_in_flight_finishes_it_and_goes_on() {
    with_a_request_in_flight(0, |session, world, wanted| {
        waits(session, world, true, |frontend| {
            frontend.clone().set_vring_enable(0, false).unwrap();
        });
        is_back(session, wanted);
        session.raw.enable(&session.ring, true);
    });
}

#[test]
fn a_queue_that_is_reset_with_a_request_in_flight_finishes_it_and_takes_any_size() {
    with_a_request_in_flight(0, |session, world, wanted| {
        let base = waits(session, world, true, |frontend| {
            frontend.get_vring_base(0).unwrap()
        });
        assert_eq!(base, u32::from(wanted));
        is_back(session, wanted);
        for size in [64, 4, 1024, SIZE] {
            session.ring = session.raw.start_of(0, size);
            session.prove();
            session.stop();
        }
        session.ring = session.raw.start(0);
    });
}

#[test]
fn the_features_change_only_when_no_request_is_in_flight() {
    with_a_request_in_flight(EVENT_IDX, |session, world, wanted| {
        waits(session, world, false, |frontend| {
            frontend.set_features(PLAIN).unwrap();
        });
        is_back(session, wanted);
    });
}

#[test]
fn the_owner_is_reset_only_when_no_request_is_in_flight() {
    with_a_request_in_flight(0, |session, world, wanted| {
        waits(session, world, false, |frontend| {
            frontend.reset_owner().unwrap();
        });
        is_back(session, wanted);
        session.restart();
    });
}

/// The guest's memory is let go only then, so the next front end has to wait.
#[test]
fn a_front_end_that_leaves_with_a_request_in_flight_is_followed_when_it_has_ended() {
    with_a_request_in_flight(0, |session, world, _| {
        session.raw.hang_up();
        let view = session.view;
        *session = std::thread::scope(|scope| {
            let next = scope.spawn(|| Session::open(world, view, 0, SIZE));
            std::thread::sleep(Duration::from_millis(30));
            world.answers(view);
            assert!(!next.is_finished(), "{view:?}");
            world.release(view);
            next.join().unwrap()
        });
    });
}

#[test]
fn two_queues_may_have_the_same_chain_in_flight() {
    with_a_request_in_flight(0, |session, world, wanted| {
        // The same header, data and status in both.
        let (raw, ring, good) = (&session.raw, &session.ring, &mut session.good);
        let header = raw.header(ring, 0);
        raw.chain(
            good,
            0,
            &[(header, 16, 0), (HIGH, 512, WRITE), (header + 16, 1, WRITE)],
        );
        let also = raw.used_index(good).wrapping_add(1);
        raw.offer(good, &[0]);
        good.kick.write(1).unwrap();
        world.release(session.view);
        raw.wait_used(good, also);
        is_back(session, wanted);
    });
}
