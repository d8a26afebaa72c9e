//! A disk that grows under a running guest.

use std::fs;

use crate::bench::Bench;
use crate::disk::{MIB, Sums};
use crate::guest::Guest;

const BEFORE: u64 = 64 * MIB;
const AFTER: u64 = 160 * MIB;

/// More than the disk had room for.
const FILL: &str = "for i in 1 2 3; do dd if=/dev/urandom of=/mnt/$i bs=1M count=30 2>/dev/null || exit 1; \
     done; sync; cd /mnt && sha256sum 1 2 3 >list && sync && cd /";
const CHECK: &str = "cd /mnt && sha256sum -c list | grep -c ': OK'; cd /";

/// Waits until the guest's kernel shows this size.
fn expect_size(guest: &mut Guest, bytes: u64) {
    let sectors = bytes / 512;
    guest.run(&format!(
        "for i in $(seq 200); do [ $(cat /sys/block/vda/size) = {sectors} ] && exit 0; sleep 0.1; \
         done; cat /sys/block/vda/size; exit 1"
    ));
}

#[test]
fn a_guest_grows_its_file_system_while_it_is_mounted() {
    let bench = Bench::new();
    let origin = bench.blank_disk("origin.img", BEFORE);
    let daemon = bench.serve(&[]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && date >/mnt/old && sync");
    daemon.run(&[
        "snapshot",
        "s1",
        "--cow",
        &bench.text("s1.cow"),
        "--size",
        "96M",
        "--chunk-size",
        "64K",
        "--socket-path",
        &bench.text("s1.sock"),
    ]);
    let first = Sums::of_file(&origin);

    let told = daemon.run(&["resize", "160M"]);
    assert!(!told.contains("cannot be told"), "{told}");
    expect_size(&mut guest, AFTER);
    println!("the guest sees {} MiB without a reboot", AFTER / MIB);
    guest.run("resize2fs /dev/vda >/dev/null 2>&1");
    guest.run(FILL);
    assert_eq!(guest.run(CHECK).trim(), "3");

    // A new daemon and a reboot show the same size.
    daemon.kill();
    let daemon = bench.serve_only(&["--origin", &bench.text("origin.img")]);
    assert_eq!(guest.run(CHECK).trim(), "3");
    guest.run("umount /mnt && e2fsck -fn /dev/vda");
    guest.reset();
    expect_size(&mut guest, AFTER);
    assert_eq!(fs::metadata(&origin).unwrap().len(), AFTER);

    // The snapshot has the old disk, with the old size.
    let mut reader = bench.boot("r", &[bench.view("s1")]);
    expect_size(&mut reader, BEFORE);
    reader
        .sums("/dev/vda")
        .assert_same(&first, "the snapshot with the disk before the resize");
    reader.quit();

    // Back to it, the disk keeps its new size.
    daemon.run(&["rollback", "s1", "--at-reset"]);
    guest.reset();
    expect_size(&mut guest, AFTER);
    guest.run("e2fsck -fn /dev/vda && mount /dev/vda /mnt && test -s /mnt/old && ! test -e /mnt/1");
    guest.run("resize2fs /dev/vda >/dev/null 2>&1 && umount /mnt && e2fsck -fn /dev/vda");
    daemon.wait_merged();
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
}
