//! Storage that stalls, fails, is full, or must not be written.

use std::fs;

use super::field::{DISK, assert_same};
use super::*;

const ALL: &[Op] = &[Op::Read, Op::Write, Op::Sync, Op::Allocate, Op::Change];
const CHANGES: &[Op] = &[Op::Write, Op::Allocate, Op::Change];

fn failing() -> Option<(BrokenFs, Field)> {
    let fs = BrokenFs::mount()?;
    let field = Field::new(fs.path("disk.img"), &fs.backing("disk.img"));
    Some((fs, field))
}

/// What the event, the log and the counters say about failed requests; these words are in it.
fn told(field: &Field, words: &str) {
    let event = field.event("io-failed");
    let error = event["error"].as_str().unwrap_or_default();
    assert!(error.contains(words), "{event}");
    assert!(event["socket"].as_str().unwrap().ends_with("a.sock"));
    assert!(event["requests"].as_u64().unwrap() >= 1, "{event}");
    assert!(field.status().views[0].io.errors >= 1);
    let log = field.log();
    let line = log.lines().find(|line| line.contains("failed, "));
    assert!(line.is_some_and(|line| line.contains(words)), "{log}");
    let (_, said) = field.verb(&["events"]);
    assert!(said.contains(words), "{said}");
}

#[test]
fn storage_that_stalls_and_comes_back_costs_time_and_nothing_else() {
    let Some((fs, mut field)) = failing() else {
        return;
    };
    field.start(&[]);
    field.snapshot("s");
    let mut guest = field.guest("a.sock");
    fs.rule(ALL, "", Fate::Wait);
    guest.begin_write(800, &pattern(9, 65536));
    let slow = field.event("io-slow");
    assert_eq!(
        (&slow["operation"], &slow["sector"]),
        (&"write".into(), &800.into())
    );
    // The status is not behind the storage.
    let shown = field.status().views[0].slow_io.unwrap();
    assert!(shown.requests == 1 && shown.seconds >= 3, "{shown:?}");
    assert_eq!(field.state("s"), "active");
    assert!(!guest.has_ended());
    fs.mend();
    assert_eq!(guest.wait(), 0);
    field.event("io-slow-ended");
    assert_eq!(field.status().views[0].slow_io, None);
    assert_eq!(field.state("s"), "active");
    let mut now = pattern(0, DISK);
    assert_same(&field.shows("s.sock"), &now, "the snapshot");
    now[800 * 512..][..65536].copy_from_slice(&pattern(9, 65536));
    assert_same(&guest.read_all(DISK), &now, "the disk");
    assert_eq!(guest.flush(), 0);
    drop(guest);
    assert!(field.events("io-failed").is_empty());
    assert!(field.stop().success());
}

#[test]
fn errors_of_the_disk_reach_its_guest_and_the_operator_and_end_with_the_fault() {
    let Some((fs, mut field)) = failing() else {
        return;
    };
    field.start(&[]);
    let mut guest = field.guest("a.sock");
    fs.rule(&[Op::Read, Op::Write], "disk.img", Fate::Fail(libc::EIO));
    assert!(guest.read(77, 512).is_err());
    assert_ne!(guest.write(78, &pattern(3, 512)), 0);
    assert_ne!(guest.write_zeroes(79, 1), 0);
    told(&field, "Input/output error");
    assert_eq!(field.status().views[0].io.errors, 3);
    fs.mend();
    assert_same(
        &guest.read_all(DISK),
        &pattern(0, DISK),
        "nothing was written",
    );
    assert_eq!(guest.write(78, &pattern(3, 512)), 0);
    assert_eq!(guest.flush(), 0);
    drop(guest);
    assert!(field.stop().success());
}

/// A read through a snapshot's view, of a chunk in its COW.
#[test]
fn a_read_error_of_a_cow_fails_that_read_and_not_the_snapshot() {
    let Some((fs, mut field)) = failing() else {
        return;
    };
    field.start(&[]);
    field.snapshot("s");
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(3, 4096)), 0);
    let mut own = field.guest("s.sock");
    fs.rule(&[Op::Read], "s.cow", Fate::Fail(libc::EIO));
    assert!(own.read(0, 4096).is_err());
    assert!(own.read(8, 4096).is_ok(), "a chunk in the disk");
    assert_eq!(field.state("s"), "active");
    let event = field.event("io-failed");
    assert_eq!(
        (&event["snapshot"], &event["operation"]),
        (&"s".into(), &"read".into())
    );
    fs.mend();
    assert_same(&own.read_all(DISK), &pattern(0, DISK), "the snapshot");
}

