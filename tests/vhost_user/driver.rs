//! With `virtio-driver`, a real virtio-blk driver.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapback::io::Zeroing;
use snapback::io::sim::{LoggedEvent, LoggedKind};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

use crate::backend::Volume;
use crate::{SECTORS, Served, device, eventually, serve, serve_device};

/// A guest with two queues and a shared buffer.
struct Guest {
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    memory: MmapRegion<()>,
}

const MEMORY: usize = 1 << 20;
const ZEROING: u64 =
    VirtioBlkFeatureFlags::DISCARD.bits() | VirtioBlkFeatureFlags::WRITE_ZEROES.bits();

impl Guest {
    fn connect(path: &Path, queues: usize) -> Self {
        Self::with_features(
            path,
            queues,
            VirtioFeatureFlags::VERSION_1.bits()
                | VirtioFeatureFlags::RING_EVENT_IDX.bits()
                | (VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::MQ).bits()
                | ZEROING,
        )
    }

    fn with_features(path: &Path, queues: usize, features: u64) -> Self {
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(path.to_str().unwrap(), features).unwrap());
        let mut queues: Vec<_> =
            VirtioBlkQueue::setup_queues(&mut *transport, queues, 128).unwrap();
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        let file = std::fs::File::from(
            rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.set_len(MEMORY as u64).unwrap();
        let fd = file.as_raw_fd();
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY).unwrap();
        transport
            .map_mem_region(memory.as_ptr() as usize, MEMORY, fd, 0)
            .unwrap();
        Self {
            transport,
            queues,
            memory,
        }
    }

    fn fill(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= MEMORY);
        // SAFETY: within the mapping; nobody else touches this part meanwhile.
        unsafe {
            self.memory
                .as_ptr()
                .add(offset)
                .copy_from(data.as_ptr(), data.len())
        };
    }

    fn look(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= MEMORY);
        let mut data = vec![0; len];
        // SAFETY: as in `fill`.
        unsafe {
            self.memory
                .as_ptr()
                .add(offset)
                .copy_to(data.as_mut_ptr(), len)
        };
        data
    }

    fn kick(&mut self, queue: usize) {
        if !self.queues[queue].avail_notif_needed() {
            return;
        }
        self.transport
            .get_submission_notifier(queue)
            .notify()
            .unwrap();
    }

    /// Waits for `count` completions; their contexts and results.
    fn completions(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        let mut all = Vec::new();
        let event = self.transport.get_completion_fd(queue);
        while all.len() < count {
            all.extend(self.queues[queue].completions().map(|c| (c.context, c.ret)));
            if all.len() < count {
                let mut fds = [PollFd::new(&*event, PollFlags::IN)];
                let timeout = Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                assert_eq!(
                    poll(&mut fds, Some(&timeout)),
                    Ok(1),
                    "no completion for 10 s"
                );
                event.read().unwrap();
            }
        }
        all
    }

    fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> i32 {
        self.fill(0, data);
        let pointer = self.memory.as_ptr();
        // SAFETY: the buffer is in the guest's memory until the completion.
        unsafe {
            self.queues[queue]
                .write_raw(sector * 512, pointer, data.len(), 0)
                .unwrap()
        };
        self.kick(queue);
        self.completions(queue, 1)[0].1
    }

    fn read(&mut self, queue: usize, sector: u64, len: usize) -> Result<Vec<u8>, i32> {
        let pointer = self.memory.as_ptr();
        // SAFETY: as in `write`.
        unsafe {
            self.queues[queue]
                .read_raw(sector * 512, pointer, len, 0)
                .unwrap()
        };
        self.kick(queue);
        match self.completions(queue, 1)[0].1 {
            0 => Ok(self.look(0, len)),
            e => Err(e),
        }
    }

    fn discard(&mut self, sector: u64, sectors: u64) -> i32 {
        self.queues[0]
            .discard(sector * 512, sectors * 512, 0)
            .unwrap();
        self.kick(0);
        self.completions(0, 1)[0].1
    }

    fn write_zeroes(&mut self, sector: u64, sectors: u64, unmap: bool) -> i32 {
        self.queues[0]
            .write_zeroes(sector * 512, sectors * 512, unmap, 0)
            .unwrap();
        self.kick(0);
        self.completions(0, 1)[0].1
    }

    fn flush(&mut self, queue: usize) -> i32 {
        self.queues[queue].flush(0).unwrap();
        self.kick(queue);
        self.completions(queue, 1)[0].1
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i / 512 * 7 + i * 3 + seed * 31) as u8)
        .collect()
}

