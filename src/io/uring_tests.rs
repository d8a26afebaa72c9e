//! What is handed to the kernel (durability is a flag of the call, which no content of
//! a file shows), and the ring's own memory and mode.

use io_uring::squeue;

use super::*;
use crate::io::{Buffer, Direct, OpenOptions, OwnedBuffer};

/// The fields of an entry that say what it does.
#[derive(Debug, PartialEq)]
struct Fields {
    opcode: u8,
    offset: u64,
    len: u32,
    /// RWF_* of a read or write, mode of an fsync.
    flags: u32,
}

fn fields(entry: &squeue::Entry) -> Fields {
    // SAFETY: an entry is the kernel's `struct io_uring_sqe`, 64 bytes without padding.
    let bytes: [u8; 64] = unsafe { std::mem::transmute_copy(entry) };
    let (words, _) = bytes.as_chunks::<4>();
    let word = |at: usize| u32::from_ne_bytes(words[at / 4]);
    Fields {
        opcode: bytes[0],
        offset: u64::from(word(8)) | u64::from(word(12)) << 32,
        len: word(24),
        flags: word(28),
    }
}

fn file(len: u64) -> (tempfile::TempDir, BlockFile) {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        create: Some(len),
        direct: Direct::Off,
        ..OpenOptions::default()
    };
    let file = BlockFile::open(dir.path().join("file"), options).unwrap();
    (dir, file)
}

/// The entry for the first part of a transfer of `buffer` at byte 512.
fn entry(file: &BlockFile, direction: Direction, buffer: Buffer) -> Fields {
    let mut transfer = Transfer::new(file, direction, 512, buffer, Iovecs::default()).unwrap();
    transfer.prepare(file);
    let apart = fields(&transfer_sqe(types::Fd(3), &transfer, false));
    assert_eq!(apart.flags, 0, "its flush is a call of its own");
    fields(&transfer_sqe(types::Fd(3), &transfer, true))
}

#[test]
fn every_durable_write_and_no_other_call_asks_the_kernel_for_durability() {
    let (_dir, file) = file(16 << 20);
    let one = || Buffer::Owned(OwnedBuffer::zeroed(4096));
    // More than the page of zeroes, so in several pieces.
    let many = || Buffer::Zeroes { len: 3 << 20 };
    let durable = u32::try_from(libc::RWF_DSYNC).unwrap();
    let (write, writev) = (opcode::Write::CODE, opcode::Writev::CODE);
    for (direction, flags) in [
        (Direction::Write { durable: true }, durable),
        (Direction::Write { durable: false }, 0),
    ] {
        let single = entry(&file, direction, one());
        let expected = Fields {
            opcode: write,
            offset: 512,
            len: 4096,
            flags,
        };
        assert_eq!(single, expected);
        let vectored = entry(&file, direction, many());
        assert!(vectored.len > 1, "{vectored:?}");
        let opcode_and_flags = (vectored.opcode, vectored.offset, vectored.flags);
        assert_eq!(opcode_and_flags, (writev, 512, flags));
    }
    let single = entry(&file, Direction::Read, one());
    assert_eq!((single.opcode, single.flags), (opcode::Read::CODE, 0));
}

/// A transfer that goes on, and one that is copied, are as durable as they began.
#[test]
fn the_rest_of_a_durable_write_is_durable_too() {
    let (_dir, file) = file(16 << 20);
    let direction = Direction::Write { durable: true };
    let buffer = Buffer::Owned(OwnedBuffer::zeroed(8192));
    let mut transfer = Transfer::new(&file, direction, 512, buffer, Iovecs::default()).unwrap();
    transfer.prepare(&file);
    assert_eq!(transfer.advance(&file, Ok(1024)), Next::Again);
    transfer.prepare(&file);
    let rest = fields(&transfer_sqe(types::Fd(3), &transfer, true));
    let expected = Fields {
        opcode: opcode::Write::CODE,
        offset: 1536,
        len: 7168,
        flags: u32::try_from(libc::RWF_DSYNC).unwrap(),
    };
    assert_eq!(rest, expected);
}

/// If the kernel got many at once, the device would be idle until all were prepared. Of
/// operations that lie in a row it makes one request. What is in memory is carried out while
/// it is submitted, and calls are saved.
#[test]
fn a_device_begins_with_the_first_operations_of_a_batch_and_memory_with_all() {
    // What is left goes with the call that reaps or sleeps.
    for (device, distance, left) in [(true, 8192, 1), (true, 4096, 7), (false, 8192, 7)] {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            create: Some(64 << 10),
            direct: if device { Direct::Auto } else { Direct::Off },
            ..OpenOptions::default()
        };
        let file = BlockFile::open(dir.path().join("file"), options).unwrap();
        file.may_block();
        if device && !file.is_direct() {
            eprintln!("skipped: no direct I/O here");
            continue;
        }
        let devices = Devices::new();
        let id = devices.add(file);
        let mut disk = UringDisk::new(devices, 32).unwrap();
        for tag in 0..7 {
            let buffer = Buffer::Owned(OwnedBuffer::zeroed(4096));
            let kind = OpKind::Read {
                offset: tag * distance,
                buffer,
            };
            disk.submit(Op {
                tag,
                device: id,
                kind,
            });
        }
        let (mut window, mut done) = (WINDOW, Vec::new());
        disk.fill_queue(&mut window, &mut done);
        assert_eq!((disk.ring.submission().len(), disk.in_kernel), (left, 7));
        while disk.in_flight() > 0 {
            disk.reap(true, &mut done);
        }
        assert!(done.len() == 7 && done.iter().all(|done| done.result.is_ok()));
    }
}