#[test]
fn a_file_system_that_becomes_read_only_lets_guests_read_and_is_written_when_it_may_be() {
    let Some((fs, mut field)) = failing() else {
        return;
    };
    field.start(&[]);
    field.snapshot("s");
    field.snapshot("t");
    field.client().remove_snapshot("t").unwrap();
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(3, 4096)), 0);
    fs.rule(CHANGES, "", Fate::Fail(libc::EROFS));
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(3, 4096));
    // A chunk that needs no copy fails at once.
    assert_ne!(guest.write(0, &pattern(4, 4096)), 0);
    told(&field, "Read-only file system");
    let (done, said) = field.verb(&["remove", "s"]);
    assert!(!done && said.contains("Read-only file system"), "{said}");
    assert_eq!(field.state("s"), "active", "a refusal changes nothing");
    // One that needs a copy waits: the end of the snapshot cannot be recorded anywhere.
    guest.begin_write(800, &pattern(5, 4096));
    field.event("io-slow");
    assert!(!guest.has_ended());
    fs.mend();
    assert_eq!(guest.wait(), 0);
    let lost = field.event("snapshot-invalid");
    assert_eq!(lost["snapshot"], "s");
    assert!(
        lost["error"].as_str().unwrap().contains("Read-only"),
        "{lost}"
    );
    assert_eq!(field.state("s"), "invalid");
    assert_eq!(guest.write(0, &pattern(4, 4096)), 0);
    drop(guest);
    let (done, said) = field.verb(&["remove", "s"]);
    assert!(done, "{said}");
    field.snapshot("u");
    assert!(field.stop().success());
}

#[test]
fn a_full_file_system_below_a_sparse_disk_fails_writes_until_there_is_space() {
    let Some(small) = Small::mount("tmpfs", "size=2m") else {
        return;
    };
    let disk = small.path("disk.img");
    fs::File::create(&disk)
        .unwrap()
        .set_len(DISK as u64)
        .unwrap();
    let mut field = Field::on(disk);
    field.start(&[]);
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(1, 4096)), 0);
    small.fill();
    assert_ne!(guest.write(4096, &pattern(2, 65536)), 0);
    told(&field, "No space left on device");
    // What has its space can be written, and everything can be read and flushed.
    assert_eq!(guest.write(0, &pattern(3, 4096)), 0);
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(3, 4096));
    assert_eq!(guest.flush(), 0);
    small.free();
    assert_eq!(guest.write(4096, &pattern(2, 65536)), 0);
    assert_eq!(guest.read(4096, 65536).unwrap(), pattern(2, 65536));
    drop(guest);
    assert!(field.stop().success());
}

/// As by `ulimit -f` or `LimitFSIZE=`, whose signal ends a program that does not expect it.
#[test]
fn a_limit_for_the_size_of_files_fails_writes_and_does_not_end_the_daemon() {
    for engine in ["io_uring", "threads"] {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.img");
        let mut field = Field::new(disk.clone(), &disk);
        let inner = field.command(&["--io-engine", engine]);
        let mut command = std::process::Command::new("bash");
        command
            .args(["-c", "ulimit -f 2048 && exec \"$0\" \"$@\""])
            .arg(inner.get_program())
            .args(inner.get_args())
            .current_dir(inner.get_current_dir().unwrap())
            .stderr(fs::File::create(field.path("log")).unwrap());
        field.start_by(command);
        let mut guest = field.guest("a.sock");
        assert_ne!(guest.write(6000, &pattern(1, 4096)), 0);
        told(&field, "File too large");
        assert_eq!(guest.write(1000, &pattern(2, 4096)), 0);
        let (done, said) = field.verb(&["snapshot", "s", "--cow", "s.cow", "--size", "8M"]);
        assert!(!done && said.contains("8 MiB"), "{said}");
        assert!(!field.path("s.cow").exists());
        drop(guest);
        assert!(field.stop().success());
    }
}

#[test]
fn a_full_file_system_below_a_sparse_cow_ends_its_snapshot_and_no_write() {
    let Some(small) = Small::mount("tmpfs", "size=2m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let mut field = Field::new(disk.clone(), &disk);
    field.start(&["--allow-path", small.path("").to_str().unwrap()]);
    let sparse = |name: &str| {
        let cow = small.path(&format!("{name}.cow"));
        fs::File::create(cow).unwrap().set_len(8 << 20).unwrap();
        field
            .client()
            .add_snapshot(&field.spec(name, &small.path("")))
            .unwrap();
    };
    sparse("s");
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(1, 4096)), 0);
    small.fill();
    for at in 0..40 {
        assert_eq!(guest.write(800 + at * 8, &pattern(2, 4096)), 0);
    }
    let lost = field.event("snapshot-invalid");
    assert!(
        lost["error"].as_str().unwrap().contains("No space left"),
        "{lost}"
    );
    assert_eq!(field.state("s"), "invalid");
    assert!(field.guest("s.sock").read(0, 512).is_err());
    small.free();
    let (done, said) = field.verb(&["remove", "s"]);
    assert!(done, "{said}");
    let before = guest.read_all(DISK);
    sparse("t");
    assert_eq!(guest.write(0, &pattern(7, 65536)), 0);
    assert_same(&field.shows("t.sock"), &before, "a new snapshot");
}

