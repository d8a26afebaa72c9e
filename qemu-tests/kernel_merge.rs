//! The same store merged by Linux's `snapshot-merge` and by `snapback merge`, both in one
//! guest, on the same kind of disk.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::daemon::offline;
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const SIZE: u64 = 64 * MIB;
const SECTORS: u64 = SIZE / 512;
const SEED: u64 = 31;
/// Sectors that a store of this chunk size uses without exceptions.
const EMPTY: u64 = 16;

/// A file system with the program and the libraries that it is linked with.
fn program_disk(bench: &Bench) -> PathBuf {
    let folder = bench.path("program");
    fs::create_dir(&folder).unwrap();
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    fs::copy(program, folder.join("snapback")).unwrap();
    let list = Command::new("ldd").arg(program).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for library in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = library.rsplit('/').next().unwrap();
        fs::copy(library, folder.join(name)).unwrap();
    }
    let image = bench.blank_disk("program.img", 256 * MIB);
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&folder, &image])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    image
}

fn timed(guest: &mut Guest, command: &str) -> Duration {
    let start = Instant::now();
    guest.run(command);
    start.elapsed()
}

/// The times are printed for docs/performance.md; the contents are judged.
#[test]
fn linux_and_snapback_merge_a_store_into_the_same_origin() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let before = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    // Small writes all over the disk.
    guest.start_hammer("/dev/vda", SEED, 0, SIZE / 4096);
    guest.hammer_on(3000);
    guest.stop_hammer();
    guest.quit();
    daemon.terminate();
    Sums::of_file(&origin).assert_differs(&before, "what the guest wrote with the disk before");
    let cow = bench.path("s1.cow");
    println!("{}", offline(&["info", cow.to_str().unwrap()]).trim());
    for (from, to) in [(&origin, "linux.img"), (&cow, "linux.cow")] {
        fs::copy(from, bench.path(to)).unwrap();
    }

    let disks = ["linux.img", "linux.cow"].map(|name| Attach::Raw(bench.path(name)));
    let [first, second] = disks;
    let program = program_disk(&bench);
    let disks = [
        first,
        second,
        Attach::Raw(origin.clone()),
        Attach::Raw(cow),
        Attach::Raw(program),
    ];
    let mut guest = bench.boot("linux", &disks);
    guest.run("mount -o ro /dev/vde /mnt");
    let run = "/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/snapback";
    let started = timed(&mut guest, &format!("{run} --version"));
    let here = timed(
        &mut guest,
        &format!("{run} merge --origin /dev/vdc --cow /dev/vdd"),
    );
    let there = timed(
        &mut guest,
        &format!(
            "dmsetup create merge --table '0 {SECTORS} snapshot-merge /dev/vda /dev/vdb P 8' && \
             until dmsetup status merge | grep -q ' {EMPTY}/[0-9]* {EMPTY}$'; do sleep 0.02; done; \
             dmsetup remove merge"
        ),
    );
    println!(
        "merged by Linux in {:.2} s, by snapback in {:.2} s, of which its start takes {:.2} s",
        there.as_secs_f64(),
        here.as_secs_f64(),
        started.as_secs_f64()
    );
    guest.run("umount /mnt && sync");
    guest.assert_no_io_error();
    guest.quit();
    Sums::of_file(&bench.path("linux.img")).assert_same(&before, "the origin that Linux merged");
    Sums::of_file(&origin).assert_same(&before, "the origin that snapback merged");
}
