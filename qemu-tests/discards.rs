//! Guests that trim: what their discards free, and that no snapshot pays for it.
//! And Linux's dm-snapshot as the judge of a snapshot's own discards.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use snapback::control::api::State;

use crate::bench::Bench;
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const SIZE: u64 = 64 * MIB;
const SECTORS: u64 = SIZE / 512;
const SEED: u64 = 23;

/// Bytes that a file takes up.
fn space(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// O11 of `docs/checklist.md`: mkfs, fstrim and blkdiscard of a disk with a snapshot.
#[test]
fn a_guest_that_trims_frees_its_disk_and_costs_its_snapshot_nothing() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin"), bench.view("s1")]);
    let limits = guest.run(
        "cd /sys/block && cat vd[ab]/queue/discard_max_bytes vd[ab]/queue/write_zeroes_max_bytes",
    );
    println!("discard and write-zeroes limits of both views: {limits:?}");
    let limits: Vec<u64> = limits.lines().map(|n| n.parse().unwrap()).collect();
    assert_eq!(limits, [32 * MIB, 0, 4 * MIB, 4 * MIB]);

    // Its tables are written as zeroes, the rest is discarded.
    let used = || daemon.snapshot("s1").allocated_sectors * 512;
    guest.run("mkfs.ext4 -q -E discard,lazy_itable_init=0,lazy_journal_init=0 /dev/vda");
    println!("mkfs copied {} KiB of 64 MiB out", used() >> 10);
    assert!(used() < SIZE / 4, "mkfs cost {} bytes", used());
    guest
        .sums("/dev/vdb")
        .assert_same(&first, "the snapshot after mkfs");

    // A file's blocks are copied out, then freed.
    guest.run(
        "mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=24 2>/dev/null && sync && \
         rm /mnt/file && sync && echo 3 >/proc/sys/vm/drop_caches && umount /mnt && mount -t ext4 /dev/vda /mnt && sync",
    );
    let (used_before, space_before) = (used(), space(&origin));
    guest.run("/bin/fstrim -v /mnt");
    println!(
        "fstrim freed {} KiB, and the store grew by {} KiB",
        (space_before - space(&origin)) >> 10,
        (used() - used_before) >> 10
    );
    assert!(space_before - space(&origin) >= 20 * MIB);
    // The mounted file system writes a block of its own now and then.
    assert!(used() - used_before <= 64 << 10);
    guest.run("umount /mnt && e2fsck -fn /dev/vda >/dev/null");
    guest
        .sums("/dev/vdb")
        .assert_same(&first, "the snapshot after fstrim");

    let used_before = used();
    guest.run("blkdiscard /dev/vda");
    assert_eq!(used(), used_before, "blkdiscard copies nothing");
    guest
        .sums("/dev/vdb")
        .assert_same(&first, "the snapshot after blkdiscard");
    assert_eq!(daemon.snapshot("s1").state, State::Active);
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
}

/// The same on Linux's devices and on views: chunks of 4 KiB; the snapshot's guest
/// has written chunk 8 and 9 and a part of 20, the origin's guest chunks 16 and 17.
fn discard_everything_once(guest: &mut Guest, origin: &str, snapshot: &str) -> Sums {
    guest.run("yes snapback | dd of=/tmp/data bs=512 count=64 iflag=fullblock 2>/dev/null");
    let write = |device: &str, sector: u64, sectors: u64| {
        format!(
            "dd if=/tmp/data of={device} bs=512 seek={sector} count={sectors} oflag=direct conv=notrunc 2>/dev/null"
        )
    };
    guest.run(&write(snapshot, 64, 16));
    guest.run(&write(snapshot, 163, 2));
    guest.run(&write(origin, 128, 16));
    for (what, sector, sectors) in [
        ("a whole chunk of the snapshot's own", 64, 8),
        ("a part of one", 74, 3),
        ("a whole chunk that was copied out", 128, 8),
        ("a part of one", 137, 7),
        ("the chunk that was written in part", 160, 8),
        ("chunks without an exception", 400, 64),
        ("a part of one", 802, 3),
        ("all at once, from the middle of a chunk on", 1004, 3000),
    ] {
        println!("discard {what}");
        let (offset, length) = (sector * 512, sectors * 512);
        guest.run(&format!("blkdiscard -o {offset} -l {length} {snapshot}"));
    }
    guest.sums(snapshot)
}

/// N16 and N17 of `docs/checklist.md`, with the real kernel as the judge.
#[test]
fn a_snapshots_discards_leave_what_linux_leaves() {
    let bench = Bench::new();
    let linux_origin = bench.filled_disk("linux.img", SIZE, SEED);
    let linux_cow = bench.blank_disk("linux.cow", 96 * MIB);
    let mut linux = bench.boot(
        "linux",
        &[
            Attach::RawDiscard(linux_origin),
            Attach::RawDiscard(linux_cow),
        ],
    );
    linux.run(&format!(
        "dmsetup create snap --table '0 {SECTORS} snapshot /dev/vda /dev/vdb P 8 1 discard_zeroes_cow' && \
         dmsetup create orig --table '0 {SECTORS} snapshot-origin /dev/vda'"
    ));
    let there = discard_everything_once(&mut linux, "/dev/mapper/orig", "/dev/mapper/snap");
    let (table_there, status_there) = (
        linux.run("dmsetup table snap"),
        linux.run("dmsetup status snap"),
    );
    linux.assert_no_io_error();
    linux.quit();

    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K") + ",discard-zeroes-cow";
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin"), bench.view("s1")]);
    let here = discard_everything_once(&mut guest, "/dev/vda", "/dev/vdb");
    here.assert_differs(&first, "the snapshot with the first origin");
    here.assert_same(&there, "the snapshot served here with Linux's");
    let line = |text: &str| {
        let from = text.find(" P 8").or(text.find(" snapshot "));
        text[from.unwrap()..].lines().next().unwrap().to_owned()
    };
    let tables = daemon.run(&["table"]);
    assert_eq!(line(&tables), line(&table_there));
    let status = daemon.run(&["status", "s1", "--dm"]);
    assert_eq!(line(&status), line(&status_there));
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
}