fn write_read_flush(served: &Served) {
    let mut guest = Guest::connect(&served.path, 2);
    for (i, len) in [512, 1024, 4096, 8192, 12288, 65536, 1 << 20]
        .into_iter()
        .enumerate()
    {
        let data = pattern(i, len);
        assert_eq!(guest.write(i % 2, 100, &data), 0, "write of {len}");
        assert_eq!(
            served
                .volume
                .devices
                .read_now(served.volume.device, 51200, len as u64),
            data
        );
        guest.fill(0, &vec![0xee; len]);
        assert_eq!(
            guest.read((i + 1) % 2, 100, len).as_ref(),
            Ok(&data),
            "read of {len}"
        );
    }
    assert_eq!(guest.flush(1), 0);
    let durable = served.volume.devices.durable(served.volume.device);
    assert_eq!(durable[51200..51200 + 4096], pattern(6, 4096)[..]);
}

#[test]
fn what_is_written_is_read_on_any_queue_and_durable_after_a_flush() {
    write_read_flush(&serve());
}

#[test]
fn a_disk_without_an_event_descriptor_serves_too() {
    let volume = Arc::new(Volume::with(SECTORS, false));
    write_read_flush(&serve_device(device(), volume));
}

#[test]
fn a_disk_that_rings_when_all_is_done_leaves_its_worker_asleep() {
    // What went wrong: io_uring may set its descriptor after the completion was
    // taken; with nothing in flight nobody cleared it, and the idle queue spun.
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    let events = served.volume.events.lock().unwrap();
    let in_use: Vec<_> = events.iter().filter(|e| Arc::strong_count(e) > 1).collect();
    assert!(!in_use.is_empty());
    for event in in_use {
        event.write(1).unwrap();
        eventually("the worker has taken note", || {
            // SAFETY: the descriptor lives as long as `event`.
            let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())) == Ok(0)
        });
    }
    assert_eq!(guest.write(0, 0, &[2; 512]), 0);
}

#[test]
fn many_requests_at_once_all_come_back() {
    let served = serve();
    let mut guest = Guest::connect(&served.path, 2);
    for round in 0..50 {
        for queue in 0..2 {
            for i in 0..40 {
                let place = (queue * 40 + i) * 512;
                guest.fill(place, &pattern(round * 100 + queue * 40 + i, 512));
                // SAFETY: each request has its own part of the guest's memory.
                unsafe {
                    let pointer = guest.memory.as_ptr().add(place);
                    guest.queues[queue]
                        .write_raw(place as u64, pointer, 512, i)
                        .unwrap();
                }
            }
            guest.kick(queue);
        }
        for queue in 0..2 {
            let mut done = guest.completions(queue, 40);
            done.sort_unstable();
            assert_eq!(done, (0..40).map(|i| (i, 0)).collect::<Vec<_>>());
        }
        for i in 0..80 {
            let there = served
                .volume
                .devices
                .read_now(served.volume.device, i * 512, 512);
            assert_eq!(
                there,
                pattern(round * 100 + i as usize, 512),
                "round {round}, request {i}"
            );
        }
    }
}

#[test]
fn a_request_beyond_the_end_fails_and_the_queue_lives_on() {
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.write(0, SECTORS, &[1; 512]), -5);
    assert_eq!(guest.read(0, SECTORS - 1, 1024), Err(-5));
    assert_eq!(guest.write(0, SECTORS - 1, &[1; 512]), 0);
}

#[test]
fn an_io_error_reaches_the_guest() {
    let served = serve();
    served.volume.devices.remove(served.volume.device);
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.read(0, 0, 512), Err(-5));
    assert_eq!(guest.flush(0), -5);
}

#[test]
fn a_read_only_view_reads_and_refuses_writes() {
    let read_only = snapback::virtio_blk::BlkDevice {
        read_only: true,
        ..device()
    };
    let served = serve_device(read_only, Volume::new(SECTORS));
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.write(0, 0, &[1; 512]), -5);
    assert_eq!(guest.read(0, 0, 512), Ok(vec![0; 512]));
}

#[test]
fn without_flush_every_write_is_durable() {
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.write(0, 0, &[1; 512]), 0);
    assert_eq!(served.volume.durable.load(Ordering::SeqCst), 0);
    drop(guest);
    let mut guest = Guest::with_features(&served.path, 1, VirtioFeatureFlags::VERSION_1.bits());
    assert_eq!(guest.write(0, 8, &[2; 512]), 0);
    assert_eq!(served.volume.durable.load(Ordering::SeqCst), 1);
    let durable = served.volume.devices.durable(served.volume.device);
    assert_eq!(durable[4096], 2);
}

#[test]
fn the_view_is_served_again_when_its_front_end_has_left() {
    let served = serve();
    for round in 0..5 {
        let mut guest = Guest::connect(&served.path, 2);
        assert_eq!(guest.write(1, round * 8, &[round as u8 + 1; 512]), 0);
        drop(guest);
        eventually("the rings are stopped", || {
            served.volume.ports.load(Ordering::SeqCst) == 0
        });
    }
    eventually("five visits", || served.call_log.read().len() == 15);
    let visit = ["attached", "program", "detached"];
    assert_eq!(served.call_log.read(), visit.repeat(5));
}

