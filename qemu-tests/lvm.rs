//! LVM snapshots of a real lvm2: taken over, served or merged here, and given
//! back. The commands are those of `docs/lvm.md`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Bench, guest_images};
use crate::daemon::{PROGRAM, offline};
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const GUIDE: &str = include_str!("../docs/lvm.md");
const FILES: &str = "mkdir -p /mnt/d && for i in 1 2 3 4 5 6 7 8; do \
     dd if=/dev/urandom of=/mnt/d/$i bs=64k count=$((i * 4)) 2>/dev/null || exit 1; done; \
     cd /mnt && sha256sum d/* >/tmp/list && sync";
const CHECK_FILES: &str = "cd /mnt && sha256sum -c /tmp/list | grep -c ': OK'";

/// A guest with lvm2 and with this snapback; the physical volume is its first disk.
fn boot(bench: &Bench, name: &str, disk: &Path) -> Guest {
    let extra = bench.path("extra");
    let initramfs = bench.path("initramfs-lvm");
    if !initramfs.exists() {
        let script = "mkdir -p \"$1/bin\" && strip -o \"$1/bin/snapback\" \"$2\" && cd \"$1\" && \
             find . | cpio --quiet -o -H newc -R 0:0 | cat \"$3/initramfs\" \"$3/lvm.cpio\" - >\"$4\"";
        let status = Command::new("sh")
            .args(["-ec", script, "sh"])
            .args([&extra, Path::new(PROGRAM), guest_images(), &initramfs])
            .status()
            .unwrap();
        assert!(status.success(), "the initramfs with lvm2: {status}");
    }
    let disks = [Attach::Raw(disk.to_owned())];
    Guest::boot_from(&initramfs, &bench.path(""), name, &disks, "")
}

/// `vg0/data`, 64 MiB, with a file system and files in it.
fn make_volume(guest: &mut Guest) {
    guest.run(
        "pvcreate -q /dev/vda && vgcreate -q vg0 /dev/vda && lvcreate -q --yes -n data -L 64M vg0",
    );
    guest.run("mkfs.ext4 -q /dev/vg0/data && mount /dev/vg0/data /mnt");
    guest.run(FILES);
}

/// Snapshot `vg0/before` of the mounted `vg0/data`, then changes to both.
fn snapshot_and_change(guest: &mut Guest) {
    guest.run("lvcreate --yes -s -n before -L 48M vg0/data");
    guest.run(
        "cd /mnt/d && rm 1 2 3 && dd if=/dev/urandom of=8 bs=64k count=32 conv=notrunc && \
         dd if=/dev/urandom of=/mnt/new bs=1M count=4 && cd / && umount /mnt",
    );
    guest.run(
        "mount /dev/vg0/before /mnt && dd if=/dev/urandom of=/mnt/fork bs=1M count=2 && umount /mnt",
    );
}

/// Runs one command, which must be in the guide, and shows it.
fn step(guest: &mut Guest, command: &str) -> String {
    assert_in_guide(command);
    println!("guest# {command}");
    let output = guest.run(command);
    println!("{}", output.trim_end());
    output
}

fn assert_in_guide(command: &str) {
    let guide = GUIDE.replace(" \\\n  ", " ");
    assert!(guide.contains(command), "docs/lvm.md lacks: {command}");
}

/// The guide's way to two plain volumes.
fn take_over(guest: &mut Guest) {
    step(guest, "lvchange -an vg0/data");
    step(guest, "lvconvert --splitsnapshot vg0/before");
    step(guest, "lvchange -ay vg0/data vg0/before");
}

/// A command that must be refused.
fn refused(guest: &mut Guest, command: &str) -> String {
    println!("guest# {command}");
    let (status, output) = guest.try_run(command);
    println!("{}(exit {status})", output);
    assert_ne!(status, 0, "`{command}` was not refused");
    output
}