#[test]
fn memory_follows_what_is_in_flight_not_what_was_submitted() {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        create: Some(4096),
        ..OpenOptions::default()
    };
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(dir.path().join("image"), options).unwrap());
    let mut disk = UringDisk::new(devices, 8).unwrap();
    let mut done = Vec::new();
    for tag in 0..5000 {
        while disk.in_flight() >= 32 {
            disk.reap(true, &mut done);
            done.clear();
        }
        let buffer = Buffer::Owned(OwnedBuffer::zeroed(512));
        disk.submit(Op {
            tag,
            device,
            kind: OpKind::Read { offset: 0, buffer },
        });
    }
    assert!(disk.entries.len() <= 32 && disk.iovecs.len() <= 32 && disk.ready.capacity() <= 64);
}

#[test]
fn deferred_mode_is_used_where_the_kernel_has_it() {
    let disk = UringDisk::new(Devices::new(), 8).unwrap();
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    assert_eq!(
        disk.ring.params().is_setup_single_issuer(),
        version >= (6, 1),
        "{release}"
    );
}

/// A disk with one file, and its device.
fn disk(apart: bool) -> (tempfile::TempDir, UringDisk, DeviceId) {
    let (dir, mut file) = file(1 << 20);
    file.set_flushes_apart(apart);
    let devices = Devices::new();
    let device = devices.add(file);
    (dir, UringDisk::new(devices, 8).unwrap(), device)
}

/// What has ended after one round through the kernel.
fn after_one_round(disk: &mut UringDisk, device: DeviceId, durable: bool) -> Vec<Done> {
    let kind = OpKind::Write {
        offset: 512,
        buffer: Buffer::Owned(OwnedBuffer::zeroed(4096)),
        durable,
    };
    disk.submit(Op {
        tag: 1,
        device,
        kind,
    });
    let mut done = Vec::new();
    disk.fill_queue(&mut WINDOW.clone(), &mut done);
    disk.enter(Wait::Ever);
    disk.take_completions(&mut done);
    done
}

#[test]
fn a_durable_write_to_a_file_that_flushes_apart_ends_after_its_flush() {
    let (_dir, mut disk, device) = disk(true);
    assert_eq!(after_one_round(&mut disk, device, false).len(), 1);
    let mut done = after_one_round(&mut disk, device, true);
    assert!(done.is_empty(), "it is written and not flushed");
    let works: Vec<_> = disk.entries.iter().flatten().map(|e| &e.work).collect();
    assert!(matches!(*works, [Action::Sync(_)]));
    disk.reap(true, &mut done);
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].result, Ok(()));
    assert!(matches!(&done[0].buffer, Some(Buffer::Owned(b)) if b.len() == 4096));
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn a_durable_write_to_another_file_is_one_call() {
    let (_dir, mut disk, device) = disk(false);
    assert_eq!(after_one_round(&mut disk, device, true).len(), 1);
}

#[test]
fn a_failed_durable_write_is_not_flushed() {
    let (_dir, mut disk, device) = disk(true);
    let failed = {
        let (place, file) = disk.devices.acquire(device).unwrap();
        let buffer = Buffer::Owned(OwnedBuffer::zeroed(512));
        let direction = Direction::Write { durable: true };
        let transfer = Transfer::new(file, direction, 0, buffer, Iovecs::default()).unwrap();
        let work = Action::Transfer(transfer);
        Entry {
            tag: 1,
            place,
            work,
        }
    };
    let (entry, next) = disk.sync_after(failed, Next::Finished(Err(Errno::EIO)));
    assert!(matches!(entry.work, Action::Transfer(_)));
    assert_eq!(next, Next::Finished(Err(Errno::EIO)));
    disk.devices.release(entry.place);
}

/// Operations of a ring pass no filter of system calls.
#[test]
fn a_ring_refuses_what_no_disk_needs() {
    let mut ring = build::ring(8).unwrap();
    ring.submitter().register_enable_rings().unwrap();
    let nowhere = types::Fd(-1);
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/dev/null".as_ptr());
    let entries = [
        (opcode::Nop::new().build(), 0),
        (open.build(), -libc::EACCES),
        (
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            -libc::EACCES,
        ),
        (opcode::Shutdown::new(nowhere, 0).build(), -libc::EACCES),
        (opcode::Close::new(nowhere).build(), -libc::EACCES),
        (
            opcode::Read::new(nowhere, std::ptr::null_mut(), 0).build(),
            -libc::EBADF,
        ),
        (
            opcode::Nop::new().build().flags(squeue::Flags::ASYNC),
            -libc::EACCES,
        ),
    ];
    for (entry, expected) in entries {
        // SAFETY: the name is static, and nothing else points at memory.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submitter().submit_and_wait(1).unwrap();
        let result = ring.completion().next().unwrap().result();
        assert_eq!(result, expected, "{entry:?}");
    }
    let again = ring.submitter().register_eventfd(0);
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EACCES));
}
