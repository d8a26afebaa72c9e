//! The rules of [`super::Disk`], run over every implementation.
#![allow(clippy::cast_possible_truncation)]

mod files;
mod full;
mod rig;
mod zeroing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::sim::Rng;
use super::*;
use files::*;
use full::full_file_system_gives_enospc;
use rig::{DEPTH, Guest, LEN, Rig, SECTORS, bytes, image, owned, read, real, sim, write, zero};
use zeroing::*;

fn submit_never_completes_and_reap_does(mut rig: Rig) {
    rig.submit(3, read(512, owned(0, 4096)));
    assert_eq!(rig.disk.in_flight(), 1);
    let mut done = Vec::new();
    rig.disk.reap(true, &mut done);
    assert_eq!((rig.disk.in_flight(), done.len()), (0, 1));
    assert_eq!((done[0].tag, done[0].result), (3, Ok(())));
    assert_eq!(bytes(done[0].buffer.as_ref().unwrap()), image()[512..4608]);
    rig.disk.reap(true, &mut done); // does not wait for what cannot come
    assert_eq!(done.len(), 1);
}

fn misaligned_is_refused_and_the_buffer_returned(mut rig: Rig) {
    for (offset, len) in [(1, 512), (512, 511), (256, 512), (0, 1)] {
        for kind in [read(offset, owned(0, len)), write(offset, owned(0, len))] {
            let done = rig.run(kind);
            assert_eq!(done.result, Err(Errno::EINVAL), "{offset} {len}");
            assert_eq!(done.buffer.unwrap().len(), len);
        }
    }
    assert!((rig.content)() == image());
}

fn range_beyond_the_end_is_refused_and_nothing_grows(mut rig: Rig) {
    let end = LEN as u64;
    for offset in [end, end - 512, u64::MAX - 511, u64::MAX - 1535] {
        assert_eq!(
            rig.run(read(offset, owned(0, 1024))).result,
            Err(Errno::EIO),
            "{offset}"
        );
        assert_eq!(
            rig.run(write(offset, owned(9, 1024))).result,
            Err(Errno::ENOSPC),
            "{offset}"
        );
    }
    assert!((rig.content)() == image());
}

fn nothing_is_moved_by_an_empty_operation(mut rig: Rig) {
    assert_eq!(rig.run(read(512, owned(0, 0))).result, Ok(()));
    assert_eq!(rig.run(write(LEN as u64, owned(0, 0))).result, Ok(()));
}

fn unknown_and_removed_devices_give_enodev(mut rig: Rig) {
    for device in [DeviceId(99), rig.device] {
        if device == rig.device {
            assert_eq!(rig.run(OpKind::Flush).result, Ok(()));
            (rig.remove)();
        }
        for kind in [
            read(0, owned(0, 512)),
            write(0, owned(0, 512)),
            OpKind::Flush,
        ] {
            let carries = !matches!(kind, OpKind::Flush);
            rig.disk.submit(Op {
                tag: 1,
                device,
                kind,
            });
            let done = rig.drain().pop().unwrap();
            assert_eq!(
                (done.result, done.buffer.is_some()),
                (Err(Errno::ENODEV), carries)
            );
        }
    }
}

fn shared_buffer_is_written_from_and_never_read_into(mut rig: Rig) {
    let mut memory = OwnedBuffer::zeroed(4096);
    memory.as_mut_slice()[1536..2560].fill(0xaa);
    let memory = Arc::new(memory);
    let part = |offset, len| Buffer::Shared {
        memory: Arc::clone(&memory),
        offset,
        len,
    };
    for device_offset in [0, 8192] {
        rig.submit(1, write(device_offset, part(1536, 1024)));
    }
    assert!(rig.drain().iter().all(|d| d.result.is_ok()));
    let content = (rig.content)();
    assert!(
        content[..1024]
            .iter()
            .chain(&content[8192..9216])
            .all(|b| *b == 0xaa)
    );
    assert_eq!(rig.run(read(0, part(0, 512))).result, Err(Errno::EINVAL));
    for (offset, len) in [(4096, 512), (3584, 1024), (usize::MAX - 511, 1024)] {
        assert_eq!(
            rig.run(write(0, part(offset, len))).result,
            Err(Errno::EINVAL)
        );
    }
}

/// Pieces that suit O_DIRECT, that don't, more than one call takes, of odd lengths.
fn guest_layouts() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![(0, 4096)],
        vec![(8192, 4096), (0, 512), (4096, 3584)],
        vec![(1, 4096)],
        vec![(0, 4096), (4099, 512), (8192, 8192)],
        vec![(0, 1), (100, 511), (8192, 3584)],
        vec![(0, 0), (512, 1024), (0, 0)],
        (0..1500).map(|n| (n * 512, 512)).collect(),
        (0..1536).map(|n| (n * 300 + 1, 256)).collect(),
        // Where one call's pieces end is no block's end.
        (0..1103)
            .map(|n| {
                (
                    n * 300,
                    if n == 0 {
                        1
                    } else if n == 1102 {
                        255
                    } else {
                        256
                    },
                )
            })
            .collect(),
        vec![(3, 512 * 1024)],
        // Copied at first, then not.
        vec![(1, 512), (4096, 192 * 1024)],
    ]
}

