//! Tests of the simulated devices themselves.

use super::*;
use crate::io::{Buffer, Disk, Done, Op, OpKind, OwnedBuffer};

fn data(byte: u8, len: usize) -> Buffer {
    let mut buffer = OwnedBuffer::zeroed(len);
    buffer.as_mut_slice().fill(byte);
    Buffer::Owned(buffer)
}

fn write(disk: &mut SimDisk, tag: Tag, device: DeviceId, offset: u64, byte: u8, len: usize) {
    disk.submit(Op {
        tag,
        device,
        kind: OpKind::Write {
            offset,
            buffer: data(byte, len),
            durable: false,
        },
    });
}

fn flush(disk: &mut SimDisk, tag: Tag, device: DeviceId) {
    disk.submit(Op {
        tag,
        device,
        kind: OpKind::Flush,
    });
}

fn drain(disk: &mut SimDisk) -> Vec<Done> {
    let mut done = Vec::new();
    while disk.in_flight() > 0 {
        disk.reap(true, &mut done);
    }
    done
}

#[test]
fn same_seed_gives_the_same_order_and_another_seed_another() {
    let order = |seed| {
        let world = SimDevices::new(seed);
        let device = world.add(64, Fill::Noise);
        let mut disk = world.disk();
        for tag in 0..32 {
            write(&mut disk, tag, device, tag * 512, 1, 512);
        }
        drain(&mut disk).iter().map(|d| d.tag).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_ne!(order(1), (0..32).collect::<Vec<_>>());
}

#[test]
fn flush_covers_what_was_reaped_before_it_was_submitted_and_nothing_else() {
    let world = SimDevices::new(3);
    let device = world.add(8, Fill::Zeroes);
    let mut disk = world.disk();
    let mut done = Vec::new();
    write(&mut disk, 1, device, 0, 1, 512);
    disk.complete(1, &mut done);
    write(&mut disk, 2, device, 512, 2, 512);
    flush(&mut disk, 3, device);
    disk.complete(2, &mut done);
    disk.complete(3, &mut done);
    let durable = world.durable(device);
    assert_eq!((durable[0], durable[512]), (1, 0));
    assert_eq!(world.read_now(device, 512, 1), [2]);
}

#[test]
fn durable_write_needs_no_flush_and_covers_no_other() {
    let world = SimDevices::new(3);
    let device = world.add(8, Fill::Zeroes);
    let mut disk = world.disk();
    write(&mut disk, 1, device, 0, 1, 512);
    drain(&mut disk);
    disk.submit(Op {
        tag: 2,
        device,
        kind: OpKind::Write {
            offset: 512,
            buffer: data(2, 512),
            durable: true,
        },
    });
    drain(&mut disk);
    let durable = world.durable(device);
    assert_eq!((durable[0], durable[512]), (0, 2));
}

#[test]
fn crash_leaves_any_version_of_each_block_and_only_those() {
    let world = SimDevices::new(4);
    let device = world.add(2, Fill::Byte(9));
    let mut disk = world.disk();
    for byte in [1, 2] {
        write(&mut disk, 1, device, 0, byte, 512);
        drain(&mut disk);
    }
    write(&mut disk, 3, device, 512, 3, 512); // stays in flight
    let left = |keep| {
        let after = world.crash(keep).current(device);
        assert!(
            after
                .chunks(512)
                .all(|block| block.iter().all(|b| *b == block[0])),
            "torn block"
        );
        (after[0], after[512])
    };
    assert_eq!(left(Keep::Nothing), (9, 9));
    assert_eq!(left(Keep::Everything), (2, 3));
    assert_eq!(left(Keep::Choice(&[1, 0])), (1, 9));
    let seen: std::collections::BTreeSet<_> =
        (0..200).map(|seed| left(Keep::Seeded(seed))).collect();
    assert_eq!(seen.len(), 6, "{seen:?}");
    let unsettled: Vec<_> = world
        .unsettled()
        .iter()
        .map(|u| (u.offset, u.versions))
        .collect();
    assert_eq!(unsettled, [(0, 2), (512, 1)]);
}

#[test]
fn process_death_keeps_acknowledged_writes() {
    let world = SimDevices::new(4);
    let device = world.add(2, Fill::Byte(9));
    let mut disk = world.disk();
    write(&mut disk, 1, device, 0, 1, 512);
    drain(&mut disk);
    write(&mut disk, 2, device, 512, 2, 512);
    for seed in 0..20 {
        let next = world.process_death(seed);
        let now = next.current(device);
        assert_eq!(now[0], 1);
        assert!(now[512] == 9 || now[512] == 2);
        assert_eq!(next.durable(device)[0], 9);
        let mut disk = next.disk();
        flush(&mut disk, 1, device);
        drain(&mut disk);
        assert_eq!(next.durable(device), now);
    }
}

#[test]
fn failed_flush_is_not_healed_by_the_next_one() {
    let lost = (0..32).filter(|seed| {
        let world = SimDevices::new(*seed);
        let device = world.add(8, Fill::Zeroes);
        let mut disk = world.disk();
        write(&mut disk, 1, device, 0, 7, 512);
        drain(&mut disk);
        world.fail(Fault::new(FaultOn::Flush, Errno::EIO).once());
        flush(&mut disk, 2, device);
        assert_eq!(drain(&mut disk)[0].result, Err(Errno::EIO));
        flush(&mut disk, 3, device);
        assert_eq!(drain(&mut disk)[0].result, Ok(()));
        world.durable(device)[0] == 0
    });
    let lost = lost.count();
    assert!(0 < lost && lost < 32, "{lost}");
}

#[test]
fn faults_hit_the_operation_they_name() {
    let world = SimDevices::new(5);
    let device = world.add(8, Fill::Zeroes);
    let other = world.add(8, Fill::Zeroes);
    world.fail(
        Fault::new(FaultOn::Write, Errno::ENOSPC)
            .device(device)
            .range(512..1024)
            .after(1)
            .once(),
    );
    let mut disk = world.disk();
    let mut results = Vec::new();
    for (id, offset) in [
        (device, 0),
        (other, 512),
        (device, 512),
        (device, 512),
        (device, 512),
    ] {
        write(&mut disk, 1, id, offset, 1, 512);
        results.push(drain(&mut disk)[0].result.is_ok());
    }
    assert_eq!(results, [true, true, true, false, true]);
}

#[test]
fn overlapping_read_may_see_a_write_half_done() {
    let torn = (0..64).any(|seed| {
        let world = SimDevices::new(seed);
        let device = world.add(8, Fill::Zeroes);
        let mut disk = world.disk();
        write(&mut disk, 1, device, 0, 1, 4096);
        (0..8).any(|_| {
            disk.submit(Op {
                tag: 2,
                device,
                kind: OpKind::Read {
                    offset: 0,
                    buffer: data(0, 4096),
                },
            });
            disk.reap(false, &mut Vec::new());
            let now = world.current(device);
            now.contains(&0) && now.contains(&1)
        })
    });
    assert!(torn);
}

#[test]
fn log_tells_submissions_and_completions_in_order() {
    let world = SimDevices::new(5);
    let device = world.add(8, Fill::Zeroes);
    let mut disk = world.disk();
    write(&mut disk, 7, device, 512, 1, 1024);
    drain(&mut disk);
    let kind = LoggedKind::Write { durable: false };
    let line = |event| Logged {
        event,
        kind,
        device,
        offset: 512,
        len: 1024,
        disk: 0,
        tag: 7,
    };
    assert_eq!(
        world.take_log(),
        [
            line(LoggedEvent::Submitted),
            line(LoggedEvent::Reaped(Ok(())))
        ]
    );
    assert!(world.take_log().is_empty());
}

#[test]
fn a_dead_process_s_write_is_not_taken_for_a_new_one() {
    let old = SimDevices::new(1);
    let device = old.add(1, Fill::Zeroes);
    let mut disk = old.disk();
    write(&mut disk, 0, device, 0, 1, 512);
    drain(&mut disk);
    let new = old.process_death(1);
    let mut disk = new.disk();
    write(&mut disk, 0, device, 0, 2, 512);
    flush(&mut disk, 1, device);
    let mut done = Vec::new();
    assert!(disk.complete(0, &mut done) && disk.complete(1, &mut done));
    // The flush was submitted before the new write was reaped: it covers the old one.
    assert_eq!(new.durable(device), [1; 512]);
}

#[test]
fn possibilities_are_what_a_crash_may_leave() {
    let world = SimDevices::new(3);
    let device = world.add(3, Fill::Zeroes);
    let mut disk = world.disk();
    for (tag, offset, byte) in [(0, 0, 1), (1, 512, 2), (2, 0, 3), (3, 1024, 0)] {
        write(&mut disk, tag, device, offset, byte, 512);
    }
    let mut done = Vec::new();
    assert!(disk.step(&mut done) && disk.step(&mut done));
    let possible = world.possibilities();
    let contents = |n: usize| {
        let versions = possible[n].versions.iter();
        versions
            .map(|v| v[0])
            .collect::<std::collections::BTreeSet<_>>()
    };
    // The third block is written with what it holds already.
    assert_eq!(
        (possible.len(), contents(0), contents(1)),
        (2, [0, 1, 3].into(), [0, 2].into())
    );
    let mut seen = [const { std::collections::BTreeSet::new() }; 2];
    for seed in 0..100 {
        let image = world.crash(Keep::Seeded(seed)).durable(device);
        seen[0].insert(image[0]);
        seen[1].insert(image[512]);
    }
    assert_eq!(seen, [contents(0), contents(1)]);
}

#[test]
fn a_short_transfer_is_continued_and_nobody_notices() {
    for seed in 0..64 {
        let world = SimDevices::new(seed);
        let device = world.add(8, Fill::Byte(7));
        world.fail(Fault::of(FaultOn::Any, FaultEffect::Short));
        let mut disk = world.disk();
        write(&mut disk, 1, device, 0, 1, 4096);
        assert_eq!(drain(&mut disk)[0].result, Ok(()));
        assert_eq!(world.current(device), [1; 4096]);
        disk.submit(Op {
            tag: 2,
            device,
            kind: OpKind::Read {
                offset: 0,
                buffer: data(0, 4096),
            },
        });
        let done = drain(&mut disk).remove(0);
        assert_eq!(done.result, Ok(()));
        assert!(matches!(done.buffer, Some(Buffer::Owned(b)) if b.as_slice() == [1; 4096]));
    }
}
