//! Disks that come to a running guest and go again.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::{Bench, guest_images};
use crate::daemon::{Daemon, offline};
use crate::disk::{MIB, Sums};
use crate::guest::Guest;
use crate::machine::kernel;

const SIZE: u64 = 32 * MIB;
const SEED: u64 = 43;

/// Plugs a view in; returns the guest's name for it. It need not be /dev/vda, because a disk
/// that was taken out while programs used it may keep its name for a while.
fn plug(guest: &mut Guest, socket: &Path, queues: u32) -> String {
    let address = json!({ "type": "unix", "data": { "path": socket } });
    let backend = json!({
        "type": "socket",
        "data": { "addr": address, "server": false, "reconnect": 1 },
    });
    let chardev = json!({ "id": "plugged-chardev", "backend": backend });
    guest.qmp.command_with("chardev-add", chardev);
    let device = json!({
        "driver": "vhost-user-blk-pci", "id": "plugged", "chardev": "plugged-chardev",
        "bus": "plug", "num-queues": queues,
    });
    guest.qmp.command_with("device_add", device);
    let found = "for i in $(seq 300); do for disk in /dev/vd?; do [ -b $disk ] && echo $disk && \
                 exit 0; done; sleep 0.1; done; exit 1";
    guest.run(found).trim().to_owned()
}

/// Takes it out again.
fn take_out(guest: &mut Guest) {
    guest
        .qmp
        .command_with("device_del", json!({ "id": "plugged" }));
    guest.qmp.wait_for("DEVICE_DELETED plugged");
    guest.run("for i in $(seq 300); do ls /dev/vd? 2>/dev/null || exit 0; sleep 0.1; done; exit 1");
    let chardev = json!({ "id": "plugged-chardev" });
    guest.qmp.command_with("chardev-remove", chardev);
}

/// Takes it out again, and the daemon is as it was.
fn unplug(guest: &mut Guest, daemon: &Daemon, before: (usize, usize)) {
    take_out(guest);
    let deadline = Instant::now() + Duration::from_secs(60);
    while daemon.resources() != before || daemon.status().views.iter().any(|view| view.attached) {
        let now = daemon.resources();
        let late = Instant::now() > deadline;
        assert!(
            !late,
            "descriptors and threads: {before:?} before, {now:?} after"
        );
        sleep(Duration::from_millis(50));
    }
}

fn write(device: &str, count: u32) -> String {
    format!("dd if=/dev/urandom of={device} bs=64k count={count} conv=fsync 2>/dev/null")
}

#[test]
fn disks_are_plugged_in_and_out_and_the_daemon_keeps_nothing() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut boot = kernel(&guest_images().join("initramfs"), "");
    boot.extend(["-device", "pcie-root-port,id=plug,chassis=1"].map(Into::into));
    let mut guest = Guest::start(&bench.path(""), "g", &[], &boot);
    let (disk, s1) = (bench.path("origin.sock"), bench.path("s1.sock"));
    // The first front end makes what the daemon then keeps: the watcher of slow requests.
    plug(&mut guest, &disk, 1);
    take_out(&mut guest);
    while daemon.status().views.iter().any(|view| view.attached) {
        sleep(Duration::from_millis(50));
    }
    let mut before = daemon.resources();
    loop {
        // The status's own connection may still be open.
        sleep(Duration::from_millis(500));
        let now = daemon.resources();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
    }
    println!("descriptors and threads of the daemon: {before:?}");
    let mut expected = first.clone();
    for round in 0..3 {
        let device = plug(&mut guest, &disk, 1 + round);
        let seen = guest.sums(&device);
        seen.assert_same(&expected, "the origin that was plugged in");
        if round == 0 {
            // Judges its own writes.
            guest.start_hammer(&device, SEED, 0, SIZE / 4096);
            guest.hammer_on(200);
            let hammered = guest.stop_hammer();
            assert_eq!(hammered.reverted, 0);
        } else {
            guest.run(&write(&device, 80));
        }
        expected = guest.sums(&device);
        expected.assert_same(&Sums::of_file(&origin), "the origin with its file");
        unplug(&mut guest, &daemon, before);

        let device = plug(&mut guest, &s1, 1);
        let seen = guest.sums(&device);
        seen.assert_same(&first, "the snapshot that was plugged in");
        unplug(&mut guest, &daemon, before);
    }
    guest.assert_no_io_error();

    // Also in the middle of its requests.
    let device = plug(&mut guest, &disk, 2);
    guest.start_hammer(&device, SEED, 0, SIZE / 4096);
    unplug(&mut guest, &daemon, before);
    let ended =
        "for i in $(seq 300); do [ -s /tmp/hammer.status ] && exit 0; sleep 0.1; done; exit 1";
    guest.run(ended);
    let (status, report) = guest.try_run("cat /tmp/hammer.out; exit $(cat /tmp/hammer.status)");
    println!("the guest's writer: {}", report.trim());
    assert_ne!(status, 0, "the disk was taken out while nobody used it");
    let device = plug(&mut guest, &s1, 2);
    guest.run(&write(&device, 40));
    let written = guest.sums(&device);
    written.assert_differs(&first, "the snapshot with the first disk");
    unplug(&mut guest, &daemon, before);
    guest.quit();
    daemon.terminate();
    let out = bench.text("out.img");
    let (origin, cow) = (bench.text("origin.img"), bench.text("s1.cow"));
    offline(&["export", "--origin", &origin, "--cow", &cow, &out]);
    Sums::of_file(out.as_ref()).assert_same(&written, "the export with the snapshot in the guest");
}
