//! The guest's driver begins anew, and the guest goes on: its memory knows the disk, so
//! a rollback would destroy it. It waits for the reset of the machine.

use super::{Rig, check_files, make_files, suspend, unmount, wake_up};
use crate::bench::guest_images;
use crate::guest::{Attach, Guest};

/// Unmounts what is on the disk, runs both commands, and mounts it again.
fn without_driver(rig: &Rig, guest: &mut Guest, takes_away: &str, brings_back: &str) {
    unmount(guest);
    rig.still_waits("driver-restart", || {
        guest.run(takes_away);
        assert_ne!(guest.try_run("test -b /dev/vda").0, 0, "the disk is there");
        guest.run(brings_back);
        guest.run("until [ -b /dev/vda ]; do sleep 0.1; done; mount /dev/vda /mnt");
    });
    check_files(guest);
}

#[test]
fn a_guest_that_is_suspended_to_ram_and_wakes_up_keeps_its_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    rig.still_waits("driver-restart", || {
        suspend(&mut guest);
        rig.assert_pending();
        wake_up(&mut guest);
        check_files(&mut guest);
    });
    unmount(&mut guest);
    rig.reset_and_end(guest);
}

#[test]
fn a_guest_that_sleeps_idle_and_wakes_up_keeps_its_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    rig.still_waits("driver-restart", || {
        guest.run("echo enabled >/sys/class/tty/ttyS1/power/wakeup");
        guest.send("echo freeze >/sys/power/state");
        assert_eq!(guest.answer_once_awake().0, 0, "the guest was not frozen");
        let log = guest.run("dmesg | grep 'PM: suspend'");
        assert!(log.contains("suspend entry (s2idle)"), "{log}");
        assert!(log.contains("suspend exit"), "{log}");
        check_files(&mut guest);
    });
    unmount(&mut guest);
    rig.reset_and_end(guest);
}

#[test]
fn a_driver_that_is_unbound_and_bound_again_keeps_its_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    without_driver(
        &rig,
        &mut guest,
        "echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind",
        "echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind",
    );
    let pci = "cd /sys/bus/pci/drivers/virtio-pci && address=$(cd /sys/bus/pci/devices && \
               dirname */virtio*)";
    guest.run(&format!("{pci} && echo $address >/tmp/address"));
    without_driver(
        &rig,
        &mut guest,
        "cat /tmp/address >/sys/bus/pci/drivers/virtio-pci/unbind",
        "cat /tmp/address >/sys/bus/pci/drivers/virtio-pci/bind",
    );
    unmount(&mut guest);
    rig.reset_and_end(guest);
}

#[test]
fn a_pci_device_that_is_removed_and_found_again_keeps_its_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    without_driver(
        &rig,
        &mut guest,
        "echo 1 >/sys/block/vda/device/../remove",
        "echo 1 >/sys/bus/pci/rescan",
    );
    unmount(&mut guest);
    rig.reset_and_end(guest);
}

#[test]
fn a_kernel_that_is_started_by_kexec_finds_the_disk_that_the_last_one_left() {
    let rig = Rig::new();
    let mut disks = vec![rig.view()];
    let mut take = String::new();
    for (file, disk) in [("vmlinuz", "vdb"), ("initramfs", "vdc")] {
        let copy = rig.bench.path(file);
        let bytes = std::fs::copy(guest_images().join(file), &copy).unwrap();
        disks.push(Attach::Raw(copy));
        take += &format!("head -c {bytes} /dev/{disk} >/tmp/{file} && ");
    }
    let mut guest = rig.bench.boot("g", &disks);
    make_files(&mut guest);
    rig.ask_for_rollback();
    rig.still_waits("driver-restart", || {
        unmount(&mut guest);
        guest.send(&format!(
            "{take} disktool kexec /tmp/vmlinuz /tmp/initramfs \"$(cat /proc/cmdline)\""
        ));
        guest.wait_boot();
        guest.run("mount /dev/vda /mnt");
        check_files(&mut guest);
    });
    unmount(&mut guest);
    rig.reset_and_end(guest);
}