fn guest_memory_of_any_layout_is_read_into_and_written_from(mut rig: Rig) {
    for (n, layout) in guest_layouts().iter().enumerate() {
        let guest = Guest::new(1 << 20);
        let buffer = guest.buffer(layout);
        let len = buffer.len();
        let at = 1024 * (n as u64 + 1);
        let before = (rig.content)();
        let expected = &before[at as usize..at as usize + len];
        let done = rig.run(read(at, buffer));
        assert_eq!(done.result, Ok(()), "read {n}");
        let buffer = done.buffer.unwrap();
        assert!(bytes(&buffer) == expected, "read {n}");

        let mut data = vec![0; len];
        Rng::new(n as u64).fill(&mut data);
        let mut buffer = buffer;
        assert!(buffer.write_at(0, &data));
        let done = rig.run(write(at, buffer));
        assert_eq!(done.result, Ok(()), "write {n}");
        let mut after = before;
        after[at as usize..at as usize + len].copy_from_slice(&data);
        assert!((rig.content)() == after, "write {n}");
        drop(done);
        assert_eq!(
            Arc::strong_count(&guest.memory),
            1,
            "memory is let go with the buffer"
        );
    }
}

fn flush_and_durable_write_succeed(mut rig: Rig) {
    assert_eq!(rig.run(OpKind::Flush).result, Ok(()));
    let kind = OpKind::Write {
        offset: 512,
        buffer: owned(5, 512),
        durable: true,
    };
    assert_eq!(rig.run(kind).result, Ok(()));
    assert!((rig.content)()[512..1024].iter().all(|b| *b == 5));
}

fn many_operations_complete_exactly_once_with_their_own_buffer(mut rig: Rig) {
    let mut rng = Rng::new(9);
    let mut expected = BTreeMap::new();
    let (mut submitted, mut done) = (0, Vec::new());
    while submitted < 10_000 || rig.disk.in_flight() > 0 {
        while submitted < 10_000 && rig.disk.in_flight() < 200 {
            let len = 512 * (1 + rng.below(8));
            let offset = 512 * rng.below(SECTORS as usize - 8) as u64;
            let kind = match rng.below(20) {
                0 => OpKind::Flush,
                1 => zero(
                    [Zeroing::Keep, Zeroing::Unmap, Zeroing::Discard][rng.below(3)],
                    offset,
                    len as u64,
                ),
                2..10 => write(offset, owned(submitted as u8, len)),
                _ => read(offset, owned(0, len)),
            };
            expected.insert(
                submitted,
                if matches!(kind, OpKind::Flush | OpKind::Zero { .. }) {
                    None
                } else {
                    Some(len)
                },
            );
            rig.submit(submitted, kind);
            submitted += 1;
        }
        rig.disk.reap(!rng.one_in(3), &mut done);
        for done in done.drain(..) {
            assert_eq!(done.result, Ok(()));
            assert_eq!(
                expected.remove(&done.tag),
                Some(done.buffer.map(|b| b.len())),
                "{}",
                done.tag
            );
        }
    }
    assert!(expected.is_empty());
}

fn more_than_the_depth_can_be_submitted_at_once(mut rig: Rig) {
    for tag in 0..u64::from(DEPTH) * 20 {
        rig.submit(tag, write(tag * 512, owned(tag as u8, 512)));
    }
    assert_eq!(rig.drain().len(), DEPTH as usize * 20);
    let content = (rig.content)();
    assert!((0..DEPTH as usize * 20).all(|n| content[n * 512] == n as u8));
}

fn dropped_disk_lets_go_of_guest_memory(mut rig: Rig) {
    // Large enough to be under way still when the disk is dropped.
    let pieces = DEPTH as usize;
    let guest = Guest::new(LEN * pieces + 4096);
    for n in 0..pieces {
        rig.submit(1, read(0, guest.buffer(&[(n * LEN, LEN)])));
    }
    rig.submit(2, write(0, guest.buffer(&[(1, 4096)])));
    rig.disk.reap(false, &mut Vec::new());
    drop(rig.disk);
    assert_eq!(Arc::strong_count(&guest.memory), 1);
    // Nobody writes to it any more.
    let now = guest.memory.lock().unwrap().clone();
    std::thread::sleep(Duration::from_millis(50));
    assert!(*guest.memory.lock().unwrap() == now);
}

