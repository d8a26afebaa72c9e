//! What the start of the rings means: whether a driver continues or a new one begins, and
//! whether the machine was reset.
//!
//! A front end does not say why it stops and starts the rings. The positions at which they
//! start again show whether the driver continues or a new one begins. The features of a
//! new driver show more: firmware asks for few of them, so a machine that boots shows a
//! start with few features before that of its operating system. A driver of an operating
//! system that begins without that was restarted (suspend and resume, unbind and bind,
//! kexec, a disk that was reset because it answered late): the guest's memory may still
//! hold data of the disk. RESET_DEVICE says that a driver begins, and no more, because the
//! restart of a driver resets the device, too.

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
};
use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Feature bits that the transport sets and clears while one driver runs.
const NOT_THE_DRIVERS: u64 =
    VhostUserVirtioFeatures::LOG_ALL.bits() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The features that a firmware's driver may ask for: SeaBIOS and OVMF use one ring in a
/// simple way. The driver of every operating system asks for further ones.
const FIRMWARES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM
    | 1 << VIRTIO_F_ANY_LAYOUT
    | 1 << VIRTIO_F_NOTIFY_ON_EMPTY
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_GEOMETRY
    | 1 << VIRTIO_BLK_F_RO
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_TOPOLOGY;

/// Features that make rings fast.
const FAST_RINGS: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What the rings' start means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The driver continues after a pause, or after a front end has reconnected.
    Resume,
    /// A firmware's driver begins: the machine was reset, or is a new one.
    Firmware,
    /// The machine whose firmware has begun to boot continues to boot.
    Boot,
    /// A system's driver begins again, without a firmware's driver before it.
    DriverRestart,
    /// A system's driver begins on a new connection, the last front end having
    /// left: a machine that boots without firmware, or a disk that was plugged in.
    NewGuest,
    /// As `NewGuest`, but it is not known how the last connection ended: the same guest
    /// may have reconnected, with a driver that was restarted meanwhile.
    Unclear,
    /// The front end drives the disk itself and has no guest: QEMU's tools do so.
    Program,
}

/// The driver that starts the rings.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    pub features: u64,
    /// The memory that the front end passes is that of its own process.
    pub is_program: bool,
}

/// Follows one connection. Must be notified of every stop of a ring and asked at every
/// start.
#[derive(Debug)]
pub struct ResetDetector {
    /// Until a ring starts: whether the last front end is known to have left.
    fresh: Option<bool>,
    /// The front end asked for a reset of the device.
    told: bool,
    /// Where each ring stopped, if it ran since the last driver began.
    positions: Vec<Option<u16>>,
    /// While the rings run or since they stopped.
    driver: Driver,
    in_firmware: bool,
    /// Rings run that started as if nothing had been done before.
    resumed: bool,
}

impl ResetDetector {
    /// `last_left`: the last front end is known to have gone by itself.
    pub fn new(rings: usize, last_left: bool) -> Self {
        Self {
            fresh: Some(last_left),
            told: false,
            positions: vec![None; rings],
            driver: Driver {
                features: 0,
                is_program: false,
            },
            in_firmware: false,
            resumed: false,
        }
    }

    /// The front end asked for a reset of the device.
    pub const fn told(&mut self) {
        self.told = true;
    }

    /// A ring that ran has stopped at the available index `position`.
    pub fn stopped(&mut self, ring: usize, position: u16) {
        if let Some(slot) = self.positions.get_mut(ring) {
            *slot = Some(position);
        }
    }

    /// The first ring starts; `rings` are all that are set up, with the
    /// available index they start at.
    pub fn starting(
        &mut self,
        rings: impl IntoIterator<Item = (usize, u16)>,
        driver: Driver,
    ) -> Start {
        let driver = Driver {
            features: driver.features & !NOT_THE_DRIVERS,
            ..driver
        };
        let mut all_at_zero = true;
        let mut one_stopped_elsewhere = false;
        let mut one_moved_to_zero = false;
        for (ring, base) in rings {
            all_at_zero &= base == 0;
            one_stopped_elsewhere |= self.stopped_elsewhere(ring);
            one_moved_to_zero |= self.stopped_elsewhere(ring) && base == 0;
        }
        let begins = if self.told {
            true
        } else if self.fresh.is_some() {
            all_at_zero
        } else if one_stopped_elsewhere {
            one_moved_to_zero
        } else {
            // All stopped at 0 and start there: there were no requests, or exactly
            // 65,536. Only the features of another driver show the difference.
            all_at_zero && self.driver.features != driver.features
        };
        let start = if begins {
            self.begins(driver)
        } else {
            Start::Resume
        };
        self.note(start, driver);
        start
    }

    /// Another ring starts while some run; `Some` if only this one shows that
    /// they belong to a driver that begins.
    pub fn another_starts(&mut self, ring: usize, base: u16) -> Option<Start> {
        let begins = self.resumed && base == 0 && self.stopped_elsewhere(ring);
        begins.then(|| {
            let driver = self.driver;
            let start = self.begins(driver);
            self.note(start, driver);
            start
        })
    }

    fn stopped_elsewhere(&self, ring: usize) -> bool {
        self.positions
            .get(ring)
            .copied()
            .flatten()
            .is_some_and(|position| position != 0)
    }

    /// The kind of a driver that begins.
    fn begins(&self, driver: Driver) -> Start {
        let same = driver.features == self.driver.features;
        match self.fresh {
            _ if driver.is_program => Start::Program,
            Some(_) if is_firmware(driver.features, None) => Start::Firmware,
            Some(true) => Start::NewGuest,
            Some(false) => Start::Unclear,
            // In the boot loader: a reset, or a firmware that opens its disks again.
            None if self.in_firmware && same => Start::Firmware,
            None if self.in_firmware => Start::Boot,
            None if same => Start::DriverRestart,
            None if is_firmware(driver.features, Some(self.driver.features)) => Start::Firmware,
            None => Start::DriverRestart,
        }
    }

    fn note(&mut self, start: Start, driver: Driver) {
        self.resumed = start == Start::Resume;
        if !self.resumed {
            self.in_firmware = start == Start::Firmware;
            // Rings that the new driver does not use keep no old position.
            self.positions.fill(None);
        }
        self.fresh = None;
        self.told = false;
        self.driver = driver;
    }
}

/// Whether a firmware's driver asked for these features, `last` being those of
/// the driver before it.
fn is_firmware(features: u64, last: Option<u64>) -> bool {
    let fewer = |last: u64| last & FAST_RINGS != 0 && features & (FAST_RINGS | !last) == 0;
    features & !FIRMWARES == 0 || last.is_some_and(fewer)
}

#[cfg(test)]
#[path = "reset_tests.rs"]
mod tests;
