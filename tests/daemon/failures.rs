//! Devices that fail under the daemon: what is reported, and that the advice works.

use serde_json::Value;

use super::failing::{Failing, text};
use super::inject::{Call, Injector, Rule, filtered};
use super::*;

const ANYWHERE: std::ops::Range<u64> = 0..u64::MAX;
const DATA: std::ops::Range<u64> = 8192..u64::MAX;
/// The first exception area of a COW with chunks of 4 KiB.
const AREA: std::ops::Range<u64> = 4096..8192;

const fn rule(call: Call, file: &'static str, bytes: std::ops::Range<u64>, errno: i32) -> Rule {
    Rule {
        call,
        file,
        bytes,
        errno,
    }
}

/// The words between backticks in `text`: a command that it advises.
fn advised(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

struct Case {
    fault: Rule,
    /// A guest's flush meets the fault, not the merge itself.
    by_flush: bool,
    device: &'static str,
    operation: &'static str,
    words: &'static str,
    retry: &'static str,
}

/// The raw origin after the advice was followed; `first` is what the snapshot held.
fn follow_the_advice(case: &Case) {
    let mut world = World::new();
    let first = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    drop(guest);
    world.terminate();

    let mut failing = Failing::start(world);
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    let rate: &[&str] = if case.by_flush {
        &["--rate", "4K"]
    } else {
        &[]
    };
    if !case.by_flush {
        failing.faults.fail(case.fault.clone());
    }
    let asked = failing.verb(&[&["rollback", "s", "--now"], rate].concat());
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    if case.by_flush {
        failing.faults.fail(case.fault.clone());
        assert_ne!(guest.flush(), 0);
    }
    let told = failing.until_event("merge-failed");
    assert_eq!(told["snapshot"], "s");
    let fields = [&told["device"], &told["operation"], &told["retry"]];
    assert_eq!(fields, [case.device, case.operation, case.retry]);
    let reason = told["reason"].as_str().unwrap();
    let error = std::io::Error::from_raw_os_error(case.fault.errno).to_string();
    for part in [case.words, case.fault.file, &error] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let place = told["offset"].as_u64().map(|at| format!(" at byte {at} "));
    assert_eq!(place.is_none(), case.fault.call == Call::Flush);
    assert!(reason.contains(&place.unwrap_or_default()), "{reason}");
    // A client that waits, the status and the events report the same.
    let waited = failing.verb(&["merge", "--wait"]);
    assert_eq!(waited.status.code(), Some(2));
    let status = failing.verb(&["status"]);
    let events = failing.verb(&["events"]);
    let shown = [waited.stderr, status.stdout, events.stdout].map(|s| text(&s));
    let merge = failing.world.client().status().unwrap().merge.unwrap();
    assert_eq!(merge.error.as_deref(), Some(reason));
    for shown in shown.iter().chain([&failing.log()]) {
        assert!(shown.contains(reason), "{reason}: {shown}");
    }
    if case.fault.call != Call::Read {
        assert_same(&guest.read_all(BYTES), &first, "while the merge is stopped");
    }

    failing.faults.mend();
    if case.retry == "resume" {
        for shown in &shown {
            assert!(advised(shown).contains(&"snapback merge --resume".to_owned()));
        }
        let resumed = failing.verb(&["merge", "--resume", "--wait"]);
        assert!(resumed.status.success(), "{}", text(&resumed.stderr));
        assert_same(&guest.read_all(BYTES), &first, "after the merge");
        drop(guest);
        failing.world.terminate();
    } else {
        let advice = "restart the daemon";
        for shown in &shown {
            assert!(shown.contains(advice), "{shown}");
            assert!(!shown.contains("--resume"), "{shown}");
        }
        let paused = case.operation == "write-metadata";
        if paused {
            failing.world.client().pause_merge().unwrap();
        }
        let resumed = failing.verb(&["merge", "--resume"]);
        assert_eq!(resumed.status.code(), Some(2));
        let recorded = &failing.world.state()["merge"]["paused"];
        assert_eq!(*recorded, paused, "a refusal changes nothing");
        let refused = text(&resumed.stderr);
        assert!(refused.contains(advice), "{refused}");
        assert!(refused.contains(reason), "{refused}");
        drop(guest);
        let mut daemon = failing.world.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = daemon.wait().unwrap();
        let log = failing.log();
        if case.operation == "flush" {
            // What the flush lost may be missing, and the daemon says so when it ends.
            assert_eq!(ended.code(), Some(2), "{log}");
            assert!(
                log.contains("not everything could be made durable"),
                "{log}"
            );
        }
        assert!(!log.contains("I/O error 5"), "{log}");
        failing.world.start(&["--socket-path", "a.sock"]);
        // What is left may be so little that the merge has ended by itself.
        let unless_ended = |asked: Result<(), _>| {
            if asked.is_err() {
                failing.world.merged();
            }
        };
        if case.by_flush {
            unless_ended(failing.world.client().set_merge_rate(0));
        }
        if paused {
            unless_ended(failing.world.client().resume_merge());
        }
        failing.world.merged();
        failing.world.terminate();
    }
    assert_same(&failing.world.origin(), &first, case.words);
    let state = failing.world.state();
    assert_eq!(state["merge"], Value::Null);
    assert_eq!(state["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn a_merge_that_could_not_read_the_cow_goes_on_as_told() {
    follow_the_advice(&Case {
        fault: rule(Call::Read, "/s.cow", DATA, libc::EIO),
        by_flush: false,
        device: "cow",
        operation: "read",
        words: "reading the COW ",
        retry: "resume",
    });
}

#[test]
fn a_merge_that_could_not_write_the_origin_goes_on_as_told() {
    follow_the_advice(&Case {
        fault: rule(Call::Write, "/disk.img", ANYWHERE, libc::ENOSPC),
        by_flush: false,
        device: "origin",
        operation: "write",
        words: "writing the origin ",
        retry: "resume",
    });
}

#[test]
fn a_merge_that_could_not_flush_the_origin_goes_on_as_told() {
    follow_the_advice(&Case {
        fault: rule(Call::Flush, "/disk.img", ANYWHERE, libc::EIO),
        by_flush: false,
        device: "origin",
        operation: "flush",
        words: "flushing the origin ",
        retry: "restart",
    });
}

#[test]
fn a_merge_that_could_not_write_the_metadata_goes_on_as_told() {
    follow_the_advice(&Case {
        fault: rule(Call::Write, "/s.cow", AREA, libc::EIO),
        by_flush: false,
        device: "cow",
        operation: "write-metadata",
        words: "writing the metadata of the COW ",
        retry: "restart",
    });
}

#[test]
fn a_merge_whose_guest_could_not_flush_the_cow_goes_on_as_told() {
    follow_the_advice(&Case {
        fault: rule(Call::Flush, "/s.cow", ANYWHERE, libc::EIO),
        by_flush: true,
        device: "cow",
        operation: "flush",
        words: "flushing the COW ",
        retry: "restart",
    });
}

/// `merge` without a daemon advises the same command, whatever failed.
#[test]
fn a_merge_without_a_daemon_that_failed_goes_on_with_the_same_command() {
    for (fault, words) in [
        (
            rule(Call::Read, "/s.cow", DATA, libc::EIO),
            "reading the COW ",
        ),
        (
            rule(Call::Write, "/disk.img", ANYWHERE, libc::ENOSPC),
            "writing the origin ",
        ),
        (
            rule(Call::Flush, "/disk.img", ANYWHERE, libc::EIO),
            "flushing the origin ",
        ),
        (
            rule(Call::Write, "/s.cow", AREA, libc::EIO),
            "writing the metadata of the COW ",
        ),
    ] {
        let mut world = World::new();
        let first = world.origin();
        world.start(&["--socket-path", "a.sock"]);
        world.client().add_snapshot(&world.snapshot("s")).unwrap();
        let mut guest = Guest::connect(&world.path("a.sock"));
        wreck(&mut guest, 1);
        drop(guest);
        world.terminate();
        let merge = || {
            let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
            command
                .current_dir(world.folder.path())
                .env("XDG_RUNTIME_DIR", world.folder.path())
                .args(["merge", "--origin", "disk.img", "--cow", "s.cow"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command
        };
        let merging = filtered(&mut merge()).spawn().unwrap();
        let faults = Injector::attach(&merging, std::slice::from_ref(&fault));
        let failed = merging.wait_with_output().unwrap();
        drop(faults);
        let said = text(&failed.stderr);
        assert_eq!(failed.status.code(), Some(2), "{words}: {said}");
        let advice = "repeat the same command";
        for part in [words, fault.file, advice] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // There are neither guests nor a daemon.
        for part in ["guests", "the daemon", "--resume"] {
            assert!(!said.contains(part), "{part}: {said}");
        }
        let again = merge().output().unwrap();
        assert!(again.status.success(), "{}", text(&again.stderr));
        assert_same(&world.origin(), &first, words);
        assert_eq!(world.state()["merge"], Value::Null);
    }
}

#[test]
fn a_flush_of_the_origin_that_failed_is_told_once_with_the_way_out() {
    let mut failing = Failing::start(World::new());
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    assert_eq!(guest.write(8, &[7; 4096]), 0);
    let fault = rule(Call::Flush, "/disk.img", ANYWHERE, libc::EIO);
    failing.faults.fail(fault);
    assert_ne!(guest.flush(), 0);
    failing.faults.mend();
    assert_ne!(guest.flush(), 0, "nothing brings back what it lost");
    let error = failing.until_event("origin-flush-failed")["error"].to_string();
    assert!(error.contains("flushing the origin "), "{error}");
    assert_eq!(failing.events("origin-flush-failed").len(), 1);
    let events = text(&failing.verb(&["events"]).stdout);
    for shown in [events, failing.log()] {
        assert!(shown.contains("until the daemon is restarted"), "{shown}");
    }
    // A snapshot could not be right either, and says what to do.
    let snapshot = ["snapshot", "s", "--cow", "s.cow", "--size", "32M"];
    let refused = failing.verb(&snapshot);
    assert_eq!(refused.status.code(), Some(2));
    let refused = text(&refused.stderr);
    for part in ["flushing the origin ", "restart the daemon"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    drop(guest);
    failing.world.kill();
    failing.world.start(&["--socket-path", "a.sock"]);
    let before = failing.world.origin();
    let taken = failing.verb(&snapshot);
    assert!(taken.status.success(), "{}", text(&taken.stderr));
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    assert_eq!(guest.write(8, &[9; 4096]), 0);
    assert_eq!(guest.flush(), 0);
    drop(guest);
    failing.world.rollback("s", RollbackWhen::Now);
    failing.world.merged();
    assert_same(&failing.world.origin(), &before, "the snapshot taken then");
}

/// The event of an invalid snapshot names the device that failed and no other, and
/// the command that it advises works.
#[test]
fn a_lost_snapshot_is_told_with_what_failed_and_can_be_removed_as_told() {
    let cases = [
        (
            rule(Call::Read, "/disk.img", ANYWHERE, libc::EIO),
            "origin",
            "read",
            "reading the origin ",
        ),
        (
            rule(Call::Write, "/s.cow", DATA, libc::ENOSPC),
            "cow",
            "write",
            "writing the COW ",
        ),
        (
            rule(Call::Write, "/s.cow", AREA, libc::EIO),
            "cow",
            "write-metadata",
            "writing the metadata of the COW ",
        ),
        (
            rule(Call::Flush, "/s.cow", ANYWHERE, libc::EIO),
            "cow",
            "flush",
            "flushing the COW ",
        ),
    ];
    for (fault, device, operation, words) in cases {
        let failing = Failing::start(World::new());
        let client = failing.world.client();
        client.add_snapshot(&failing.world.snapshot("s")).unwrap();
        let mut guest = Guest::connect(&failing.world.path("a.sock"));
        failing.faults.fail(fault.clone());
        assert_eq!(guest.write(80, &[7; 512]), 0, "the origin lives on");
        let told = failing.until_event("snapshot-invalid");
        assert_eq!([&told["device"], &told["operation"]], [device, operation]);
        assert_eq!([&told["snapshot"], &told["reason"]], ["s", "io"]);
        let error = told["error"].as_str().unwrap();
        let system = std::io::Error::from_raw_os_error(fault.errno).to_string();
        for part in [words, fault.file, &system] {
            assert!(error.contains(part), "{part}: {error}");
        }
        if device == "origin" {
            assert_eq!(told["offset"], 80 * 512);
        }
        failing.faults.mend();
        let (events, log) = (text(&failing.verb(&["events"]).stdout), failing.log());
        for shown in [&events, &log] {
            assert!(shown.contains(error), "{error}: {shown}");
            let spared = shown.to_lowercase().contains("origin is not affected");
            assert_eq!(spared, device == "cow", "{shown}");
        }
        assert_eq!(guest.read(80, 512).unwrap(), [7; 512]);
        assert!(
            advised(&log).contains(&"snapback remove s".to_owned()),
            "{log}"
        );
        let removed = failing.verb(&["remove", "s"]);
        assert!(removed.status.success(), "{}", text(&removed.stderr));
        assert_eq!(client.status().unwrap().snapshots, []);
    }
}

#[test]
fn a_record_that_cannot_be_written_ends_its_snapshot_and_is_named() {
    let failing = Failing::start(World::in_memory());
    let client = failing.world.client();
    let spec = SnapshotSpec {
        defer_entries: Some(true),
        ..failing.world.snapshot("s")
    };
    client.add_snapshot(&spec).unwrap();
    if !client.status().unwrap().snapshots[0].defer_entries {
        println!("skipped: {}", failing.log());
        return;
    }
    let mut guest = Guest::connect(Path::new(&spec.socket.unwrap()));
    assert_eq!(guest.write(0, &[7; 4096]), 0);
    failing
        .faults
        .fail(rule(Call::Write, ".record", ANYWHERE, libc::ENOSPC));
    assert_ne!(guest.write(8, &[7; 4096]), 0, "no place lists it");
    let told = failing.until_event("snapshot-invalid");
    assert_eq!([&told["device"], &told["operation"]], ["record", "write"]);
    let error = told["error"].as_str().unwrap();
    for words in ["record of unflushed writes", ".record", "No space"] {
        assert!(error.contains(words), "{error}");
    }
    let mut origin = Guest::connect(&failing.world.path("a.sock"));
    assert_eq!(origin.write(0, &[9; 4096]), 0);
    failing.faults.mend();
}
