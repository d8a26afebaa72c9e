//! Long chains, large requests, and memory that suits no disk.

use std::fs;
use std::os::unix::fs::symlink;

use snapback::control::api::MergeRequest;
use vm_memory::{Bytes, GuestAddress};

use super::super::client::{
    Case, HIGH, HIGH_LEN, IN, IO_ERROR, OK, OUT, PARTS, PLAIN, UNSUPPORTED, WORK, WORK_LEN, run,
};
use super::super::common::stamps::{self, SECTOR};
use super::super::common::volume::Volume;
use super::super::raw::{INDIRECT, Raw, Ring, WRITE};
use super::super::world::{View, World};
use super::{DISCARD, GET_ID, Part, put, put_indirect};

/// Ends of segments: `len` bytes from [`HIGH`] on, cut into `count`.
fn cut(len: u32, count: u32, flags: u16) -> Vec<Part> {
    let piece = len / count;
    (0..count)
        .map(|i| {
            let last = i + 1 == count;
            let size = if last { len - i * piece } else { piece };
            (HIGH + u64::from(i * piece), size, flags)
        })
        .collect()
}

/// The sectors from `first` on are in memory at [`HIGH`], but for those that other requests
/// write.
fn check(what: &str, raw: &Raw, first: u64, len: usize) {
    let end = first + (len / SECTOR) as u64;
    for (from, to) in [(first, WORK), (WORK + WORK_LEN, end)] {
        let to = to.min(end);
        if from < to {
            let place = HIGH + (from - first) * SECTOR as u64;
            let data = super::bytes(raw, place, (to - from) as usize * SECTOR);
            let expected: Vec<u64> = (from..to).collect();
            stamps::check(what, from, &data, &expected);
        }
    }
}

/// A read of `len` bytes from the disk's beginning, and the same data written back.
fn both_ways(cases: &mut Vec<Case>, name: &'static str, ring: u16, len: u32, count: u32) {
    for kind in [IN, OUT] {
        cases.push(one_way(name, kind, ring, len, count));
    }
}

fn one_way(name: &'static str, kind: u32, ring: u16, len: u32, count: u32) -> Case {
    let flags = if kind == IN { WRITE } else { 0 };
    let case = Case::ring(name, OK, move |raw, ring| {
        let mut data = vec![0xee; len as usize];
        if kind == OUT {
            stamps::fill(&mut data, 0);
        }
        raw.memory.write_slice(&data, GuestAddress(HIGH)).unwrap();
        let parts = cut(len, count, flags);
        if parts.len() + 2 > usize::from(ring.size) {
            put_indirect(raw, ring, kind, 0, &parts);
        } else {
            put(raw, ring, kind, 0, &parts);
        }
        raw.offer(ring, &[0]);
    });
    let case = case.with(INDIRECT).on_a_ring_of(ring);
    match kind {
        IN => case.then(move |raw, _| check("what was read", raw, 0, len as usize)),
        _ => case.on_read_only(IO_ERROR),
    }
}

#[test]
fn chains_may_be_longer_than_their_ring_and_requests_larger_than_advised() {
    let mut cases = Vec::new();
    // As viostor does, with an indirect table.
    both_ways(
        &mut cases,
        "515 segments on a ring of 128",
        128,
        515 * 4096,
        515,
    );
    both_ways(
        &mut cases,
        "a segment more than advised",
        16,
        127 * 512,
        127,
    );
    both_ways(&mut cases, "1022 segments of a page", 16, 1022 * 4096, 1022);
    both_ways(
        &mut cases,
        "1022 segments of a sector",
        16,
        1022 * 512,
        1022,
    );
    both_ways(&mut cases, "the longest chain of a ring", 16, 14 * 4096, 14);
    both_ways(
        &mut cases,
        "the longest chain of a small ring",
        4,
        2 * 4096,
        2,
    );
    // A write of all would end the merge.
    for count in [1, 2, 1022] {
        cases.push(one_way("the whole disk", IN, 16, 16 << 20, count));
    }
    run(&World::new(), &cases);
}

