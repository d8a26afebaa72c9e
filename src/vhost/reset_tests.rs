use super::*;
use Start::{Boot, DriverRestart, Firmware, NewGuest, Program, Resume, Unclear};

/// Linux 6.1 under QEMU 7.2.
const SYSTEM: u64 = 0x1_3000_7e46;
/// A system that asks for other features, such as a newer driver.
const OTHER_SYSTEM: u64 = 0x1_3000_6e46;
const SEABIOS: u64 = 0x1_0000_0046;
const OVMF: u64 = 0x1_0000_0640;
/// A loader that can write zeroes and reads simple rings.
const UBOOT: u64 = 0x1_0000_4040;

const fn of(features: u64) -> Driver {
    Driver {
        features,
        is_program: false,
    }
}

/// A connection after another one that its front end had closed.
fn connected(rings: usize) -> ResetDetector {
    ResetDetector::new(rings, true)
}

/// A connection whose rings ran under a system and stopped at these positions.
fn stopped_at(positions: &[u16]) -> ResetDetector {
    let mut detector = connected(positions.len());
    starts(&mut detector, &vec![0; positions.len()], SYSTEM);
    stop(&mut detector, positions);
    detector
}

fn stop(detector: &mut ResetDetector, positions: &[u16]) {
    for (ring, position) in positions.iter().enumerate() {
        detector.stopped(ring, *position);
    }
}

fn starts(detector: &mut ResetDetector, bases: &[u16], features: u64) -> Start {
    detector.starting(bases.iter().copied().enumerate(), of(features))
}

/// What each driver's start was taken for; each does a few requests.
fn sequence(drivers: &[u64]) -> Vec<Start> {
    let mut detector = connected(1);
    drivers
        .iter()
        .map(|features| {
            let start = starts(&mut detector, &[0], *features);
            detector.stopped(0, 9);
            start
        })
        .collect()
}

#[test]
fn a_machine_that_boots_shows_its_firmware_before_its_system() {
    for firmware in [SEABIOS, OVMF] {
        assert_eq!(sequence(&[firmware, SYSTEM]), [Firmware, Boot]);
    }
}

#[test]
fn a_machines_reset_shows_its_firmware_again() {
    for firmware in [SEABIOS, OVMF, UBOOT] {
        assert_eq!(
            sequence(&[SYSTEM, firmware, SYSTEM, firmware, SYSTEM]),
            [NewGuest, Firmware, Boot, Firmware, Boot],
            "{firmware:#x}"
        );
    }
}

/// Suspend and resume, unbind and bind, remove and rescan, kexec, a disk that is
/// reset because it answered late.
#[test]
fn a_driver_that_comes_back_with_its_features_is_no_reset() {
    assert_eq!(
        sequence(&[SEABIOS, SYSTEM, SYSTEM, SYSTEM]),
        [Firmware, Boot, DriverRestart, DriverRestart]
    );
    // Nor is another driver of a system's, such as a newer version of it.
    assert_eq!(
        sequence(&[SEABIOS, SYSTEM, OTHER_SYSTEM, SYSTEM]),
        [Firmware, Boot, DriverRestart, DriverRestart]
    );
}

#[test]
fn a_driver_that_comes_back_after_a_reset_of_the_device_is_none_either() {
    let mut detector = stopped_at(&[551]);
    detector.told();
    assert_eq!(starts(&mut detector, &[0], SYSTEM), DriverRestart);
    // Wherever it starts.
    detector.stopped(0, 600);
    detector.told();
    assert_eq!(starts(&mut detector, &[600], SYSTEM), DriverRestart);
    // A reported reset counts once.
    detector.stopped(0, 700);
    assert_eq!(starts(&mut detector, &[700], SYSTEM), Resume);
    detector.stopped(0, 700);
    detector.told();
    assert_eq!(starts(&mut detector, &[0], SEABIOS), Firmware);
}

#[test]
fn a_reset_in_the_boot_loader_is_one() {
    assert_eq!(
        sequence(&[SYSTEM, SEABIOS, SEABIOS, SYSTEM]),
        [NewGuest, Firmware, Firmware, Boot]
    );
}

/// A system whose driver asks for no more than a firmware does is told from it
/// by what was there before.
#[test]
fn a_simple_system_is_told_from_its_firmware() {
    assert_eq!(
        sequence(&[SEABIOS, OVMF, OVMF, SEABIOS, OVMF]),
        [Firmware, Boot, DriverRestart, Firmware, Boot]
    );
}

#[test]
fn a_new_connection_shows_a_firmware_a_guest_or_a_program() {
    for last_left in [false, true] {
        let mut detector = ResetDetector::new(2, last_left);
        assert_eq!(starts(&mut detector, &[0, 0], SEABIOS), Firmware);
    }
    let mut known = ResetDetector::new(2, true);
    assert_eq!(starts(&mut known, &[0, 0], SYSTEM), NewGuest);
    let mut unknown = ResetDetector::new(2, false);
    assert_eq!(starts(&mut unknown, &[0, 0], SYSTEM), Unclear);
    for features in [SYSTEM, SEABIOS] {
        let mut program = ResetDetector::new(1, true);
        let driver = Driver {
            features,
            is_program: true,
        };
        for _ in 0..2 {
            assert_eq!(program.starting([(0, 0)], driver), Program);
            program.stopped(0, 3);
        }
    }
}

