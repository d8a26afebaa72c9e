//! Resets at any time, in any number.

use std::sync::atomic::{AtomicBool, Ordering};

use vhost::VhostBackend;

use super::steps::{STEPS, Stage};
use crate::client::{IN, SECTOR_OF_CASES, Session, on_all_views};
use crate::raw::SIZE;
use crate::world::{View, World};

/// The resets that a front end has: it stops all rings, or it resets the owner.
const RESETS: [fn(&mut Stage); 2] = [
    |stage| {
        for index in 0..4 {
            stage.raw.frontend.get_vring_base(index).unwrap();
        }
    },
    |stage| stage.raw.frontend.reset_owner().unwrap(),
];

#[test]
fn a_reset_between_any_two_steps_is_followed_by_a_session_as_ever() {
    let world = World::new();
    for view in View::ALL {
        for reset in RESETS {
            for done in 0..=STEPS.len() {
                let mut stage = Stage::new(&world, view);
                stage.advance(done);
                // As a machine that boots twice.
                for _ in 0..2 {
                    reset(&mut stage);
                    stage.complete();
                }
            }
        }
        world.check();
    }
    world.end();
}

#[test]
fn two_thousand_resets_back_to_back_cost_nothing_that_lasts() {
    let world = World::new();
    for view in View::ALL {
        let mut session = Session::open(&world, view, 0, SIZE);
        let mut resets = |count: usize| {
            for round in 0..count {
                match round % 4 {
                    0 => {
                        session.raw.frontend.reset_owner().unwrap();
                        session.restart();
                    }
                    _ => {
                        session.stop();
                        session.ring = session.raw.start(0);
                    }
                }
            }
            session.prove();
        };
        // Until what the daemon keeps of the newest resets and what an allocator keeps have
        // their greatest size. After 50 of them the daemon was still filling its histories,
        // and the test took that for growth without end.
        resets(1000);
        let before = world.usage(view);
        resets(2000);
        world.has_not_grown(view, &before);
        session.compare();
        drop(session);
        world.check();
    }
    world.end();
}

/// Every request that was taken is back when the reset is answered, and every other one is
/// carried out when the queue goes on.
#[test]
fn resets_during_requests_and_kicks_lose_no_request() {
    on_all_views(0, |session, _| {
        let kick = session.ring.kick.try_clone().unwrap();
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ends = &ends;
            let storm = scope.spawn(move || {
                while !ends.load(Ordering::Acquire) {
                    // Full, if nobody reads it while the queue is stopped.
                    let _ = kick.write(1);
                    std::thread::yield_now();
                }
            });
            for round in 0..200 {
                let (raw, ring) = (&mut session.raw, &mut session.ring);
                for head in [0, 3, 6, 9] {
                    raw.request(ring, head, IN, SECTOR_OF_CASES * u64::from(head), 8192);
                }
                let heads = &[0, 3, 6, 9][..round % 4 + 1];
                raw.offer(ring, heads);
                ring.kick.write(1).unwrap();
                let base = raw.frontend.get_vring_base(0).unwrap() as u16;
                assert_eq!(base, raw.used_index(ring), "round {round}");
                raw.set_up_again(ring, base);
                raw.enable(ring, true);
                raw.wait_used(ring, ring.avail);
                for head in heads {
                    assert_eq!(raw.status(ring, *head), 0);
                }
            }
            ends.store(true, Ordering::Release);
            storm.join().unwrap();
        });
    });
}

#[test]
fn a_queue_may_go_on_after_a_reset_without_new_addresses() {
    on_all_views(0, |session, _| {
        for _ in 0..3 {
            let base = session.stop();
            let (raw, ring) = (&mut session.raw, &mut session.ring);
            raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
            raw.offer(ring, &[0]);
            raw.frontend.set_vring_base(0, base as u16).unwrap();
            raw.frontend.set_vring_kick(0, &ring.kick).unwrap();
            raw.frontend.set_vring_call(0, &ring.call).unwrap();
            raw.enable(ring, true);
            raw.wait_used(ring, base as u16 + 1);
            session.prove();
        }
    });
}

#[test]
fn a_reset_may_change_the_size_of_a_queue() {
    on_all_views(0, |session, _| {
        for size in [64, 4, 1024, 8, 16] {
            session.stop();
            session.ring = session.raw.start_of(0, size);
            session.prove();
            session.raw.frontend.reset_owner().unwrap();
            session.restart();
            session.prove();
        }
    });
}

/// Firmware and drivers send it at the end of a session.
#[test]
fn a_reset_of_the_owner_stops_all_queues_until_they_are_started_again() {
    on_all_views(0, |session, _| {
        session.raw.frontend.reset_owner().unwrap();
        session.raw.frontend.reset_owner().unwrap();
        let Session {
            raw, ring, good, ..
        } = session;
        for ring in [&mut *ring, &mut *good] {
            let before = raw.used_index(ring);
            raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
            raw.offer(ring, &[0]);
            ring.kick.write(1).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert_eq!(raw.used_index(ring), before);
        }
        session.restart();
        session.prove();
    });
}