/// 1024 descriptors are an iovec of the kernel; more come back with an error.
#[test]
fn a_chain_of_more_than_1024_descriptors_comes_back_with_an_error() {
    let mut cases = Vec::new();
    for (name, count) in [("1023 segments", 1023), ("4096 segments", 4096)] {
        for kind in [IN, OUT, GET_ID, DISCARD, 77] {
            let flags = if kind == IN { WRITE } else { 0 };
            let case = Case::ring(name, IO_ERROR, move |raw, ring| {
                put_indirect(raw, ring, kind, 0, &cut(count * 512, count, flags));
                raw.offer(ring, &[0]);
            });
            cases.push(case.with(INDIRECT));
        }
    }
    let unknown = Case::ring(
        "1022 segments of nothing known",
        UNSUPPORTED,
        |raw, ring| {
            put_indirect(raw, ring, 77, 0, &cut(1022 * 512, 1022, 0));
            raw.offer(ring, &[0]);
        },
    );
    cases.push(unknown.with(INDIRECT));
    run(&World::new(), &cases);
}

/// Segments whose lengths are no whole sectors, while their sum is.
fn odd_lengths() -> Vec<Vec<u32>> {
    vec![
        // Of the FAT driver of Windows.
        vec![48128, 128, 256, 128],
        vec![128, 48128, 128, 256],
        vec![1, 511],
        vec![511, 1, 512],
        vec![3, 5, 7, 497],
        vec![4096, 4, 4092, 4096],
        vec![1; 512],
        vec![255, 257, 65536, 1, 1023],
    ]
}

/// The segments one behind the other, `gap` bytes between them, from `start` on.
fn scattered(lengths: &[u32], start: u64, gap: u64, flags: u16) -> Vec<Part> {
    let mut at = start;
    let parts = lengths.iter().map(|len| {
        let part = (at, *len, flags);
        at += u64::from(*len) + gap;
        part
    });
    parts.collect()
}

/// Moves `data` to the segments, or what they hold to it.
fn gather(raw: &Raw, parts: &[Part]) -> Vec<u8> {
    let pieces = parts
        .iter()
        .map(|(at, len, _)| super::bytes(raw, *at, *len as usize));
    pieces.collect::<Vec<_>>().concat()
}

fn scatter(raw: &Raw, parts: &[Part], data: &[u8]) {
    let mut rest = data;
    for (at, len, _) in parts {
        let (now, later) = rest.split_at(*len as usize);
        raw.memory.write_slice(now, GuestAddress(*at)).unwrap();
        rest = later;
    }
}

fn carry_out(raw: &Raw, ring: &mut Ring, kind: u32, sector: u64, parts: &[Part]) -> (u8, u32) {
    if parts.len() > 14 {
        put_indirect(raw, ring, kind, sector, parts);
    } else {
        put(raw, ring, kind, sector, parts);
    }
    raw.run(ring, &[0]);
    let (_, len) = raw.used(ring, raw.used_index(ring).wrapping_sub(1));
    (raw.status(ring, 0), len)
}

/// Reads and writes back with segments that are odd in length and place.
fn read_and_write_oddly(what: &str, raw: &Raw, ring: &mut Ring, writable: bool) {
    for (round, lengths) in odd_lengths().into_iter().enumerate() {
        for (start, gap) in [(0, 0), (4, 0), (4, 4), (1, 3), (508, 12), (4095, 1)] {
            let (sector, len) = (8 + 7 * round as u64, lengths.iter().sum::<u32>());
            let what = format!("{what}: {lengths:?} from {start}, {gap} apart");
            let parts = scattered(&lengths, HIGH + start, gap, WRITE);
            let (status, used) = carry_out(raw, ring, IN, sector, &parts);
            assert_eq!((status, used), (0, len + 1), "{what}");
            let sectors = u64::from(len) / SECTOR as u64;
            let expected: Vec<u64> = (sector..sector + sectors).collect();
            stamps::check(&what, sector, &gather(raw, &parts), &expected);
            let mut data = vec![0; len as usize];
            stamps::fill(&mut data, sector);
            let parts = scattered(&lengths, HIGH + start, gap, 0);
            scatter(raw, &parts, &data);
            let (status, _) = carry_out(raw, ring, OUT, sector, &parts);
            assert_eq!(status, u8::from(!writable), "{what}");
        }
    }
}

/// A daemon with a disk on a file system of a disk, where files are read and written past
/// the page cache, and room for requests of 32 MiB.
struct Direct {
    volume: Volume,
    // Removed after the daemon has ended.
    _folder: tempfile::TempDir,
}

/// Of the disk, in sectors: 40 MiB.
const DISK: u64 = 80 << 10;
/// A request of OVMF, in bytes.
const LARGE: u32 = 32 << 20;

