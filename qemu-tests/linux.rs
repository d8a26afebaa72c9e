//! A real Linux dm-snapshot reads what snapback wrote, and the other way round.

use crate::bench::Bench;
use crate::daemon::offline;
use crate::disk::{MIB, Sums};
use crate::guest::Attach;

const SIZE: u64 = 64 * MIB;
const SECTORS: u64 = SIZE / 512;
const SEED: u64 = 19;

/// From a `dmsetup status` line of one device or of all: `snapshot A/B C`.
fn usage(status: &str) -> String {
    let start = status
        .find(" snapshot ")
        .unwrap_or_else(|| panic!("no snapshot status: {status}"));
    status[start..].trim().to_owned()
}

#[test]
fn linux_loads_a_store_that_snapback_wrote_with_the_same_view() {
    for (chunk_size, sectors) in [("4K", 8), ("64K", 128)] {
        let bench = Bench::new();
        let origin = bench.filled_disk("origin.img", SIZE, SEED);
        let snapshot = bench.snapshot("s1", chunk_size);
        let daemon = bench.serve(&["--snapshot", &snapshot]);
        let mut guest = bench.boot("g", &[bench.view("origin"), bench.view("s1")]);
        guest.start_hammer("/dev/vda", SEED, 0, 4096);
        guest.hammer_on(400);
        guest.stop_hammer();
        guest.start_hammer("/dev/vdb", SEED, 2048, 4096);
        guest.hammer_on(400);
        guest.stop_hammer();
        let here = guest.sums("/dev/vdb");
        let status_here = usage(&daemon.run(&["status", "s1", "--dm"]));
        guest.assert_no_io_error();
        guest.quit();
        daemon.terminate();
        here.assert_differs(&Sums::of_file(&origin), "the snapshot with the origin");

        let mut linux = bench.boot(
            "linux",
            &[Attach::Raw(origin), Attach::Raw(bench.path("s1.cow"))],
        );
        linux.run(&format!(
            "dmsetup create snap --table '0 {SECTORS} snapshot /dev/vda /dev/vdb P {sectors}'"
        ));
        let status_there = usage(&linux.run("dmsetup status snap"));
        println!("chunk size {chunk_size}: status here '{status_here}', in Linux '{status_there}'");
        assert_eq!(status_here, status_there);
        let there = linux.sums("/dev/mapper/snap");
        there.assert_same(&here, "the snapshot in Linux with the snapshot served here");
        linux.assert_no_io_error();
        linux.run("dmsetup remove snap && sync");
        linux.quit();
    }
}

#[test]
fn a_store_that_linux_wrote_is_served_and_merges_to_the_right_origin() {
    for sectors in [8, 32] {
        let bench = Bench::new();
        let origin = bench.filled_disk("origin.img", SIZE, SEED);
        let cow = bench.blank_disk("s1.cow", 96 * MIB);
        let mut linux = bench.boot(
            "linux",
            &[Attach::Raw(origin.clone()), Attach::Raw(cow.clone())],
        );
        // The snapshot first: an origin set up before it would split writes wrongly.
        linux.run(&format!(
            "dmsetup create snap --table '0 {SECTORS} snapshot /dev/vda /dev/vdb P {sectors}' && \
             dmsetup create orig --table '0 {SECTORS} snapshot-origin /dev/vda'"
        ));
        linux.start_hammer("/dev/mapper/orig", SEED, 0, 4096);
        linux.hammer_on(400);
        linux.stop_hammer();
        linux.start_hammer("/dev/mapper/snap", SEED, 2048, 4096);
        linux.hammer_on(400);
        linux.stop_hammer();
        let there = linux.sums("/dev/mapper/snap");
        println!("Linux wrote: {}", usage(&linux.run("dmsetup status snap")));
        linux.assert_no_io_error();
        linux.run("dmsetup remove snap && dmsetup remove orig && sync");
        linux.quit();
        let changed = Sums::of_file(&origin);
        changed.assert_differs(&there, "the origin with Linux's snapshot");

        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        println!("{}", offline(&["info", &text(&cow)]).trim());
        let snapshot = format!(
            "name=s1,cow={},socket={}",
            text(&cow),
            bench.text("s1.sock")
        );
        let daemon = bench.serve(&["--snapshot", &snapshot]);
        let mut guest = bench.boot("g", &[bench.view("s1"), bench.view("origin")]);
        guest
            .sums("/dev/vda")
            .assert_same(&there, "the snapshot served here with Linux's");
        guest
            .sums("/dev/vdb")
            .assert_same(&changed, "the origin served here with Linux's");
        guest.quit();
        daemon.terminate();

        offline(&["merge", "--origin", &text(&origin), "--cow", &text(&cow)]);
        Sums::of_file(&origin).assert_same(&there, "the merged origin with Linux's snapshot");
    }
}
