//! Telling a device reset from a pause, by where the rings start again.
//!
//! A front end does not say why it stops the rings. A paused guest's rings start
//! again where they stopped; after a reset the new driver's rings start at 0. A
//! new connection whose rings start at 0 is a new guest; one whose rings start
//! elsewhere carries an old guest on (the daemon was restarted, or the guest
//! migrated here).

use vhost::vhost_user::message::VhostUserVirtioFeatures;

/// Feature bits that the transport sets and clears while one driver runs.
const NOT_THE_DRIVERS: u64 =
    VhostUserVirtioFeatures::LOG_ALL.bits() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What the rings' start means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Resume,
    /// A new driver or a new guest.
    Reset,
}

/// Follows one connection. Give it every stop of a ring; ask it when the first
/// ring starts while none runs.
#[derive(Debug)]
pub struct ResetDetector {
    /// No ring of this connection has started yet.
    fresh: bool,
    /// The front end said so.
    told: bool,
    /// Where each ring stopped, if it ran since the last reset.
    positions: Vec<Option<u16>>,
    /// The driver's features while the rings ran.
    features: u64,
}

impl ResetDetector {
    pub fn new(rings: usize) -> Self {
        Self {
            fresh: true,
            told: false,
            positions: vec![None; rings],
            features: 0,
        }
    }

    /// The front end asked for a reset outright.
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
    /// available index they start at, under a driver with these `features`.
    pub fn starting(
        &mut self,
        rings: impl IntoIterator<Item = (usize, u16)>,
        features: u64,
    ) -> Start {
        let features = features & !NOT_THE_DRIVERS;
        let mut all_at_zero = true;
        let mut one_moved_to_zero = false;
        let mut one_stopped_elsewhere = false;
        for (ring, base) in rings {
            all_at_zero &= base == 0;
            let position = self.positions.get(ring).copied().flatten();
            let moved = position.is_some_and(|p| p != 0);
            one_stopped_elsewhere |= moved;
            one_moved_to_zero |= moved && base == 0;
        }
        let other_driver = self.features != features;
        let reset = if self.told {
            true
        } else if self.fresh {
            all_at_zero
        } else if one_stopped_elsewhere {
            one_moved_to_zero
        } else {
            // All stopped at 0 and start there: nothing was ever done, or just
            // 65,536 requests. Only another driver tells.
            all_at_zero && other_driver
        };
        self.fresh = false;
        self.told = false;
        self.features = features;
        if !reset {
            return Start::Resume;
        }
        // Rings that the new driver does not use keep no old position.
        self.positions.fill(None);
        Start::Reset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: u64 = 0x1_3000_0244;
    const FIRMWARE: u64 = 0x1_0000_0000;

    /// A connection whose rings ran and stopped at these positions.
    fn stopped_at(positions: &[u16]) -> ResetDetector {
        let mut detector = ResetDetector::new(positions.len());
        detector.starting(positions.iter().map(|_| 0).enumerate(), DRIVER);
        for (ring, position) in positions.iter().enumerate() {
            detector.stopped(ring, *position);
        }
        detector
    }

    fn starts(detector: &mut ResetDetector, bases: &[u16], features: u64) -> Start {
        detector.starting(bases.iter().copied().enumerate(), features)
    }

    #[test]
    fn a_new_connection_at_zero_is_a_new_guest() {
        let mut detector = ResetDetector::new(2);
        assert_eq!(starts(&mut detector, &[0, 0], FIRMWARE), Start::Reset);
    }

    #[test]
    fn a_new_connection_elsewhere_carries_the_old_guest_on() {
        for bases in [[551, 0], [0, 1], [3, 4]] {
            let mut detector = ResetDetector::new(2);
            assert_eq!(starts(&mut detector, &bases, DRIVER), Start::Resume);
        }
    }

    #[test]
    fn a_pause_is_not_a_reset() {
        assert_eq!(
            starts(&mut stopped_at(&[551]), &[551], DRIVER),
            Start::Resume
        );
        assert_eq!(
            starts(&mut stopped_at(&[551, 0]), &[551, 0], DRIVER),
            Start::Resume
        );
        let mut again = stopped_at(&[551]);
        for _ in 0..3 {
            assert_eq!(starts(&mut again, &[551], DRIVER), Start::Resume);
            again.stopped(0, 551);
        }
    }

    #[test]
    fn the_transports_own_feature_bits_tell_nothing() {
        let log = DRIVER | VhostUserVirtioFeatures::LOG_ALL.bits();
        assert_eq!(starts(&mut stopped_at(&[0]), &[0], log), Start::Resume);
    }

    #[test]
    fn system_reset_and_the_firmwares_handover_are_one_reset_each() {
        // As traced: the guest stopped at 851, the firmware's driver did one
        // request, the operating system's driver takes over.
        let mut detector = stopped_at(&[851]);
        assert_eq!(starts(&mut detector, &[0], FIRMWARE), Start::Reset);
        detector.stopped(0, 1);
        assert_eq!(starts(&mut detector, &[0], DRIVER), Start::Reset);
        detector.stopped(0, 7);
        assert_eq!(starts(&mut detector, &[7], DRIVER), Start::Resume);
    }

    #[test]
    fn one_ring_of_many_is_enough() {
        assert_eq!(
            starts(&mut stopped_at(&[0, 9, 0]), &[0, 0, 0], DRIVER),
            Start::Reset
        );
    }

    #[test]
    fn rings_that_the_new_driver_leaves_alone_tell_nothing_later() {
        let mut detector = stopped_at(&[5, 6]);
        assert_eq!(detector.starting([(0, 0)], FIRMWARE), Start::Reset);
        detector.stopped(0, 3);
        // A pause of the firmware, with ring 1 set up but never used by it.
        assert_eq!(starts(&mut detector, &[3, 0], FIRMWARE), Start::Resume);
    }

    #[test]
    fn at_zero_before_and_after_only_another_driver_is_a_reset() {
        assert_eq!(starts(&mut stopped_at(&[0]), &[0], DRIVER), Start::Resume);
        assert_eq!(starts(&mut stopped_at(&[0]), &[0], FIRMWARE), Start::Reset);
    }

    #[test]
    fn rings_moved_to_another_base_than_zero_are_no_reset() {
        // A guest loaded from a saved state on the same connection.
        assert_eq!(
            starts(&mut stopped_at(&[551]), &[300], DRIVER),
            Start::Resume
        );
    }

    #[test]
    fn a_reset_that_was_told_counts_once() {
        let mut detector = stopped_at(&[551]);
        detector.told();
        assert_eq!(starts(&mut detector, &[551], DRIVER), Start::Reset);
        detector.stopped(0, 600);
        assert_eq!(starts(&mut detector, &[600], DRIVER), Start::Resume);
    }
}
