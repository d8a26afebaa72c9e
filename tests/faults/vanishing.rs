//! Files and devices that go away while they are served.

use std::fs;

use super::field::{DISK, assert_same};
use super::*;

/// The program behind a file system dies, as a server of network storage may.
#[test]
fn a_file_system_that_goes_away_fails_requests_and_is_served_again_after_a_restart() {
    let Some(mut fs) = BrokenFs::mount() else {
        return;
    };
    let mut field = Field::new(fs.path("disk.img"), &fs.backing("disk.img"));
    field.start(&[]);
    field.snapshot("s");
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
    assert_eq!(guest.flush(), 0);
    if !fs.vanish() {
        println!("skipped: the connection of a file system cannot be broken here");
        return;
    }
    assert!(guest.read(0, 4096).is_err());
    assert_ne!(guest.write(0, &pattern(2, 4096)), 0);
    assert_ne!(guest.flush(), 0);
    let event = field.event("io-failed");
    let error = event["error"].as_str().unwrap();
    assert!(
        error.contains("not connected") || error.contains("connection abort"),
        "{event}"
    );
    assert_eq!(field.state("s"), "active");
    let (done, said) = field.verb(&["remove", "s"]);
    assert!(!done, "{said}");
    drop(guest);
    // Nothing can be made durable or recorded, and the end says so.
    assert_eq!(field.stop().code(), Some(2));
    let log = field.log();
    assert!(
        log.contains("not everything could be made durable"),
        "{log}"
    );

    assert!(fs.mount_again());
    field.start(&[]);
    assert_eq!(field.state("s"), "active");
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
    let mut now = pattern(0, DISK);
    now[..65536].copy_from_slice(&pattern(1, 65536));
    assert_same(&field.shows("a.sock"), &now, "what was flushed");
    assert!(field.stop().success());
}

/// What is behind a device gets lost below it, and is there again.
#[test]
fn a_device_that_loses_its_storage_fails_requests_until_it_has_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    fs::write(&backing, pattern(0, DISK)).unwrap();
    let Some(device) = Loop::attach(&backing) else {
        return;
    };
    let mut field = Field::on(device.0.clone().into());
    let state = field.path("state");
    field.start(&["--state", state.to_str().unwrap()]);
    let mut guest = field.guest("a.sock");
    let file = fs::File::options().write(true).open(&backing).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(guest.read(6000, 4096).is_err());
    let event = field.event("io-failed");
    assert_eq!(
        (&event["operation"], &event["sector"]),
        (&"read".into(), &6000.into())
    );
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(0, 4096));
    fs::write(&backing, pattern(0, DISK)).unwrap();
    assert_same(&guest.read_all(DISK), &pattern(0, DISK), "the device");
    assert_eq!(guest.flush(), 0);

    // A device that is told to go away goes when nobody uses it any more.
    assert!(run(&["losetup", "-d", &device.0]));
    assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
    assert_eq!(guest.flush(), 0);
    drop(guest);
    assert!(field.stop().success());
    assert_eq!(fs::read(&backing).unwrap()[..65536], pattern(1, 65536));
}

#[test]
fn a_disk_file_that_is_cut_fails_reads_of_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let mut field = Field::new(disk.clone(), &disk);
    field.start(&[]);
    field.snapshot("s");
    let mut guest = field.guest("a.sock");
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(guest.read(6000, 4096).is_err());
    assert!(field.guest("s.sock").read(6000, 4096).is_err());
    field.event("io-failed");
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(0, 4096));
    drop(guest);
    field.kill();
    let said = refused(&field, &[]);
    assert!(said.contains("disk.img"), "{said}");
    assert!(
        said.contains("--forget") || said.contains("--accept-changes"),
        "{said}"
    );
}

/// The file lives on until the daemon ends, and is missed then.
#[test]
fn a_cow_that_is_deleted_while_served_is_missed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let mut field = Field::new(disk.clone(), &disk);
    field.start(&[]);
    field.snapshot("s");
    let mut guest = field.guest("a.sock");
    fs::remove_file(folder.path().join("s.cow")).unwrap();
    assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
    assert_eq!(guest.flush(), 0);
    assert_eq!(field.state("s"), "active");
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
    drop(guest);
    assert!(field.stop().success());
    let said = refused(&field, &[]);
    assert!(
        said.contains("s.cow") && said.contains("--forget s"),
        "{said}"
    );
    field.start(&["--forget", "s"]);
    assert!(field.status().snapshots.is_empty());
    assert_eq!(field.shows("a.sock")[..65536], pattern(1, 65536));
}

/// A start that must end with an error; what it says.
fn refused(field: &Field, arguments: &[&str]) -> String {
    let mut command = field.command(arguments);
    command.stderr(std::process::Stdio::piped());
    let output = super::limited::output(&mut command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}