/// A full ext4 zeroes no part of a space that it has allocated: that may need a block for its list
/// of extents.
#[test]
fn zeroes_on_a_full_file_system_are_written_where_the_file_has_its_space() {
    for engine in ["io_uring", "threads"] {
        let Some(small) = Small::ext4(40 << 20) else {
            return;
        };
        let disk = small.path("disk.img");
        let mut field = Field::new(disk.clone(), &disk);
        field.start(&["--io-engine", engine]);
        field.snapshot("s");
        let mut guest = field.guest("a.sock");
        let mut own = field.guest("s.sock");
        // Zeroes in space that was never written need no block.
        let written = pattern(7, 65536);
        for at in 0..DISK / 65536 {
            assert_eq!(own.write(at as u64 * 128, &written), 0);
        }
        small.fill();
        let (mut disk, mut copy) = (pattern(0, DISK), written.repeat(DISK / 65536));
        for (of, to, content) in [(&mut own, 37, &mut copy), (&mut guest, 41, &mut disk)] {
            for at in (0..800).map(|n| (n * to % 1000) * 8) {
                assert_eq!(of.write_zeroes(at, 8), 0, "zeroes at sector {at}");
                content[at as usize * 512..][..4096].fill(0);
            }
        }
        assert_same(&own.read_all(DISK), &copy, "the snapshot");
        assert_same(&guest.read_all(DISK), &disk, "the disk");
        assert_eq!(guest.flush(), 0);
        assert_eq!(field.state("s"), "active");
        assert!(field.events("io-failed").is_empty());
        drop((guest, own));
        assert!(field.stop().success());
    }
}

#[test]
fn a_full_file_system_of_the_state_file_refuses_changes_and_no_request() {
    let Some(small) = Small::mount("tmpfs", "size=64k") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let mut field = Field::new(disk.clone(), &disk);
    let state = small.path("state");
    let place = ["--state", state.to_str().unwrap()];
    field.start(&place);
    field.snapshot("s");
    small.fill();
    let before = fs::read(&state).unwrap();
    let (done, said) = field.verb(&["snapshot", "t", "--cow", "t.cow", "--size", "8M"]);
    assert!(!done && said.contains("No space left"), "{said}");
    assert!(said.contains(state.to_str().unwrap()), "{said}");
    assert!(!field.path("t.cow").exists(), "undone");
    assert_eq!(fs::read(&state).unwrap(), before);
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
    assert_eq!(guest.flush(), 0);
    drop(guest);
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
    small.free();
    let (done, said) = field.verb(&["snapshot", "t", "--cow", "t.cow", "--size", "8M"]);
    assert!(done, "{said}");
    assert!(field.stop().success());
    field.start(&place);
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "after a restart");
    assert_eq!(field.state("t"), "active");
}

/// The file is longer then, and the disk is not: it is completed as told, before or after a kill.
#[test]
fn a_resize_without_space_for_its_record_goes_on_as_told() {
    let Some(small) = Small::mount("tmpfs", "size=64k") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let mut field = Field::new(disk.clone(), &disk);
    let state = small.path("state");
    let place = ["--state", state.to_str().unwrap()];
    field.start(&place);
    field.snapshot("s");
    let refused = |field: &Field, size: &str| {
        small.fill();
        let (done, said) = field.verb(&["resize", size]);
        assert!(!done && said.contains("No space left"), "{said}");
        assert!(said.contains("ask for the same size again"), "{said}");
        small.free();
    };
    refused(&field, "5M");
    assert_eq!(field.guest("a.sock").bytes(), DISK);
    let (done, said) = field.verb(&["resize", "5M"]);
    assert!(done, "{said}");
    assert_eq!(field.guest("a.sock").bytes(), 5 << 20);

    refused(&field, "6M");
    field.kill();
    let ended = field.command(&place).status().unwrap();
    assert!(!ended.success() && field.log().contains("--accept-changes"));
    field.start(&[place.as_slice(), &["--accept-changes"]].concat());
    assert_eq!(field.guest("a.sock").bytes(), 6 << 20);
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
    let mut guest = field.guest("a.sock");
    assert_same(&guest.read_all(DISK), &pattern(0, DISK), "the disk");
    assert_eq!(guest.read(12000, 4096).unwrap(), [0; 4096]);
    assert_eq!(guest.write(12000, &pattern(1, 4096)), 0);
    drop(guest);
    assert!(field.stop().success());
}