#[test]
fn a_second_front_end_waits_for_the_first_to_leave() {
    let served = serve();
    let mut first = Guest::connect(&served.path, 1);
    let path = served.path.clone();
    let second = std::thread::spawn(move || Guest::connect(&path, 1).read(0, 0, 512));
    assert_eq!(first.write(0, 0, &[7; 512]), 0);
    assert!(!second.is_finished());
    assert_eq!(served.call_log.read(), ["attached", "program"]);
    drop(first);
    assert_eq!(second.join().unwrap(), Ok(vec![7; 512]));
}

#[test]
fn a_front_end_that_leaves_in_the_middle_loses_nothing_of_ours() {
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    served.volume.held.store(1, Ordering::SeqCst);
    guest.fill(0, &[9; 4096]);
    // SAFETY: the buffer's memory is kept by the view until the write is done.
    unsafe {
        guest.queues[0]
            .write_raw(0, guest.memory.as_ptr(), 4096, 0)
            .unwrap()
    };
    guest.kick(0);
    eventually("the write is with the disk", || {
        served
            .volume
            .devices
            .take_log()
            .iter()
            .any(|l| l.len == 4096)
    });
    drop(guest);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(
        served.call_log.read(),
        ["attached", "program"],
        "still draining"
    );
    served.volume.held.store(0, Ordering::SeqCst);
    eventually("detached", || {
        served.call_log.read().ends_with(&["detached"])
    });
    assert_eq!(
        served
            .volume
            .devices
            .read_now(served.volume.device, 0, 4096),
        [9; 4096]
    );
}

/// What the disk was asked to change since the last look, reads and flushes left out.
fn changes(served: &Served) -> Vec<LoggedKind> {
    let log = served.volume.devices.take_log().into_iter();
    let submitted = log.filter(|l| l.event == LoggedEvent::Submitted);
    submitted
        .map(|l| l.kind)
        .filter(|kind| !matches!(kind, LoggedKind::Read | LoggedKind::Flush))
        .collect()
}

#[test]
fn zeroes_are_written_without_data_unless_they_must_be_durable() {
    const WRITE: LoggedKind = LoggedKind::Write { durable: false };
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.transport.get_features() & ZEROING, ZEROING);
    let mut expected = vec![7; 64 * 512];
    assert_eq!(guest.write(0, 0, &expected), 0);
    changes(&served);
    for (sector, sectors, unmap, asked) in [
        (8, 32, true, vec![LoggedKind::Zero(Zeroing::Unmap); 2]),
        (44, 8, false, vec![LoggedKind::Zero(Zeroing::Keep)]),
        // As a part of a chunk: laid over what the engine has.
        (60, 3, true, vec![WRITE]),
    ] {
        assert_eq!(guest.write_zeroes(sector, sectors, unmap), 0);
        assert_eq!(changes(&served), asked);
        expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        assert_eq!(guest.read(0, 0, 64 * 512).unwrap(), expected);
    }
    drop(guest);

    let features = VirtioFeatureFlags::VERSION_1.bits() | ZEROING;
    let mut guest = Guest::with_features(&served.path, 1, features);
    assert_eq!(guest.write_zeroes(0, 8, true), 0);
    assert_eq!(changes(&served), [LoggedKind::Write { durable: true }]);
    let durable = served.volume.devices.durable(served.volume.device);
    expected[..4096].fill(0);
    assert_eq!(durable[..4096], expected[..4096]);
}

#[test]
fn a_discard_reaches_the_disk_as_a_hint() {
    let served = serve();
    let mut guest = Guest::connect(&served.path, 1);
    assert_eq!(guest.write(0, 0, &[7; 8192]), 0);
    changes(&served);
    assert_eq!(guest.discard(4, 8), 0);
    assert_eq!(changes(&served), [LoggedKind::Zero(Zeroing::Discard)]);
    let config = guest.transport.get_config().unwrap();
    assert_eq!(u32::from(config.max_discard_seg), 32);
    let most = u32::from(config.max_discard_sectors);
    assert_eq!(guest.discard(0, u64::from(most) + 8), -5);
    assert_eq!(guest.discard(SECTORS - 7, 8), -5, "beyond the end");
    assert_eq!(changes(&served), []);
}

#[test]
fn views_that_offer_no_discard_refuse_it() {
    use snapback::virtio_blk::BlkDevice;
    let without = BlkDevice {
        max_discard_sectors: 0,
        ..device()
    };
    let read_only = BlkDevice {
        read_only: true,
        ..device()
    };
    let zeroes = VirtioBlkFeatureFlags::WRITE_ZEROES.bits();
    for (device, offered, discard, zeroing) in [
        (without, zeroes, -libc::EOPNOTSUPP, 0),
        (read_only, 0, -libc::EIO, -libc::EIO),
    ] {
        let served = serve_device(device, Volume::new(SECTORS));
        let mut guest = Guest::connect(&served.path, 1);
        assert_eq!(guest.transport.get_features() & ZEROING, offered);
        assert_eq!(guest.discard(0, 8), discard);
        assert_eq!(guest.write_zeroes(0, 8, false), zeroing);
    }
}