/// The logical volumes as `NAME ORIGIN` lines.
fn volumes(guest: &mut Guest) -> Vec<String> {
    let text = guest.run("lvs --noheadings -a -o lv_name,origin vg0");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// LVM and the file system agree that `vg0/data` is a sound volume with no snapshot.
fn assert_whole(guest: &mut Guest) {
    assert_eq!(volumes(guest), ["data"]);
    println!("{}", guest.run("e2fsck -fn /dev/vg0/data").trim());
    guest.run("mount /dev/vg0/data /mnt");
    assert_eq!(guest.run(CHECK_FILES).trim(), "8");
    guest.run("test -e /mnt/fork && test ! -e /mnt/new && cd / && umount /mnt");
    guest.assert_no_io_error();
}

#[test]
fn lvm_sees_the_origin_that_we_merged_and_removes_the_snapshot() {
    let bench = Bench::new();
    let disk = bench.blank_disk("pv.img", 160 * MIB);
    let mut guest = boot(&bench, "lvm", &disk);
    make_volume(&mut guest);
    snapshot_and_change(&mut guest);
    let wanted = guest.sums("/dev/vg0/before");
    let changed = guest.sums("/dev/vg0/data");
    wanted.assert_differs(&changed, "the LVM snapshot with its origin");

    // While LVM has it active, the kernel holds both parts.
    let error = refused(
        &mut guest,
        "snapback merge --origin /dev/mapper/vg0-data-real --cow /dev/mapper/vg0-before-cow",
    );
    assert!(error.contains("used by the kernel"), "{error}");

    take_over(&mut guest);
    let kind = step(&mut guest, "blkid -p /dev/vg0/before");
    assert!(kind.contains("TYPE=\"DM_snapshot_cow\""), "{kind}");
    step(&mut guest, "snapback info /dev/vg0/before");
    step(
        &mut guest,
        "snapback merge --origin /dev/vg0/data --cow /dev/vg0/before",
    );
    guest.run("test ! -e /var/lib/snapback/mapper%2fvg0-data.json");
    guest
        .sums("/dev/vg0/data")
        .assert_same(&wanted, "the merged origin with the LVM snapshot");

    // Give it back.
    step(&mut guest, "lvconvert --yes -s -Zn vg0/data vg0/before");
    assert_eq!(volumes(&mut guest), ["before data", "data"]);
    guest
        .sums("/dev/vg0/before")
        .assert_same(&wanted, "the LVM snapshot, now empty, with what it was");
    step(&mut guest, "lvremove --yes vg0/before");
    guest
        .sums("/dev/vg0/data")
        .assert_same(&wanted, "the origin in LVM with the LVM snapshot");
    assert_whole(&mut guest);
    guest.quit();
}

#[test]
fn lvm_keeps_off_what_we_serve_and_gets_it_back_rolled_back() {
    let bench = Bench::new();
    let disk = bench.blank_disk("pv.img", 160 * MIB);
    let mut guest = boot(&bench, "lvm", &disk);
    make_volume(&mut guest);
    snapshot_and_change(&mut guest);
    let wanted = guest.sums("/dev/vg0/before");
    // Another snapshot, which stays LVM's.
    guest.run("lvcreate --yes -s -n later -L 40M vg0/data");
    let later = guest.sums("/dev/vg0/later");
    take_over(&mut guest);
    let serve = "snapback serve --origin /dev/vg0/data --socket-path /run/data.sock \
         --snapshot name=before,cow=/dev/vg0/before,socket=/run/before.sock \
         --control /run/control.sock";
    assert_in_guide(serve);
    guest.run(&format!(
        "({serve} >/tmp/log 2>&1; echo $? >/tmp/ended) >/dev/null 2>&1 & \
         for i in $(seq 100); do [ -S /run/control.sock ] && exit; sleep 0.1; done; \
         cat /tmp/log; exit 1"
    ));
    for command in [
        "mount /dev/vg0/data /mnt",
        "lvchange -an vg0/data",
        "lvconvert --yes -s -Zn vg0/data vg0/before",
        "lvremove --yes vg0/before",
        "lvremove --yes vg0/data",
    ] {
        refused(&mut guest, command);
    }
    step(
        &mut guest,
        "snapback rollback before --now --wait --control /run/control.sock",
    );
    guest.run(
        "killall snapback; until [ -s /tmp/ended ]; do sleep 0.1; done; cat /tmp/log; \
         [ $(cat /tmp/ended) -eq 0 ]",
    );
    guest.run("test -e /var/lib/snapback/mapper%2fvg0-data.json");
    step(&mut guest, "rm -f /var/lib/snapback/mapper%2fvg0-data.json");
    guest
        .sums("/dev/vg0/data")
        .assert_same(&wanted, "the rolled back origin with the LVM snapshot");
    guest.sums("/dev/vg0/later").assert_same(
        &later,
        "the snapshot that stayed LVM's after and before the rollback",
    );
    step(&mut guest, "lvconvert --yes -s -Zn vg0/data vg0/before");
    guest.run("lvremove --yes vg0/before vg0/later");
    assert_whole(&mut guest);
    guest.quit();
}

/// A logical volume's bytes in the physical volume's disk file, taken out to a
/// file of its own: on a real host it is a device that can be served as it is.
struct Extracted {
    file: PathBuf,
    disk: PathBuf,
    start: u64,
}

impl Extracted {
    fn new(bench: &Bench, guest: &mut Guest, disk: &Path, name: &str) -> Self {
        let table = guest.run(&format!("sync; dmsetup table vg0-{name}"));
        let words: Vec<&str> = table.split_whitespace().collect();
        let ["0", sectors, "linear", _, start] = words.as_slice() else {
            panic!("not one linear extent: {table}");
        };
        let bytes = |sectors: &str| sectors.parse::<u64>().unwrap() * 512;
        let (start, size) = (bytes(start), bytes(sectors));
        let file = bench.path(&format!("{name}.img"));
        std::fs::write(&file, read(disk, start, size)).unwrap();
        Self {
            file,
            disk: disk.to_owned(),
            start,
        }
    }

    fn put_back(&self) {
        let content = std::fs::read(&self.file).unwrap();
        let disk = std::fs::File::options().write(true).open(&self.disk);
        disk.unwrap().write_all_at(&content, self.start).unwrap();
    }

    fn text(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

fn read(disk: &Path, start: u64, size: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(size).unwrap()];
    let disk = std::fs::File::open(disk).unwrap();
    disk.read_exact_at(&mut content, start).unwrap();
    content
}

/// Exceptions in a store.
fn exceptions(cow: &str) -> u64 {
    let info = offline(&["info", cow, "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["contents"]["exceptions"].as_u64().unwrap()
}

#[test]
fn a_served_lvm_snapshot_goes_back_and_lvconvert_merges_it() {
    let bench = Bench::new();
    let disk = bench.blank_disk("pv.img", 160 * MIB);
    let mut linux = boot(&bench, "lvm", &disk);
    make_volume(&mut linux);
    snapshot_and_change(&mut linux);
    let snapshot = linux.sums("/dev/vg0/before");
    let changed = linux.sums("/dev/vg0/data");
    take_over(&mut linux);
    let origin = Extracted::new(&bench, &mut linux, &disk, "data");
    let cow = Extracted::new(&bench, &mut linux, &disk, "before");
    linux.run("vgchange -an vg0 && sync");

    let option = format!(
        "name=before,cow={},socket={}",
        cow.text(),
        bench.text("before.sock")
    );
    let socket = bench.text("data.sock");
    let daemon = bench.serve_only(&[
        "--origin",
        origin.text(),
        "--socket-path",
        &socket,
        "--snapshot",
        &option,
    ]);
    let mut guest = bench.boot("g", &[bench.view("data"), bench.view("before")]);
    guest
        .sums("/dev/vda")
        .assert_same(&changed, "the origin served here with LVM's");
    guest
        .sums("/dev/vdb")
        .assert_same(&snapshot, "the snapshot served here with LVM's");
    guest.run("mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/d/7 bs=64k count=16 conv=notrunc && umount /mnt");
    guest
        .run("mount /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/here bs=1M count=3 && umount /mnt");
    let changed = guest.sums("/dev/vda");
    let wanted = guest.sums("/dev/vdb");
    wanted.assert_differs(
        &snapshot,
        "the snapshot after and before the guest's writes",
    );
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    origin.put_back();
    cow.put_back();
    let tie = "lvconvert --yes -s -Zn vg0/data vg0/before";
    give_back_and_let_lvm_merge(&mut linux, tie, &changed, &wanted);
    linux.run("mount /dev/vg0/data /mnt && test -e /mnt/here && rm /mnt/here && umount /mnt");
    assert_whole(&mut linux);
    linux.quit();
}

#[test]
fn a_store_of_ours_that_is_half_merged_is_merged_to_its_end_by_lvconvert() {
    let bench = Bench::new();
    let disk = bench.blank_disk("pv.img", 160 * MIB);
    let mut linux = boot(&bench, "lvm", &disk);
    make_volume(&mut linux);
    linux.run("cd / && umount /mnt");
    step(&mut linux, "lvcreate --yes -n before -L 48M vg0");
    let origin = Extracted::new(&bench, &mut linux, &disk, "data");
    let cow = Extracted::new(&bench, &mut linux, &disk, "before");
    linux.run("vgchange -an vg0 && sync");

    let option = format!(
        "name=before,cow={},chunk-size=64K,socket={}",
        cow.text(),
        bench.text("before.sock")
    );
    let socket = bench.text("data.sock");
    let daemon = bench.serve_only(&[
        "--origin",
        origin.text(),
        "--socket-path",
        &socket,
        "--snapshot",
        &option,
    ]);
    let mut guest = bench.boot("g", &[bench.view("data"), bench.view("before")]);
    guest.run("mount /dev/vda /mnt && rm /mnt/d/1 && dd if=/dev/urandom of=/mnt/new bs=1M count=12 && umount /mnt");
    guest.run(
        "mount /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/fork bs=1M count=12 && umount /mnt",
    );
    let wanted = guest.sums("/dev/vdb");
    wanted.assert_differs(&guest.sums("/dev/vda"), "the snapshot with the origin");
    guest.assert_no_io_error();
    guest.quit();
    daemon.run(&["merge", "before", "--rate", "1M"]);
    let (done, left) = loop {
        let merge = daemon.status().merge.expect("the merge is over too early");
        if merge.chunks_done > merge.chunks_left / 4 {
            break (merge.chunks_done, merge.chunks_left);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    println!("chunks merged: {done}, left: {left}");
    daemon.terminate();
    assert!(exceptions(cow.text()) > 0, "nothing is left for LVM");
    let half = Sums::of_file(&origin.file);
    half.assert_differs(&wanted, "the half merged origin with the snapshot");
    origin.put_back();
    cow.put_back();
    let tie = "lvconvert --yes -s -Zn -c 64k vg0/data vg0/before";
    give_back_and_let_lvm_merge(&mut linux, tie, &half, &wanted);
    assert_whole(&mut linux);
    linux.quit();
}

/// LVM takes the two volumes as an origin and its snapshot, sees both as they
/// were here, and merges.
fn give_back_and_let_lvm_merge(linux: &mut Guest, tie: &str, origin: &Sums, snapshot: &Sums) {
    step(linux, "lvchange -ay vg0/data");
    step(linux, tie);
    println!(
        "{}",
        linux.run("lvs -a vg0 && dmsetup table && dmsetup status")
    );
    linux
        .sums("/dev/vg0/data")
        .assert_same(origin, "the origin in LVM with the one here");
    linux
        .sums("/dev/vg0/before")
        .assert_same(snapshot, "the snapshot in LVM with the one here");
    step(linux, "lvconvert --merge -i 1 vg0/before");
    linux.sums("/dev/vg0/data").assert_same(
        snapshot,
        "the origin that LVM merged with the snapshot here",
    );
}

/// Row I07 of the checklist. LVM and installers look at this before they overwrite.
#[test]
fn i07_blkid_says_dm_snapshot_cow_of_a_store_of_ours() {
    let bench = Bench::new();
    let blank = bench.blank_disk("blank", 2 * MIB);
    assert_eq!(blkid(&blank), "");
    for chunk_size in ["512", "4K", "64K", "512K"] {
        let cow = bench.text(&format!("{chunk_size}.cow"));
        offline(&["create", &cow, "--size", "2M", "--chunk-size", chunk_size]);
        let found = blkid(Path::new(&cow));
        println!(
            "blkid of a store with chunks of {chunk_size}: {}",
            found.trim()
        );
        assert!(
            found.contains("TYPE=\"DM_snapshot_cow\" USAGE=\"other\""),
            "{found}"
        );
    }
}

fn blkid(path: &Path) -> String {
    // Not in every user's PATH.
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new("blkid")
        .env("PATH", search)
        .arg("-p")
        .arg(path)
        .output();
    let output = output.expect("blkid starts (qemu-tests/install.sh installs it)");
    String::from_utf8(output.stdout).unwrap()
}
