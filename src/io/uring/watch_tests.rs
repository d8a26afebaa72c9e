//! An owner that sleeps in the ring.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::event_flag::EventFlag;
use crate::io::Watched;
use crate::io::{
    BlockFile, Buffer, DeviceId, Devices, Disk, Op, OpKind, OpenOptions, OwnedBuffer, UringDisk,
};

const LONG: Option<Duration> = Some(Duration::from_secs(60));
const NOW: Option<Duration> = Some(Duration::ZERO);

struct Rig {
    disk: UringDisk,
    device: DeviceId,
    flags: [Arc<EventFlag>; 2],
    _dir: tempfile::TempDir,
}

/// `None` where the kernel is too old.
fn rig() -> Option<Rig> {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        create: Some(1 << 20),
        ..OpenOptions::default()
    };
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(dir.path().join("image"), options).unwrap());
    let mut disk = UringDisk::new(devices, 8).unwrap();
    let flags = [(); 2].map(|()| Arc::new(EventFlag::new().unwrap()));
    let mut events: Vec<Watched> = Vec::new();
    for flag in &flags {
        events.push(Arc::<EventFlag>::clone(flag));
    }
    disk.watch(events).then_some(Rig {
        disk,
        device,
        flags,
        _dir: dir,
    })
}

impl Rig {
    fn read(&mut self) {
        let buffer = Buffer::Owned(OwnedBuffer::zeroed(4096));
        self.disk.submit(Op {
            tag: 1,
            device: self.device,
            kind: OpKind::Read { offset: 0, buffer },
        });
    }
}

/// Events that happened before the sleep, and during it, each reported once although the
/// counters are never read.
#[test]
fn each_write_to_a_watched_descriptor_ends_a_sleep_once() {
    let Some(mut rig) = rig() else { return };
    let mut done = Vec::new();
    rig.flags[1].set();
    assert_eq!(rig.disk.wait(LONG, &mut done), 0b10);
    assert_eq!(rig.disk.wait(NOW, &mut done), 0);
    for round in 0..200 {
        let which = round % 2;
        let flag = rig.flags[which].clone();
        let setter = std::thread::spawn(move || {
            if round % 3 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            flag.lower();
            flag.set();
        });
        let mut happened = 0;
        while happened == 0 {
            happened = rig.disk.wait(LONG, &mut done);
        }
        assert_eq!(happened, 1 << which, "round {round}");
        setter.join().unwrap();
        assert_eq!(rig.disk.wait(NOW, &mut done), 0, "round {round}");
    }
    assert!(done.is_empty());
}

#[test]
fn a_completion_ends_a_sleep_that_submits_it() {
    let Some(mut rig) = rig() else { return };
    let mut done = Vec::new();
    for round in 1..=50 {
        rig.read();
        while done.len() < round {
            assert_eq!(rig.disk.wait(LONG, &mut done), 0);
        }
        assert_eq!((done.len(), rig.disk.in_flight()), (round, 0));
    }
    assert!(done.iter().all(|done| done.result.is_ok()));
}

/// One that is refused has no completion in the kernel.
#[test]
fn what_ends_without_the_kernel_ends_a_sleep_too() {
    let Some(mut rig) = rig() else { return };
    let device = DeviceId(99);
    let kind = OpKind::Flush;
    rig.disk.submit(Op {
        tag: 7,
        device,
        kind,
    });
    let mut done = Vec::new();
    assert!(rig.disk.has_news());
    rig.disk.wait(LONG, &mut done);
    assert_eq!(done.len(), 1);
}

#[test]
fn a_sleep_ends_after_its_time() {
    let Some(mut rig) = rig() else { return };
    let (start, time) = (Instant::now(), Duration::from_millis(30));
    while start.elapsed() < time {
        let left = time.saturating_sub(start.elapsed());
        assert_eq!(rig.disk.wait(Some(left), &mut Vec::new()), 0);
    }
}

#[test]
fn a_signal_is_sent_with_the_next_call_and_a_full_counter_blocks_nothing() {
    let Some(mut rig) = rig() else { return };
    let event = Arc::new(File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
    let mut counter = [0; 8];
    for signals in [1_u64, 3] {
        for _ in 0..signals {
            assert!(rig.disk.signal(&event));
        }
        rig.disk.reap(false, &mut Vec::new());
        rustix::io::read(&event, &mut counter).unwrap();
        assert_eq!(u64::from_ne_bytes(counter), signals);
    }
    let full = u64::MAX - 1;
    rustix::io::write(&event, &full.to_ne_bytes()).unwrap();
    assert!(rig.disk.signal(&event));
    let mut done = Vec::new();
    rig.read();
    while done.is_empty() {
        rig.disk.wait(LONG, &mut done);
    }
    rustix::io::read(&event, &mut counter).unwrap();
    assert_eq!(u64::from_ne_bytes(counter), full);
    // The descriptor is let go with the next signal at the latest.
    let other = Arc::new(event.try_clone().unwrap());
    rig.disk.signal(&other);
    assert_eq!(Arc::strong_count(&event), 1);
}

/// More signals than the submission queue has room for.
#[test]
fn a_signal_without_room_is_left_to_the_caller() {
    let Some(mut rig) = rig() else { return };
    let event = Arc::new(File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
    let sent = (0..100).filter(|_| rig.disk.signal(&event)).count();
    assert!((1..100).contains(&sent), "{sent}");
    rig.disk.reap(false, &mut Vec::new());
    let mut counter = [0; 8];
    rustix::io::read(&event, &mut counter).unwrap();
    assert_eq!(u64::from_ne_bytes(counter), u64::try_from(sent).unwrap());
}
