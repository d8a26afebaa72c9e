//! Front ends that leave.

use vhost::VhostBackend;

use super::steps::{STEPS, Stage};
use crate::client::{PARTS, Session};
use crate::raw::{Raw, SIZE};
use crate::world::{View, World};

fn is_served(world: &World, view: View) {
    let mut session = Session::open(world, view, 0, SIZE);
    session.prove();
}

#[test]
fn a_front_end_may_leave_after_any_step_and_the_next_one_is_served() {
    let world = World::new();
    for view in View::ALL {
        for done in 0..=STEPS.len() {
            let mut stage = Stage::new(&world, view);
            stage.advance(done);
            drop(stage);
            is_served(&world, view);
        }
        Session::open(&world, view, 0, SIZE).compare();
        world.check();
    }
    world.end();
}

/// SET_VRING_NUM, cut off anywhere.
#[test]
fn a_front_end_may_leave_in_the_middle_of_a_message_and_the_next_one_is_served() {
    let world = World::new();
    let message = [8_u32, 1, 8, 0, 16].map(u32::to_ne_bytes).concat();
    for view in View::ALL {
        for len in 0..message.len() {
            let raw = Raw::bare(&world.path(view), &PARTS);
            raw.frontend.set_owner().unwrap();
            raw.send_bytes(&message[..len]);
            drop(raw);
            if len % 5 == 0 {
                is_served(&world, view);
            }
        }
        world.check();
    }
    world.end();
}

#[test]
fn a_thousand_front_ends_that_come_and_leave_cost_nothing_that_lasts() {
    let world = World::new();
    for view in View::ALL {
        let come_and_leave = |count: usize| {
            for round in 0..count {
                let mut stage = Stage::new(&world, view);
                stage.advance(round % (STEPS.len() + 1));
            }
            is_served(&world, view);
        };
        // Until the history of events is full.
        come_and_leave(300);
        let before = world.usage(view);
        come_and_leave(250);
        world.has_not_grown(view, &before);
        world.check();
    }
    world.end();
}