impl Direct {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(DISK);
        let (disk, link) = (folder.path().join("disk.img"), volume.path("disk.img"));
        fs::copy(&link, &disk).unwrap();
        fs::remove_file(&link).unwrap();
        symlink(&disk, &link).unwrap();
        let cow = |name: &str, more: &str| {
            let cow = folder.path().join(format!("{name}.cow"));
            let cow = cow.display();
            format!("name={name},cow={cow},size=60M,chunk-size=4K,socket={name}.sock{more}")
        };
        volume.start(&[
            "--socket-path",
            "origin.sock",
            "--snapshot",
            &cow("snapshot", ""),
            "--snapshot",
            &cow("read-only", ",read-only"),
            "--snapshot",
            &cow("merged", ""),
        ]);
        Self {
            volume,
            _folder: folder,
        }
    }

    fn guest(&self, socket: &str) -> (Raw, Ring) {
        let path = self.volume.path(socket);
        let mut raw = Raw::with_memory(&path, PLAIN | INDIRECT, &PARTS);
        raw.set_memory();
        let ring = raw.start(0);
        (raw, ring)
    }

    /// From now on the origin's socket shows a merge, of which nothing is done yet.
    fn merge(&self) {
        let merge = MergeRequest {
            snapshot: "merged".into(),
            follow: false,
            rate: Some(4096),
            now: true,
        };
        self.volume.client().merge(&merge).unwrap();
        self.volume.client().pause_merge().unwrap();
        assert!(self.volume.status().merge.unwrap().chunks_left > 0);
    }

    /// Runs `test` on every kind of view. All show what the disk had first; whether they can
    /// be written is the last argument.
    fn on_all(&self, test: impl Fn(&str, &Raw, &mut Ring, bool)) {
        let run = |view: View, socket| {
            let (raw, mut ring) = self.guest(socket);
            test(
                &format!("{view:?}"),
                &raw,
                &mut ring,
                view != View::ReadOnly,
            );
        };
        run(View::Snapshot, "snapshot.sock");
        run(View::ReadOnly, "read-only.sock");
        run(View::Origin, "origin.sock");
        self.merge();
        run(View::Merge, "origin.sock");
    }
}

/// OVMF has one segment for a whole request.
#[test]
fn thirty_two_mebibytes_in_one_or_two_descriptors_are_one_request() {
    const { assert!(HIGH_LEN >= LARGE as usize) }
    let direct = Direct::new();
    direct.on_all(|what, raw, ring, writable| {
        for count in [1, 2] {
            let parts = cut(LARGE, count, WRITE);
            super::fill(raw, HIGH, 0xee, LARGE as usize);
            let done = carry_out(raw, ring, IN, 8, &parts);
            assert_eq!(done, (0, LARGE + 1), "{what}");
            check(what, raw, 8, LARGE as usize);
            // The same is written back.
            let parts = cut(LARGE, count, 0);
            let done = carry_out(raw, ring, OUT, 8, &parts);
            assert_eq!(done, (u8::from(!writable), 1), "{what}");
        }
        super::fill(raw, HIGH, 0xee, LARGE as usize);
        let done = carry_out(raw, ring, IN, 8, &cut(LARGE, 1, WRITE));
        assert_eq!(done, (0, LARGE + 1), "{what}");
        check(what, raw, 8, LARGE as usize);
    });
}

#[test]
fn segments_of_any_length_at_any_address_are_read_and_written_past_the_page_cache() {
    let direct = Direct::new();
    // So that there is something to merge.
    let (raw, mut ring) = direct.guest("origin.sock");
    let mut data = vec![0; 2 << 20];
    stamps::fill(&mut data, 0);
    raw.memory.write_slice(&data, GuestAddress(HIGH)).unwrap();
    let parts = cut(2 << 20, 1, 0);
    assert_eq!(carry_out(&raw, &mut ring, OUT, 0, &parts).0, 0);
    drop(raw);
    direct.on_all(read_and_write_oddly);
}

#[test]
fn segments_of_any_length_at_any_address_are_read_and_written_in_memory() {
    let world = World::new();
    for view in View::ALL {
        let mut raw = Raw::with_memory(&world.path(view), PLAIN | INDIRECT, &PARTS);
        raw.set_memory();
        let mut ring = raw.start(0);
        let what = format!("{view:?}");
        read_and_write_oddly(&what, &raw, &mut ring, view != View::ReadOnly);
    }
    world.check();
    world.end();
}
