//! A machine whose firmware and system use the disk one after the other, by raw
//! messages as QEMU sends them.

use std::path::{Path, PathBuf};

use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

use crate::raw::{FLUSH, INDIRECT, PROTOCOL, Raw, Ring, USED, VERSION_1};

/// Few features, as SeaBIOS asks for.
pub const FIRMWARE: u64 = VERSION_1 | PROTOCOL;
pub const SYSTEM: u64 = VERSION_1 | PROTOCOL | FLUSH | INDIRECT;

const IN: u32 = 0;
/// Of the first ring.
const USED_INDEX: GuestAddress = GuestAddress(USED + 2);

pub struct Machine {
    pub socket: PathBuf,
    raw: Raw,
    ring: Ring,
    /// Where the ring stopped; `None` while it runs.
    stopped: Option<u16>,
    features: u64,
}

impl Machine {
    /// Switched on: a new connection whose rings start at 0.
    pub fn power_on(socket: &Path, features: u64) -> Self {
        let mut raw = Raw::connect(socket, features);
        let ring = raw.start(0);
        Self {
            socket: socket.to_owned(),
            raw,
            ring,
            stopped: None,
            features,
        }
    }

    /// The rings stop, as on any reset of the device and when the VM is stopped.
    pub fn stop(&mut self) {
        if self.stopped.is_none() {
            self.raw.enable(&self.ring, false);
            let base = self.raw.frontend.get_vring_base(0).unwrap();
            self.stopped = Some(u16::try_from(base).unwrap());
        }
    }

    /// The rings go on where they stopped.
    pub fn go_on(&mut self) {
        if let Some(base) = self.stopped.take() {
            self.raw.frontend.set_features(self.features).unwrap();
            self.raw.set_up_again(&self.ring, base);
            self.raw.enable(&self.ring, true);
        }
    }

    /// A driver with these features begins.
    pub fn begin(&mut self, features: u64) {
        self.stop();
        self.raw.frontend.set_features(features).unwrap();
        self.features = features;
        self.ring = self.raw.start(0);
        self.stopped = None;
    }

    /// The daemon was restarted: the front end connects again and goes on. Its
    /// guest notices nothing.
    pub fn reconnect(&mut self) {
        let mut raw = Raw::connect(&self.socket, self.features);
        let mut ring = raw.ring(0);
        // As many requests as were done before: none of them is under way.
        for _ in 0..3 {
            raw.request(&ring, 0, IN, 0, 512);
            raw.offer(&mut ring, &[0]);
        }
        raw.memory.write_obj(3_u16, USED_INDEX).unwrap();
        raw.set_up_again(&ring, 3);
        raw.enable(&ring, true);
        self.raw = raw;
        self.ring = ring;
        self.stopped = None;
    }

    /// The first sector.
    pub fn read(&mut self) -> Vec<u8> {
        self.raw.request(&self.ring, 0, IN, 0, 512);
        self.raw.run(&mut self.ring, &[0]);
        assert_eq!(self.raw.status(&self.ring, 0), 0);
        let mut data = vec![0; 512];
        let at = GuestAddress(self.raw.data(&self.ring, 0));
        self.raw.memory.read_slice(&mut data, at).unwrap();
        data
    }
}
