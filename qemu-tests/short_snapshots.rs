//! A snapshot shorter than its origin, here and in Linux side by side: one guest
//! does the same to both (O06 of `docs/checklist.md`).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::bench::Bench;
use crate::disk::MIB;
use crate::guest::{Attach, Guest};

/// The origin's sectors, when the snapshot was taken and now.
const SHORT: u64 = 16 * MIB / 512 - 3;
const LONG: u64 = 20 * MIB / 512;
const COW: u64 = 8 * MIB;

/// Device-mapper names of the origin there and here, and of the snapshot.
const ORIGINS: [&str; 2] = ["orig", "here-orig"];
const SNAPSHOTS: [&str; 2] = ["snap", "here-snap"];

/// The guest, and the disk that it takes its writes from: `disktool play` sends
/// each as one request, past the page cache.
struct Writer {
    guest: Guest,
    script: File,
    writes: u64,
}

impl Writer {
    /// Writes the same `count` sectors to both of these disks.
    fn write(&mut self, disks: [&str; 2], sector: u64, count: u64) {
        self.writes += 1;
        let number = self.writes;
        let lines = disks.map(|disk| format!("write {disk} {sector} {count} {number}\n"));
        let script = format!("{}\0", lines.concat());
        self.script.write_all_at(script.as_bytes(), 0).unwrap();
        let said = self.guest.run("disktool play /dev/vde /dev/vde 0 23");
        assert_eq!(said, "0 ok\n1 ok\n");
    }
}

#[test]
fn a_snapshot_shorter_than_its_origin_is_what_it_is_in_linux() {
    for (chunk, first) in [(32, ORIGINS), (128, SNAPSHOTS)] {
        let bench = Bench::new();
        let origin = bench.filled_disk("origin.img", LONG * 512, 23);
        fs::copy(&origin, bench.path("linux.img")).unwrap();
        bench.blank_disk("linux.cow", COW);
        let script = bench.blank_disk("script", MIB);
        let all = fs::read(&origin).unwrap();
        let file = File::options().append(true).open(&origin).unwrap();
        file.set_len(SHORT * 512).unwrap();
        let snapshot = format!(
            "name=s1,cow={},size=8M,chunk-size={},socket={}",
            bench.text("s1.cow"),
            chunk * 512,
            bench.text("s1.sock")
        );
        bench.serve(&["--snapshot", &snapshot]).terminate();
        (&file).write_all(&all[SHORT as usize * 512..]).unwrap();
        let daemon = bench.serve(&["--accept-changes"]);
        let mut guest = bench.boot(
            "g",
            &[
                Attach::Raw(bench.path("linux.img")),
                Attach::Raw(bench.path("linux.cow")),
                bench.view("origin"),
                bench.view("s1"),
                Attach::Raw(script.clone()),
            ],
        );
        guest.run(&format!(
            "dmsetup create snap --table '0 {SHORT} snapshot /dev/vda /dev/vdb P {chunk}' && \
             dmsetup create orig --table '0 {LONG} snapshot-origin /dev/vda' && \
             dmsetup create here-orig --table '0 {LONG} linear /dev/vdc 0' && \
             dmsetup create here-snap --table '0 {SHORT} linear /dev/vdd 0'"
        ));
        let script = File::options().write(true).open(script).unwrap();
        let mut w = Writer {
            guest,
            script,
            writes: 0,
        };
        let same = |w: &mut Writer, used: u64| {
            let there = w.guest.run("dmsetup status snap");
            let here = daemon.run(&["status", "s1", "--dm"]);
            let line = format!("0 {SHORT} snapshot {used}/{} {}\n", COW / 512, 2 * chunk);
            println!("Linux: {}, here: {}", there.trim(), here.trim());
            assert_eq!((there, here), (line.clone(), format!("s1: {line}")));
        };
        let empty = 2 * chunk;
        same(&mut w, empty);
        let last = SHORT / chunk * chunk;
        // Behind the end: in the snapshot's last chunk, in the next, and far away.
        let next = last + chunk;
        for (sector, count) in [(SHORT, 1), (next - 1, 1), (next, 8), (LONG - 8, 8)] {
            w.write(ORIGINS, sector, count);
            same(&mut w, empty);
        }
        // Within, and at the end of the snapshot, whose last chunk is copied whole.
        w.write(ORIGINS, 100, 3);
        w.write(first, SHORT - 2, 2);
        same(&mut w, empty + 2 * chunk);
        w.write(ORIGINS, SHORT - 1, 3);
        w.write(SNAPSHOTS, SHORT - 1, 1);
        w.write(SNAPSHOTS, 2 * chunk, chunk);
        w.write(ORIGINS, SHORT, 2);
        same(&mut w, empty + 3 * chunk);
        let mut guest = w.guest;
        for [there, here] in [ORIGINS, SNAPSHOTS] {
            let linux = guest.sums(&format!("/dev/mapper/{there}"));
            let ours = guest.sums(&format!("/dev/mapper/{here}"));
            ours.assert_same(&linux, there);
        }
        guest.run("dmsetup remove_all && sync");
        let table = daemon.run(&["table"]);
        let line = format!("s1: 0 {SHORT} snapshot ");
        assert!(table.contains(&line), "{table}");
        let files = |name: [&str; 2]| name.map(|name| fs::read(bench.path(name)).unwrap());
        for names in [["linux.img", "origin.img"], ["linux.cow", "s1.cow"]] {
            let [there, here] = files(names);
            assert!(there == here, "{names:?} differ");
        }

        // The merges differ, as `docs/semantics.md` says: Linux writes whole chunks.
        guest.run(&format!(
            "dmsetup create merge --table '0 {LONG} snapshot-merge /dev/vda /dev/vdb P {chunk}' && \
             until dmsetup status merge | grep -q ' {empty}/[0-9]* {empty}$'; do sleep 0.1; done; \
             dmsetup remove merge && sync"
        ));
        guest.assert_no_io_error();
        guest.quit();
        daemon.run(&["merge", "s1", "--wait"]);
        daemon.terminate();
        let [there, here] = files(["linux.img", "origin.img"]);
        let sectors = there.chunks(512).zip(here.chunks(512));
        let differ: Vec<u64> = (0..)
            .zip(sectors)
            .filter(|(_, (a, b))| a != b)
            .map(|(n, _)| n)
            .collect();
        // What the origin got behind the end after the last chunk was copied out.
        assert_eq!(differ, [SHORT, SHORT + 1]);
    }
}