fn readable(disk: &dyn Disk, timeout: Duration) -> bool {
    let fd = disk.event_fd().unwrap();
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

fn event_descriptor_wakes_for_every_completion(mut rig: Rig) {
    if rig.disk.event_fd().is_none() {
        return; // driven by its test
    }
    let patience = Duration::from_millis(900);
    for round in 0..200_u64 {
        let kinds = [
            read(round * 512, owned(0, 4096)),
            OpKind::Flush,
            read(1, owned(0, 512)),
        ];
        let count = 1 + round as usize % kinds.len();
        for kind in kinds.into_iter().take(count) {
            rig.submit(round, kind);
        }
        let mut done = Vec::new();
        rig.disk.reap(false, &mut done);
        while done.len() < count {
            assert!(
                readable(&*rig.disk, patience),
                "{} of {count} in round {round}",
                done.len()
            );
            rig.disk.reap(false, &mut done);
        }
    }
    // It does not stay readable, or epoll would spin.
    rig.disk.reap(false, &mut Vec::new());
    assert!(!readable(&*rig.disk, Duration::from_millis(20)));
}

fn refused_operation_wakes_the_event_descriptor_before_reap(mut rig: Rig) {
    if rig.disk.event_fd().is_some() {
        rig.submit(1, read(1, owned(0, 512)));
        assert!(readable(&*rig.disk, Duration::from_millis(900)));
        assert_eq!(rig.drain().len(), 1);
    }
}

/// Every operation still ends once, with its buffer, and flushes are never left out.
fn what_is_abandoned_ends_with_ecanceled_or_as_ever(mut rig: Rig) {
    fn even(tag: Tag) -> bool {
        tag.is_multiple_of(2)
    }
    let guest = Guest::new(64 * 8192 + 4096);
    for tag in 0..64_u64 {
        let at = tag as usize * 8192;
        rig.submit(tag, read(at as u64, guest.buffer(&[(at, 8192)])));
    }
    let mut done = Vec::new();
    rig.disk.reap(true, &mut done);
    rig.disk.abandon(even);
    rig.submit(64, OpKind::Flush);
    rig.submit(66, write(0, owned(1, 4096)));
    rig.submit(67, write(8192, owned(2, 4096)));
    while rig.disk.in_flight() > 0 {
        rig.disk.reap(true, &mut done);
    }
    let ends: BTreeMap<Tag, &Done> = done.iter().map(|d| (d.tag, d)).collect();
    assert_eq!((done.len(), ends.len()), (67, 67));
    for (tag, done) in &ends {
        assert_eq!(done.buffer.is_some(), *tag != 64);
        let canceled = even(*tag) && *tag != 64 && done.result == Err(Errno::ECANCELED);
        assert!(
            done.result == Ok(()) || canceled,
            "{tag}: {:?}",
            done.result
        );
    }
    if rig.dir.is_some() {
        assert_eq!(ends[&66].result, Err(Errno::ECANCELED));
        assert_eq!(
            (rig.content)()[..4096],
            image()[..4096],
            "it began all the same"
        );
    }
    assert_eq!((rig.content)()[8192..12288], [2; 4096]);
    drop(done);
    assert_eq!(Arc::strong_count(&guest.memory), 1);
}

macro_rules! battery {
    ($($rig:ident: $make:expr;)*) => { $(mod $rig {
        use super::*;
        battery!(@ $make; submit_never_completes_and_reap_does
            misaligned_is_refused_and_the_buffer_returned
            range_beyond_the_end_is_refused_and_nothing_grows
            nothing_is_moved_by_an_empty_operation
            unknown_and_removed_devices_give_enodev
            shared_buffer_is_written_from_and_never_read_into
            guest_memory_of_any_layout_is_read_into_and_written_from
            flush_and_durable_write_succeed
            zeroes_are_where_they_were_asked_for_and_nowhere_else
            a_discarded_block_is_as_before_or_zero
            zeroing_keeps_to_the_rules_of_a_write
            many_operations_complete_exactly_once_with_their_own_buffer
            more_than_the_depth_can_be_submitted_at_once
            dropped_disk_lets_go_of_guest_memory
            what_is_abandoned_ends_with_ecanceled_or_as_ever
            event_descriptor_wakes_for_every_completion
            refused_operation_wakes_the_event_descriptor_before_reap);
    })* };
    (@ $make:expr; $($test:ident)*) => { $(#[test] fn $test() { super::$test($make); })* };
}

battery! {
    simulated: sim();
    uring_direct: real(IoEngine::IoUring, Direct::Auto);
    uring_buffered: real(IoEngine::IoUring, Direct::Off);
    threads_direct: real(IoEngine::Threads, Direct::Auto);
    threads_buffered: real(IoEngine::Threads, Direct::Off);
}

macro_rules! kernel_battery {
    ($($name:ident: $engine:expr;)*) => { $(mod $name {
        use super::*;
        battery!(@ $engine; disk_can_be_made_on_one_thread_and_used_on_another
            removed_device_is_closed_when_its_last_operation_ends
            file_that_shrank_gives_eio
            full_file_system_gives_enospc
            zeroing_works_where_the_file_cannot_do_it
            space_is_given_back_where_it_may_be);
    })* };
}

kernel_battery! {
    uring: IoEngine::IoUring;
    threads: IoEngine::Threads;
}
