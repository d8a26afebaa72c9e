//! The judge objects to a device that is wrong in one way.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::fuzzing::input::Input;
use crate::fuzzing::ring::World;

const STATUS_OK: u8 = 0;
const SECTOR: u64 = 8;

/// A device that answers the one request, a write of one sector.
struct Device {
    world: World,
    chain: Chain,
}

impl Device {
    fn status(&self, code: u8) {
        self.world.memory.write(self.chain.status.unwrap(), &[code]);
    }

    /// Answers `place` of the used ring.
    fn answer(&self, place: u16, head: u32, len: u32) {
        let used = self.world.driver.ring.used;
        let at = used + 4 + 8 * u64::from(place);
        self.world.memory.write(at, &head.to_le_bytes());
        self.world.memory.write(at + 4, &len.to_le_bytes());
        self.world
            .memory
            .write(used + 2, &(place + 1).to_le_bytes());
    }
}

/// Whether the judge accepts what `act` does, and then what `disk` makes of the first content.
fn accepts(act: impl FnOnce(&Device), disk: impl FnOnce(&mut [u8], &[u8])) -> bool {
    let verdict = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(&mut Input(&[]));
        let request = [0, SECTOR as u8];
        world.drive(|driver, memory| driver.request(memory, &mut Input(&request)));
        let before = world.memory.image();
        let chain = world.judge.look(&before, 0);
        assert_eq!(
            chain.wish,
            Wish::Write {
                sector: SECTOR,
                sectors: 1
            }
        );
        let (data, len) = chain.data[0];
        let data = before.get(data, len).unwrap().to_vec();
        world.judge.took(&before, 0, chain.clone());
        let mut device = Device { world, chain };
        act(&device);
        let after = device.world.memory.image();
        device.world.judge.after_round(&before, &after);
        let all_ended = device.world.judge.back == 1;
        let mut shown = initial().to_vec();
        disk(&mut shown, &data);
        device.world.judge.check_disk(&shown, all_ended);
    }));
    verdict.is_ok()
}

fn done(device: &Device) {
    device.status(STATUS_OK);
    device.answer(0, 0, 1);
}

fn written(disk: &mut [u8], data: &[u8]) {
    let at = SECTOR as usize * 512;
    disk[at..at + 512].copy_from_slice(data);
}

#[test]
fn a_device_that_does_what_it_is_asked_for_is_accepted() {
    assert!(accepts(done, written));
    assert!(accepts(|_| {}, |_, _| {}), "nothing has been done yet");
    assert!(accepts(|_| {}, written), "not answered yet");
}

#[test]
fn each_wrong_answer_is_found() {
    type Act = fn(&Device);
    let wrong: [(&str, Act); 7] = [
        ("a head that was not taken", |device| {
            device.status(STATUS_OK);
            device.answer(0, 5, 1);
        }),
        ("a head that goes back twice", |device| {
            done(device);
            device.answer(1, 0, 1);
        }),
        ("a length beyond the chain", |device| {
            device.status(STATUS_OK);
            device.answer(0, 0, 2);
        }),
        ("a length of nothing", |device| {
            device.status(STATUS_OK);
            device.answer(0, 0, 0);
        }),
        ("no status", |device| device.answer(0, 0, 1)),
        ("an error", |device| {
            device.status(1);
            device.answer(0, 0, 1);
        }),
        ("a write beside the chain", |device| {
            done(device);
            device.world.memory.write(0x6f00, &[1]);
        }),
    ];
    for (name, act) in wrong {
        assert!(!accepts(act, written), "{name}");
    }
}

#[test]
fn each_wrong_content_is_found() {
    assert!(!accepts(done, |_, _| {}), "the write is lost");
    let torn = |disk: &mut [u8], data: &[u8]| {
        let at = SECTOR as usize * 512;
        disk[at..at + 100].copy_from_slice(&data[..100]);
    };
    assert!(!accepts(done, torn), "a part of a sector is written");
    let beside = |disk: &mut [u8], data: &[u8]| {
        written(disk, data);
        disk[0] ^= 1;
    };
    assert!(!accepts(done, beside), "another sector is written");
}
