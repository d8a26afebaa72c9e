//! Devices of device-mapper that stall and fail under a daemon's disk and its COW.

use std::path::Path;

use super::field::{DISK, Field, assert_same, pattern};
use super::inside;
use super::mapper::Mapped;

const SECTORS: u64 = DISK as u64 / 512;

/// A field on `disk`, with COWs in its folder and the state file there as well.
fn serve(disk: &Mapped) -> Field {
    disk.fill(&pattern(0, DISK));
    let mut field = Field::on(disk.path());
    start(&mut field);
    field
}

fn start(field: &mut Field) {
    field.start(&["--state", "state"]);
}

fn snapshot(field: &Field, name: &str) {
    let spec = field.spec(name, field.here.path());
    field.client().add_snapshot(&spec).unwrap();
}

#[test]
fn a_disk_on_a_device_that_stalls_and_fails_is_whole_when_the_device_is() {
    let name = "device::a_disk_on_a_device_that_stalls_and_fails_is_whole_when_the_device_is";
    inside(name, &[8], || {
        let disk = Mapped::linear("disk", SECTORS, Path::new("/dev/vda"), 0);
        let mut field = serve(&disk);
        snapshot(&field, "s");
        let mut guest = field.guest("a.sock");

        disk.suspend();
        guest.begin_write(800, &pattern(9, 65536));
        let slow = field.event("io-slow");
        assert_eq!(
            (&slow["operation"], &slow["sector"]),
            (&"write".into(), &800.into())
        );
        assert!(field.status().views[0].slow_io.unwrap().seconds >= 3);
        assert!(!guest.has_ended());
        assert!(field.events("io-failed").is_empty());
        disk.resume();
        assert_eq!(guest.wait(), 0);
        field.event("io-slow-ended");

        // All of it fails; what was copied needs no copy.
        disk.fail();
        assert!(guest.read(77, 512).is_err());
        assert_ne!(guest.write(800, &pattern(3, 4096)), 0);
        let failed = field.event("io-failed");
        let error = failed["error"].as_str().unwrap();
        assert!(error.starts_with("Input/output error"), "{failed}");
        assert_eq!(field.status().views[0].io.errors, 2);
        disk.mend();
        assert_eq!(
            guest.read(77, 512).unwrap(),
            pattern(0, DISK)[77 * 512..][..512]
        );
        let mut now = pattern(0, DISK);
        now[800 * 512..][..65536].copy_from_slice(&pattern(9, 65536));
        assert_same(&guest.read_all(DISK), &now, "the disk");
        assert_eq!(guest.write(800, &pattern(3, 4096)), 0);
        assert_eq!(guest.flush(), 0);
        now[800 * 512..][..4096].copy_from_slice(&pattern(3, 4096));
        assert_eq!(field.state("s"), "active");

        fails_writes(&disk, &field, &mut guest);
        drop(guest);
        assert_eq!(field.stop().code(), Some(2));
        start(&mut field);
        assert_eq!(field.state("s"), "active");
        assert_same(&field.shows("a.sock"), &now, "what was flushed");
        assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
        let mut guest = field.guest("a.sock");
        assert_eq!(guest.write(1600, &pattern(4, 4096)), 0);
        assert_eq!(guest.flush(), 0);

        // A read that a snapshot needs fails: the snapshot ends.
        disk.fail();
        assert_ne!(guest.write(2400, &pattern(5, 4096)), 0);
        let lost = field.event("snapshot-invalid");
        let error = lost["error"].as_str().unwrap();
        assert!(error.contains("at byte 1228800"), "{lost}");
        disk.mend();
        assert_eq!(guest.write(2400, &pattern(5, 4096)), 0);
        drop(guest);
        let (done, said) = field.verb(&["remove", "s"]);
        assert!(done, "{said}");
        let shown = field.shows("a.sock");
        std::fs::remove_file(field.path("s.cow")).unwrap();
        snapshot(&field, "u");
        assert_same(&field.shows("u.sock"), &shown, "a new snapshot");
        assert!(field.stop().success());
    });
}

