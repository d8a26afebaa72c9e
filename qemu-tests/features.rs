//! What Linux makes of a view's features: its limits, several queues, polled queues, a size
//! that changes under load, memory that is plugged in, and one reboot after the other.

use serde_json::json;

use crate::bench::{Bench, guest_images};
use crate::daemon::offline;
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};
use crate::machine::kernel;

const SIZE: u64 = 64 * MIB;
const SEED: u64 = 41;
/// A part at the end that no storm writes to.
const QUIET: u64 = 8 * MIB;

/// Waits until the guest's kernel shows this size of /dev/vda.
fn expect_size(guest: &mut Guest, bytes: u64) {
    let sectors = bytes / 512;
    guest.run(&format!(
        "for i in $(seq 200); do [ $(cat /sys/block/vda/size) = {sectors} ] && exit 0; sleep 0.1; \
         done; cat /sys/block/vda/size; exit 1"
    ));
}

/// The kernel's idea of both disks, and zeroes that are written without data.
fn limits(guest: &mut Guest) {
    let told = guest.run("lsblk -dnro PHY-SEC,LOG-SEC,DISC-GRAN,DISC-MAX,RO /dev/vda");
    println!("lsblk of the origin: {}", told.trim());
    assert_eq!(told.trim(), "4096 512 4K 32M 0");
    // lsblk has it from udev, which the guest has not.
    assert_eq!(guest.run("cat /sys/block/vda/serial").trim(), "disk-0815");
    let told = guest.run("lsblk -dnro PHY-SEC,LOG-SEC,DISC-GRAN,RO /dev/vdb");
    println!("lsblk of the snapshot: {}", told.trim());
    assert_eq!(told.trim(), "4096 512 0B 0");
    let queues = guest.run("ls -d /sys/block/vda/mq/* | wc -l; ls -d /sys/block/vdb/mq/* | wc -l");
    assert_eq!(queues, "8\n1\n", "queues of both disks");
}

/// More memory, one DIMM after the other, while the guest writes.
fn plug_memory(guest: &mut Guest) {
    const DIMM: u64 = 128 * MIB;
    let total = |guest: &mut Guest| -> u64 {
        let text = guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo");
        text.trim().parse().unwrap()
    };
    guest.run("echo online_movable >/sys/devices/system/memory/auto_online_blocks");
    let mut before = total(guest);
    for number in 0..3 {
        let backend = json!({
            "qom-type": "memory-backend-memfd", "id": format!("more{number}"), "size": DIMM, "share": true,
        });
        guest.qmp.command_with("object-add", backend);
        let dimm = json!({
            "driver": "pc-dimm", "id": format!("dimm{number}"), "memdev": format!("more{number}"),
        });
        guest.qmp.command_with("device_add", dimm);
        let wanted = before + DIMM / 1024;
        guest.run(&format!(
            "for i in $(seq 200); do [ $(awk '/MemTotal/ {{ print $2 }}' /proc/meminfo) -ge {wanted} ] \
             && exit 0; sleep 0.1; done; cat /proc/meminfo; exit 1"
        ));
        before = total(guest);
        guest.storm_on("vda", 50);
        guest.storm_on("vdb", 20);
    }
    println!("the guest has {} MiB now", before / 1024);
}

/// The buffers of a program that starts now are in the memory that was plugged in.
fn use_plugged_memory(guest: &mut Guest, disk: &str) -> Sums {
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    let used = "awk '/zone *Movable/ { m = 1 } m && /nr_zone_(in)?active_anon/ { s += $2 } \
                END { print s + 0 }' /proc/zoneinfo";
    guest.run(&format!("disktool polled {disk} >/tmp/sums"));
    let pages: u64 = guest.run(used).trim().parse().unwrap();
    assert!(pages > 0, "nothing is in the memory that was plugged in");
    Sums::parse(&guest.run("cat /tmp/sums"))
}

