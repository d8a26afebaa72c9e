//! Programs that look at a disk without a guest, and front ends that come again.

use std::process::Command;

use super::{Rig, SIZE, check_files, front_end, unmount};
use crate::disk::Sums;

/// `qemu-img` of QEMU 9 or later with the driver `virtio-blk-vhost-user`, to look with
/// it, too. (Debian: `qemu-utils` and `qemu-block-extra` of trixie.)
const QEMU_IMG: &str = "SNAPBACK_QEMU_IMG";

/// QEMU's driver `virtio-blk-vhost-user` is made of the library that this front end is
/// made of, and shows the same.
#[test]
fn who_only_looks_at_an_unattended_disk_does_not_roll_it_back() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    unmount(&mut guest);
    let present = guest.sums("/dev/vda");
    guest.quit();
    rig.daemon.run(&["rollback", "before", "--at-reset"]);
    let socket = rig.bench.path("origin.sock");
    let look = |bytes: usize| {
        let mut front_end = front_end::Guest::connect(&socket);
        assert_eq!(front_end.bytes() as u64, SIZE);
        let seen = rig.bench.path("seen.img");
        std::fs::write(&seen, front_end.read_all(bytes)).unwrap();
        Sums::of_file(&seen)
    };
    for _ in 0..2 {
        rig.still_waits("program", || drop(look(1 << 20)));
    }
    rig.still_waits("program", || {
        look(SIZE as usize).assert_same(&present, "the disk that was looked at");
    });
    if let Ok(program) = std::env::var(QEMU_IMG) {
        rig.still_waits("program", || {
            let driver = "json:{\"driver\":\"virtio-blk-vhost-user\",\"cache\":{\"direct\":true}";
            let output = Command::new(&program)
                .arg("info")
                .arg(format!("{driver},\"path\":\"{}\"}}", socket.display()))
                .output()
                .unwrap();
            assert!(output.status.success(), "{program}: {output:?}");
        });
    }

    let mut guest = rig.bench.boot("next", &[rig.view()]);
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

#[test]
fn qemu_that_is_quit_and_started_again_starts_with_the_old_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    unmount(&mut guest);
    guest.quit();
    rig.assert_pending();
    let mut guest = rig.bench.boot("next", &[rig.view()]);
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

#[test]
fn a_daemon_that_is_started_again_goes_on_waiting_for_the_reset() {
    let mut rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    for killed in [false, true] {
        rig = rig.start_daemon_again(killed);
        check_files(&mut guest);
        rig.assert_pending();
    }
    unmount(&mut guest);
    rig.reset_and_end(guest);
}