/// Only writes and flushes fail; after a flush that failed, no flush is believed.
fn fails_writes(disk: &Mapped, field: &Field, guest: &mut super::guest::Guest) {
    disk.fail_writes();
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(0, 4096));
    assert_ne!(guest.write(800, &pattern(6, 4096)), 0);
    assert_ne!(guest.flush(), 0);
    field.event("origin-flush-failed");
    disk.mend();
    assert_ne!(guest.flush(), 0);
    let (done, said) = field.verb(&["snapshot", "t", "--cow", "t.cow", "--size", "8M"]);
    assert!(!done && said.contains("flush"), "{said}");
    assert_eq!(guest.read(800, 4096).unwrap(), pattern(3, 4096));
}

#[test]
fn a_cow_on_a_device_that_fails_costs_its_snapshot_and_no_request_of_the_disk() {
    let name = "device::a_cow_on_a_device_that_fails_costs_its_snapshot_and_no_request_of_the_disk";
    inside(name, &[8, 24], || {
        let disk = Mapped::linear("disk", SECTORS, Path::new("/dev/vda"), 0);
        let cow = Mapped::linear("cow", 8 << 11, Path::new("/dev/vdb"), 0);
        let mut field = serve(&disk);
        // The sandbox keeps the daemon from it, so the command line opens it.
        let place = cow.path();
        let take = |field: &Field| {
            let place = place.to_str().unwrap();
            let socket = field.path("s.sock");
            let socket = ["--socket-path", socket.to_str().unwrap()];
            field.verb(
                &[
                    &["snapshot", "s", "--cow", place, "--chunk-size", "4K"][..],
                    &socket,
                ]
                .concat(),
            )
        };
        let (taken, said) = take(&field);
        assert!(taken, "{said}");
        let mut guest = field.guest("a.sock");
        assert_eq!(guest.write(0, &pattern(3, 4096)), 0);
        let mut own = field.guest("s.sock");

        // It stalls: so does what needs a copy, and nothing else.
        cow.suspend();
        assert_eq!(guest.write(0, &pattern(4, 4096)), 0);
        guest.begin_write(80, &pattern(4, 4096));
        field.event("io-slow");
        assert!(own.read(8, 4096).is_ok(), "a chunk in the disk");
        assert!(!guest.has_ended());
        cow.resume();
        assert_eq!(guest.wait(), 0);
        field.event("io-slow-ended");

        // Reads of it fail, while nothing is written.
        cow.fail();
        assert!(own.read(0, 4096).is_err());
        assert!(own.read(8, 4096).is_ok(), "a chunk in the disk");
        assert_eq!(field.state("s"), "active");
        cow.mend();
        assert_same(&own.read_all(DISK), &pattern(0, DISK), "the snapshot");

        cow.fail_writes();
        assert_eq!(guest.write(160, &pattern(5, 4096)), 0);
        let lost = field.event("snapshot-invalid");
        assert_eq!(lost["snapshot"], "s");
        assert!(own.read(0, 4096).is_err());
        assert_eq!(guest.flush(), 0);
        cow.mend();
        drop((guest, own));
        let (done, said) = field.verb(&["remove", "s"]);
        assert!(done, "{said}");
        let mut now = pattern(0, DISK);
        for (sector, seed) in [(0, 4), (80, 4), (160, 5)] {
            now[sector * 512..][..4096].copy_from_slice(&pattern(seed, 4096));
        }
        assert_same(&field.shows("a.sock"), &now, "the disk");
        let (taken, said) = take(&field);
        assert!(!taken, "the store was invalidated");
        assert!(said.contains("clear its first 4096 bytes"), "{said}");
        cow.fill(&[0; 4096]);
        let (taken, said) = take(&field);
        assert!(taken, "{said}");
        assert_same(
            &field.shows("s.sock"),
            &now,
            "a new snapshot on the same device",
        );
        assert!(field.stop().success());
    });
}
