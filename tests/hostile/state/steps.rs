//! The steps of a session, one message after the other.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};

use crate::client::{IN, PARTS, PLAIN, SECTOR_OF_CASES};
use crate::raw::{Raw, Ring};
use crate::world::{View, World};

/// A front end on its way.
pub struct Stage {
    pub raw: Raw,
    ring: Ring,
}

impl Stage {
    pub fn new(world: &World, view: View) -> Self {
        let raw = Raw::bare(&world.path(view), &PARTS);
        let ring = raw.ring(0);
        Self { raw, ring }
    }

    /// The first `count` steps.
    pub fn advance(&mut self, count: usize) {
        for (_, step) in &STEPS[..count] {
            step(self);
        }
    }

    /// All steps, with a new ring.
    pub fn complete(&mut self) {
        self.ring = self.raw.ring(0);
        self.advance(STEPS.len());
    }
}

type Step = (&'static str, fn(&mut Stage));

/// With the name of the message.
pub const STEPS: [Step; 19] = [
    ("SET_OWNER", |s| s.raw.frontend.set_owner().unwrap()),
    ("GET_FEATURES", |s| {
        s.raw.frontend.get_features().unwrap();
    }),
    ("SET_FEATURES", |s| {
        s.raw.frontend.set_features(PLAIN).unwrap()
    }),
    ("SET_PROTOCOL_FEATURES", |s| {
        s.raw.negotiate(VhostUserProtocolFeatures::empty());
        s.raw
            .frontend
            .set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }),
    ("GET_QUEUE_NUM", |s| {
        s.raw.frontend.get_queue_num().unwrap();
    }),
    ("GET_CONFIG", |s| {
        let flags = VhostUserConfigFlags::empty();
        s.raw.frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    }),
    ("SET_FEATURES again", |s| {
        s.raw.frontend.set_features(PLAIN).unwrap()
    }),
    ("SET_MEM_TABLE", |s| s.raw.set_memory()),
    ("SET_VRING_NUM", |s| {
        s.raw.frontend.set_vring_num(0, s.ring.size).unwrap()
    }),
    ("SET_VRING_BASE", |s| {
        s.raw.frontend.set_vring_base(0, 0).unwrap()
    }),
    ("SET_VRING_ADDR", |s| {
        let addresses = s.raw.addresses(&s.ring);
        s.raw.frontend.set_vring_addr(0, &addresses).unwrap();
    }),
    ("SET_VRING_CALL", |s| {
        s.raw.frontend.set_vring_call(0, &s.ring.call).unwrap()
    }),
    ("SET_VRING_ERR", |s| {
        s.raw.frontend.set_vring_err(0, &s.ring.err).unwrap()
    }),
    ("SET_VRING_KICK", |s| {
        s.raw.frontend.set_vring_kick(0, &s.ring.kick).unwrap()
    }),
    ("SET_VRING_ENABLE", |s| s.raw.enable(&s.ring, true)),
    ("a request", |s| {
        s.raw.request(&s.ring, 0, IN, SECTOR_OF_CASES, 512);
        s.raw.run(&mut s.ring, &[0]);
        assert_eq!(s.raw.status(&s.ring, 0), 0);
    }),
    ("requests without an end", |s| {
        s.raw.request(&s.ring, 0, IN, SECTOR_OF_CASES, 512);
        s.raw.offer(&mut s.ring, &[0; 12]);
        s.ring.kick.write(1).unwrap();
    }),
    ("SET_VRING_ENABLE 0", |s| s.raw.enable(&s.ring, false)),
    ("GET_VRING_BASE", |s| {
        let base = s.raw.frontend.get_vring_base(0).unwrap();
        assert_eq!(base, u32::from(s.raw.used_index(&s.ring)));
    }),
];
