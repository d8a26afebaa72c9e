//! `docs/backup.md`, followed: a snapshot of a mounted file system is mounted.

use crate::bench::Bench;
use crate::disk::MIB;

#[test]
fn a_snapshot_of_a_mounted_file_system_is_mounted_as_the_guide_says() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 64 * MIB);
    let daemon = bench.serve(&[]);
    let snapshot = |name: &str, more: &[&str]| {
        let (cow, socket) = (
            bench.text(&format!("{name}.cow")),
            bench.text(&format!("{name}.sock")),
        );
        let args = ["snapshot", name, "--cow", &cow, "--size", "96M"];
        daemon.run(&[&args[..], &["--socket-path", &socket], more].concat());
    };
    let mut guest = bench.boot("guest", &[bench.view("origin")]);
    // No journal commit within this test but for those that `sync` asks for.
    guest.run("mkfs.ext4 -q /dev/vda && mount -t ext4 -o commit=900 /dev/vda /mnt && echo first >/mnt/old && sync");
    guest.run("echo second >/mnt/new && sync");
    snapshot("dirty", &["--read-only"]);
    snapshot("own", &[]);
    guest.run("fsfreeze --freeze /mnt");
    snapshot("frozen", &["--read-only"]);
    guest.run("fsfreeze --unfreeze /mnt && rm /mnt/old /mnt/new && dd if=/dev/urandom of=/mnt/fill bs=1M count=16 && sync");

    let views = ["dirty", "own", "frozen"].map(|name| bench.view(name));
    let mut backup = bench.boot("backup", &views);
    let (status, said) = backup.try_run("mount -t ext4 -o ro /dev/vda /mnt");
    assert_ne!(status, 0, "noload is not needed: {said}");
    backup.run("mount -t ext4 -o ro,noload /dev/vda /mnt && grep -q first /mnt/old && umount /mnt");
    // Its own journal is replayed into the COW: nothing is missing then.
    backup.run("mount -t ext4 /dev/vdb /mnt && grep -q first /mnt/old && grep -q second /mnt/new");
    backup.run("umount /mnt && e2fsck -fn /dev/vdb");
    let files = "grep -q first /mnt/old && grep -q second /mnt/new && umount /mnt";
    backup.run(&format!("mount -t ext4 -o ro /dev/vdc /mnt && {files}"));
    backup.assert_no_io_error();
    backup.quit();

    // And the disk has seen nothing of it.
    guest.run("test ! -e /mnt/old && test -e /mnt/fill && umount /mnt && e2fsck -fn /dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
}
