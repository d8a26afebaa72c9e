//! ext4 with everything that a daemon has, on a device that fails below it.

use std::path::Path;

use super::field::{DISK, Field, assert_same, pattern};
use super::mapper::Mapped;
use super::{inside, run};

const AT: &str = "/mnt";

fn mount(device: &Mapped) {
    run(
        "mount",
        &["-t", "ext4", device.path().to_str().unwrap(), AT],
    );
}

#[test]
fn ext4_whose_device_fails_is_served_again_after_a_mount_and_a_restart() {
    let name = "file_system::ext4_whose_device_fails_is_served_again_after_a_mount_and_a_restart";
    inside(name, &[64], || {
        let device = Mapped::linear("fs", 64 << 11, Path::new("/dev/vda"), 0);
        run(
            "mke2fs",
            &["-q", "-t", "ext4", device.path().to_str().unwrap()],
        );
        mount(&device);
        let disk = Path::new(AT).join("disk.img");
        let mut field = Field::new(disk.clone(), &disk);
        field.start(&[]);
        field.snapshot("s");
        let mut guest = field.guest("a.sock");
        assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
        assert_eq!(guest.flush(), 0);

        device.fail();
        // What needs no copy. Where it is kept in memory for now, flushes say it.
        let written = guest.write(0, &pattern(2, 4096));
        let flushed = guest.flush();
        assert!(written != 0 || flushed != 0, "{written} {flushed}");
        assert_eq!(guest.flush() != 0, flushed != 0, "after one that failed");
        field.until("a failed request is reported", |f| {
            !f.events("io-failed").is_empty() || !f.events("origin-flush-failed").is_empty()
        });
        let (done, said) = field.verb(&["snapshot", "t", "--cow", "/mnt/t.cow", "--size", "8M"]);
        assert!(!done, "{said}");
        assert!(said.contains("Input/output error"), "{said}");
        field.status();
        drop(guest);
        assert_eq!(field.stop().code(), Some(2));
        assert!(field.log().contains("Read-only file system"));

        run("umount", &[AT]);
        device.mend();
        mount(&device);
        field.start(&[]);
        assert_eq!(field.state("s"), "active");
        assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
        let mut now = pattern(0, DISK);
        now[..65536].copy_from_slice(&pattern(1, 65536));
        let shown = field.shows("a.sock");
        if shown[..4096] == pattern(2, 4096) {
            now[..4096].copy_from_slice(&pattern(2, 4096));
        }
        assert_same(&shown, &now, "what was flushed");
        assert!(field.stop().success());
        run("umount", &[AT]);
    });
}
