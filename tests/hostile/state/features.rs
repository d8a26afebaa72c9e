//! Feature bits.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::client::{IN, PARTS, PLAIN, SECTOR_OF_CASES, Session, on_all_views};
use crate::raw::{CONFIG_WCE, EVENT_IDX, FLUSH, INDIRECT, PROTOCOL, Raw, SIZE, VERSION_1};
use crate::world::{View, World};

/// VHOST_USER_SET_FEATURES, and the same for those of the protocol.
const SET_FEATURES: u32 = 2;
const SET_PROTOCOL_FEATURES: u32 = 16;
const RING_PACKED: u64 = 1 << 34;

/// On a view without a session.
fn on_all_sockets(test: impl Fn(&World, View)) {
    let world = World::new();
    for view in View::ALL {
        test(&world, view);
        let mut session = Session::open(&world, view, 0, SIZE);
        session.prove();
        session.compare();
        drop(session);
        world.check();
    }
    world.end();
}

/// A session whose request for features is refused ends, with or without an answer.
fn is_refused(world: &World, view: View, request: u32, features: u64) {
    let session = Session::open(world, view, 0, SIZE);
    let answer = session.raw.message(request, &features.to_ne_bytes());
    assert_ne!(answer, Some(0), "{view:?}: {features:#x}");
    assert!(
        session.raw.frontend.get_features().is_err(),
        "{features:#x}"
    );
}

#[test]
fn features_that_were_not_offered_end_the_session_and_the_next_one_is_served() {
    on_all_sockets(|world, view| {
        let offered = Raw::bare(&world.path(view), &PARTS)
            .frontend
            .get_features()
            .unwrap();
        // Each bit alone and as one too many, all that were not offered, and simply all.
        let others = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0);
        let others: Vec<u64> = others.collect();
        assert!(others.contains(&RING_PACKED));
        for bit in others {
            is_refused(world, view, SET_FEATURES, bit);
            is_refused(world, view, SET_FEATURES, offered | bit);
        }
        // Packed rings without VERSION_1, and with it.
        for features in [
            u64::MAX,
            !offered,
            PROTOCOL | RING_PACKED,
            PLAIN | RING_PACKED,
        ] {
            is_refused(world, view, SET_FEATURES, features);
        }
    });
}

/// Without protocol features there is no other answer.
#[test]
fn a_front_end_without_protocol_features_is_disconnected_for_each_bit_that_was_not_offered() {
    on_all_sockets(|world, view| {
        let offered = Raw::bare(&world.path(view), &PARTS)
            .frontend
            .get_features()
            .unwrap();
        for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
            let raw = Raw::bare(&world.path(view), &PARTS);
            raw.frontend.set_owner().unwrap();
            raw.send(SET_FEATURES, &(1_u64 << bit).to_ne_bytes());
            assert!(raw.frontend.get_features().is_err(), "{bit}");
        }
    });
}

#[test]
fn protocol_features_that_were_not_offered_end_the_session_and_the_next_one_is_served() {
    on_all_sockets(|world, view| {
        let mut raw = Raw::connect(&world.path(view), PLAIN);
        let offered = raw.frontend.get_protocol_features().unwrap().bits();
        drop(raw);
        let others = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0);
        for features in others.chain([u64::MAX, !offered]) {
            is_refused(world, view, SET_PROTOCOL_FEATURES, features);
        }
    });
}

/// Less than the front end had, for instance without answers; and more again.
#[test]
fn protocol_features_may_be_negotiated_again() {
    on_all_views(0, |session, _| {
        for features in [0_u64, 1 << 3] {
            session
                .raw
                .send(SET_PROTOCOL_FEATURES, &features.to_ne_bytes());
            if features != 0 {
                session.raw.acknowledged();
            }
            session.prove();
        }
        session.raw.negotiate(VhostUserProtocolFeatures::empty());
    });
}

#[test]
fn a_front_end_that_wants_no_features_is_served() {
    on_all_sockets(|world, view| {
        for features in [0, VERSION_1, FLUSH] {
            let mut raw = Raw::connect(&world.path(view), features);
            // Without protocol features a ring starts by its kick.
            let mut ring = raw.set_up(0, 0);
            raw.request(&ring, 0, IN, SECTOR_OF_CASES, 512);
            raw.run(&mut ring, &[0]);
            assert_eq!(raw.status(&ring, 0), 0);
        }
    });
}

/// Also combinations that have no sense: a write cache that can be turned off but not
/// flushed, and fast rings of a legacy device.
#[test]
fn every_feature_works_alone_and_with_all_others() {
    on_all_views(0, |session, _| {
        let offered = session.raw.frontend.get_features().unwrap();
        let bits = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit != 0);
        for features in bits.chain([offered, CONFIG_WCE, INDIRECT | EVENT_IDX, 0]) {
            session.stop();
            session
                .raw
                .frontend
                .set_features(features | PROTOCOL)
                .unwrap();
            session.ring = session.raw.start(0);
            session.prove();
        }
    });
}

#[test]
fn features_may_be_negotiated_again_and_changed_while_the_rings_run() {
    on_all_views(0, |session, _| {
        for features in [
            PLAIN,
            PLAIN,
            PLAIN | EVENT_IDX,
            PLAIN | EVENT_IDX | INDIRECT,
            PLAIN | INDIRECT,
            PROTOCOL,
            PROTOCOL | CONFIG_WCE,
            PLAIN | EVENT_IDX,
            PLAIN,
        ] {
            session.raw.frontend.set_features(features).unwrap();
            session.prove();
        }
    });
}

#[test]
fn a_reset_may_be_followed_by_fewer_features_and_by_more() {
    on_all_views(EVENT_IDX | INDIRECT, |session, _| {
        for features in [
            PLAIN,
            PROTOCOL,
            PLAIN | EVENT_IDX | INDIRECT | CONFIG_WCE,
            VERSION_1 | PROTOCOL,
            PLAIN | EVENT_IDX,
        ] {
            session.raw.frontend.get_vring_base(1).unwrap();
            session.stop();
            session.raw.frontend.set_features(features).unwrap();
            session.restart();
            session.prove();
        }
    });
}