#[test]
fn a_new_connection_elsewhere_carries_the_old_guest_on_until_its_reset() {
    for bases in [[551, 0], [0, 1], [3, 4]] {
        for last_left in [false, true] {
            let mut detector = ResetDetector::new(2, last_left);
            assert_eq!(starts(&mut detector, &bases, SYSTEM), Resume);
            stop(&mut detector, &[600, 600]);
            assert_eq!(starts(&mut detector, &[0, 0], SYSTEM), DriverRestart);
            stop(&mut detector, &[6, 6]);
            assert_eq!(starts(&mut detector, &[0], SEABIOS), Firmware);
        }
    }
}

#[test]
fn a_pause_is_not_a_reset() {
    assert_eq!(starts(&mut stopped_at(&[551]), &[551], SYSTEM), Resume);
    let mut two = stopped_at(&[551, 0]);
    assert_eq!(starts(&mut two, &[551, 0], SYSTEM), Resume);
    let mut again = stopped_at(&[551]);
    for _ in 0..3 {
        assert_eq!(starts(&mut again, &[551], SYSTEM), Resume);
        again.stopped(0, 551);
    }
}

#[test]
fn a_pause_in_the_boot_loader_leaves_it_there() {
    let mut detector = stopped_at(&[851]);
    assert_eq!(starts(&mut detector, &[0], SEABIOS), Firmware);
    detector.stopped(0, 4);
    assert_eq!(starts(&mut detector, &[4], SEABIOS), Resume);
    detector.stopped(0, 5);
    assert_eq!(starts(&mut detector, &[0], SYSTEM), Boot);
}

#[test]
fn the_transports_own_feature_bits_tell_nothing() {
    let log = SYSTEM | VhostUserVirtioFeatures::LOG_ALL.bits();
    assert_eq!(starts(&mut stopped_at(&[0]), &[0], log), Resume);
    assert_eq!(starts(&mut stopped_at(&[7]), &[0], log), DriverRestart);
}

#[test]
fn one_ring_of_many_is_enough() {
    let mut detector = stopped_at(&[0, 9, 0]);
    assert_eq!(starts(&mut detector, &[0, 0, 0], SEABIOS), Firmware);
}

#[test]
fn rings_that_are_started_one_after_the_other_tell_it_when_they_can() {
    // The first had been idle: nothing shows until the second starts.
    let mut detector = stopped_at(&[0, 9, 8]);
    assert_eq!(starts(&mut detector, &[0], SYSTEM), Resume);
    assert_eq!(detector.another_starts(1, 0), Some(DriverRestart));
    assert_eq!(detector.another_starts(2, 0), None, "told once");
    // A pause stays one.
    let mut detector = stopped_at(&[0, 9]);
    assert_eq!(starts(&mut detector, &[0], SYSTEM), Resume);
    assert_eq!(detector.another_starts(1, 9), None);
    // A firmware is known by the first.
    let mut detector = stopped_at(&[0, 9]);
    assert_eq!(starts(&mut detector, &[0], SEABIOS), Firmware);
    assert_eq!(detector.another_starts(1, 0), None);
    // In the loader, which uses one ring; another one may be set up later.
    detector.stopped(0, 0);
    detector.stopped(1, 2);
    assert_eq!(starts(&mut detector, &[0], SEABIOS), Resume);
    assert_eq!(detector.another_starts(1, 0), Some(Firmware));
}

#[test]
fn rings_that_the_new_driver_leaves_alone_tell_nothing_later() {
    let mut detector = stopped_at(&[5, 6]);
    assert_eq!(detector.starting([(0, 0)], of(SEABIOS)), Firmware);
    detector.stopped(0, 3);
    // A pause of the firmware, with ring 1 set up but never used by it.
    assert_eq!(starts(&mut detector, &[3, 0], SEABIOS), Resume);
    assert_eq!(detector.another_starts(1, 0), None);
}

#[test]
fn at_zero_before_and_after_only_other_features_tell() {
    assert_eq!(starts(&mut stopped_at(&[0]), &[0], SYSTEM), Resume);
    assert_eq!(starts(&mut stopped_at(&[0]), &[0], SEABIOS), Firmware);
    let mut other = stopped_at(&[0]);
    assert_eq!(starts(&mut other, &[0], OTHER_SYSTEM), DriverRestart);
}

#[test]
fn rings_moved_to_another_base_than_zero_are_no_reset() {
    // A guest loaded from a saved state on the same connection.
    assert_eq!(starts(&mut stopped_at(&[551]), &[300], SYSTEM), Resume);
}