#[test]
fn eight_processors_storm_disks_of_eight_and_of_one_queue_that_change_under_them() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot, "--serial", "disk-0815"]);
    let mut boot = kernel(&guest_images().join("initramfs"), "");
    boot.extend(["-m", "768M,slots=4,maxmem=2G"].map(Into::into));
    let disks = [
        Attach::Queues(bench.path("origin.sock"), 8),
        Attach::Queues(bench.path("s1.sock"), 1),
    ];
    let mut guest = Guest::start(&bench.path(""), "g", &disks, &boot);
    limits(&mut guest);

    // The driver begins again, with queues that it polls.
    guest.run("rmmod virtio_blk && insmod /modules/virtio_blk.ko poll_queues=2");
    assert_eq!(guest.run("cat /sys/block/vda/queue/io_poll").trim(), "1");
    let polled = Sums::parse(&guest.run("disktool polled /dev/vda"));
    polled.assert_same(&first, "the origin, polled, with what it holds");

    let blocks = (SIZE - QUIET) / 4096;
    guest.start_storm("vda", SEED, blocks, 8);
    guest.start_storm("vdb", SEED, blocks, 8);
    plug_memory(&mut guest);
    daemon.run(&["resize", "96M"]);
    expect_size(&mut guest, 96 * MIB);
    guest.storm_on("vda", 50);
    // In the part that nobody writes to; the shell's own command has no `-z`.
    let (offset, length) = (SIZE - 4 * MIB, MIB);
    guest.run(&format!(
        "/bin/blkdiscard -z -o {offset} -l {length} /dev/vda"
    ));
    guest.stop_storm("vda");
    guest.stop_storm("vdb");
    guest.run("sync");

    // The same from outside.
    let seen = use_plugged_memory(&mut guest, "/dev/vda");
    let snapshot_seen = guest.sums("/dev/vdb");
    guest.assert_no_io_error();
    guest.quit();
    seen.assert_same(
        &Sums::of_file(&origin),
        "the origin in the guest with its file",
    );
    seen.assert_differs(&first, "the origin with its first content");
    let bytes = std::fs::read(&origin).unwrap();
    let zeroed = &bytes[offset as usize..][..length as usize];
    assert!(
        zeroed.iter().all(|byte| *byte == 0),
        "blkdiscard -z leaves data"
    );
    daemon.terminate();
    let out = bench.text("out.img");
    offline(&[
        "export",
        "--origin",
        &bench.text("origin.img"),
        "--cow",
        &bench.text("s1.cow"),
        &out,
    ]);
    Sums::of_file(out.as_ref())
        .assert_same(&snapshot_seen, "the export with the snapshot in the guest");
}

#[test]
fn ten_reboots_one_after_the_other_show_what_was_written_before_each() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", 16 * MIB, SEED);
    let first = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin"), bench.view("s1")]);
    let mut expected = first.clone();
    for round in 0..10 {
        guest
            .sums("/dev/vda")
            .assert_same(&expected, "the origin after a reboot");
        guest.run(&format!(
            "dd if=/dev/urandom of=/dev/vda bs=4k seek={} count=64 conv=fsync 2>/dev/null",
            round * 128
        ));
        let changed = guest.sums("/dev/vda");
        changed.assert_differs(&expected, "the origin with what it was");
        expected = changed;
        match round % 3 {
            0 => guest.reset(),
            1 => {
                guest.send("reboot -f");
                guest.wait_boot();
            }
            _ => {
                guest.send("echo b >/proc/sysrq-trigger");
                guest.wait_boot();
            }
        }
    }
    guest
        .sums("/dev/vda")
        .assert_same(&expected, "the origin after the last reboot");
    guest
        .sums("/dev/vdb")
        .assert_same(&first, "the snapshot with the first disk");
    guest.assert_no_io_error();
    guest.quit();
    expected.assert_same(
        &Sums::of_file(&origin),
        "the guest's last disk with its file",
    );
    daemon.terminate();
}
