#![allow(clippy::unwrap_used)]
use super::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::unix::fs::FileExt;

fn log(len: u64) -> (DirtyLog, File) {
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    let message = VhostUserLog::new(len, 0);
    let gone = Arc::new(EventFlag::new().unwrap());
    let log = DirtyLog::map(&message, file.try_clone().unwrap(), false, &gone).unwrap();
    (log, file)
}

fn pages(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let bits = (0_u64..).zip(bytes);
    bits.flat_map(|(at, byte)| {
        (0..8)
            .filter(move |b| byte >> b & 1 != 0)
            .map(move |b| at * 8 + b)
    })
    .collect()
}

#[test]
fn exactly_the_pages_of_a_range_are_marked() {
    for first in [0, 1, 6, 7, 8, 13, 63, 64] {
        for count in [1, 2, 7, 8, 9, 16, 17, 40] {
            for (skip, less) in [(0, 0), (4095, 4095), (1, 0), (0, 4095)] {
                let (begin, end) = (first * 4096 + skip, (first + count) * 4096 - less);
                if begin >= end {
                    continue;
                }
                let (log, file) = log(16);
                log.mark(begin, end - begin);
                let want: Vec<u64> = (first..first + count).collect();
                assert_eq!(pages(&file), want, "{begin} to {end}");
            }
        }
    }
}

#[test]
fn what_was_marked_stays_and_what_is_outside_is_left_out() {
    let (log, file) = log(2);
    log.mark(3 * 4096, 1);
    log.mark(5 * 4096, 0);
    log.mark(u64::MAX - 1, 2);
    log.mark(u64::MAX, 2);
    log.mark(16 * 4096, 1);
    log.mark(14 * 4096, 10 * 4096);
    assert_eq!(pages(&file), [3, 14, 15]);
    assert!(log.covers(16 * 4096 - 1) && !log.covers(16 * 4096));
}

#[test]
fn a_log_that_cannot_be_mapped_is_refused_by_name() {
    let gone = Arc::new(EventFlag::new().unwrap());
    let refuse = |len, offset, file: File| {
        DirtyLog::map(&VhostUserLog::new(len, offset), file, false, &gone)
            .unwrap_err()
            .to_string()
    };
    let memory = |len| {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    };
    let cases = [
        (
            refuse(4097, 0, memory(4096)),
            "needs 4 KiB (4097 bytes) from offset 0 of a file of 4 KiB",
        ),
        (refuse(4096, 1, memory(8192)), "at offset 1: "),
        (
            refuse(u64::MAX - 4096, 4096, memory(4096)),
            "are enough for every guest",
        ),
        (
            refuse(1 << 37, u64::MAX - 4095, memory(4096)),
            "of a file of 4 KiB",
        ),
        (
            refuse(8, 0, File::from(rustix::pipe::pipe().unwrap().0)),
            "is backed by a pipe",
        ),
        (
            refuse(8, 0, File::open("/proc/self/status").unwrap()),
            "the dirty log",
        ),
    ];
    for (message, part) in cases {
        assert!(
            message.starts_with("the dirty log") && message.contains(part),
            "{message}"
        );
    }
}
