//! Snapshots whose entries are deferred: what a killed daemon leaves in its record, and what
//! becomes of it. No guest here flushes, unless a test says so.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use snapback::control::Client;

use crate::guest::{Ask, Guest, Kind};
use crate::world::{CHUNK, Field, Vm, Where, first_content};

const S1: &str = "name=s1,cow=s1.cow,size=2M,socket=s1.sock,defer-entries";
/// What the guest of `s1` writes first.
const FIRST: std::ops::Range<usize> = 0..40;

/// The record that the state file notes.
fn record(vm: &Vm) -> Option<PathBuf> {
    let state: Value = serde_json::from_slice(&vm.bytes("disk.img.snapback")).unwrap();
    let noted = state["snapshots"][0]["unflushed"]["path"].as_str()?;
    Some(PathBuf::from(noted))
}

fn defers(vm: &Vm) -> bool {
    let status = Client::new(&vm.path("c.sock")).unwrap().status().unwrap();
    status.snapshots[0].defer_entries
}

fn expected(byte: u8, chunks: std::ops::Range<usize>) -> Vec<u8> {
    let mut content = first_content();
    content[chunks.start * CHUNK..chunks.end * CHUNK].fill(byte);
    content
}

/// A daemon with a deferred snapshot, some chunks of which were written. `None` where there
/// is no memory for a record.
fn written(field: &Field) -> Option<(Vm, PathBuf)> {
    let mut vm = field.vm("vm");
    let said = vm.start(&["--snapshot", S1]);
    if !defers(&vm) {
        println!("skipped: {said}");
        return None;
    }
    let record = record(&vm).unwrap();
    vm.write("s1.sock", FIRST, 0x33);
    Some((vm, record))
}

fn killed(field: &Field) -> Option<(Vm, PathBuf)> {
    let (mut vm, record) = written(field)?;
    vm.kill();
    assert!(record.exists());
    Some((vm, record))
}

fn flush(vm: &Vm, socket: &str) {
    let mut guest = Guest::connect(&vm.path(socket), 1, 1);
    let ask = Ask {
        kind: Kind::Flush,
        sector: 0,
        len: 0,
        offset: 0,
        cut: 0,
    };
    guest.submit(0, &ask);
    guest.all(1);
}

#[track_caller]
fn contains(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn verbs_that_read_a_store_refuse_one_that_lacks_acknowledged_writes_until_a_start() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let cow = vm.bytes("s1.cow");
    let verbs: [&[&str]; 4] = [
        &["info", "s1.cow"],
        &["check", "s1.cow"],
        &["diff", "--origin", "disk.img", "--cow", "s1.cow"],
        &["export", "--origin", "disk.img", "--cow", "s1.cow", "out"],
    ];
    for verb in verbs {
        let (status, said) = vm.say(verb);
        assert_eq!(status, 2, "{verb:?}: {said}");
        contains(
            &said,
            &["not flushed", record.to_str().unwrap(), "start it once"],
        );
    }
    assert_eq!(vm.bytes("s1.cow"), cow);
    // This one prints what is in the log.
    assert!(vm.verb(&["dump", "s1.cow"]).contains("\n0 entries\n"));
    // The advice.
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    assert_eq!(vm.shows("a.sock"), first_content());
    vm.stop();
    assert!(!record.exists(), "a clean stop leaves a record");
    for verb in verbs {
        vm.verb(verb);
    }
    assert_eq!(vm.bytes("out"), expected(0x33, FIRST));
}

#[test]
fn no_store_is_made_over_one_that_lacks_acknowledged_writes() {
    let field = Field::at(Where::Memory);
    let Some((vm, record)) = killed(&field) else {
        return;
    };
    let cow = vm.bytes("s1.cow");
    let create = ["create", "s1.cow", "--force"];
    let (status, said) = vm.say(&create);
    assert_eq!(status, 2, "{said}");
    contains(&said, &["unflushed writes", record.to_str().unwrap()]);
    assert_eq!(vm.bytes("s1.cow"), cow);
    // The advice.
    fs::remove_file(&record).unwrap();
    vm.verb(&create);
}

#[test]
fn a_merge_without_a_daemon_merges_what_a_killed_daemon_had_acknowledged() {
    let field = Field::at(Where::Memory);
    let Some((vm, record)) = killed(&field) else {
        return;
    };
    vm.verb(&["merge", "--origin", "disk.img", "--cow", "s1.cow"]);
    assert_eq!(vm.bytes("disk.img"), expected(0x33, FIRST));
    assert!(!record.exists());
}

#[test]
fn a_record_that_is_gone_stops_the_start_until_its_loss_is_accepted() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    flush(&vm, "s1.sock");
    vm.write("s1.sock", 50..60, 0x44);
    // Also if it goes while the daemon serves.
    fs::remove_file(&record).unwrap();
    vm.write("s1.sock", 60..70, 0x44);
    vm.kill();
    let words = [record.to_str().unwrap(), "is gone", "--accept-changes"];
    contains(&vm.refused_plain(&[]), &words);
    let cow = vm.bytes("s1.cow");
    let merge = ["merge", "--origin", "disk.img", "--cow", "s1.cow"];
    let (status, said) = vm.say(&merge);
    assert_eq!(status, 2, "{said}");
    contains(&said, &words);
    assert_eq!(
        (vm.bytes("s1.cow"), vm.bytes("disk.img")),
        (cow, first_content())
    );
    let said = vm.start_plain(&["--accept-changes"]);
    contains(&said, &["is gone", "accepted"]);
    // What was flushed is there; the rest is as if the power had gone.
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    assert!(defers(&vm));
    vm.write("s1.sock", 100..110, 0x55);
    vm.kill();
    vm.start_plain(&[]);
    assert_eq!(
        vm.shows("s1.sock")[100 * CHUNK..110 * CHUNK],
        [0x55; 10 * CHUNK]
    );
    vm.stop();
}

#[test]
fn a_record_in_another_place_than_this_start_looks_stops_it() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let mut state = String::from_utf8(vm.bytes("disk.img.snapback")).unwrap();
    let elsewhere = vm.path("elsewhere.record");
    fs::write(&elsewhere, b"").unwrap();
    let (here, there) = (record.to_str().unwrap(), elsewhere.to_str().unwrap());
    state = state.replace(here, there);
    let kept = vm.bytes("disk.img.snapback");
    fs::write(vm.path("disk.img.snapback"), state).unwrap();
    contains(&vm.refused_plain(&[]), &[there, "is not at", here]);
    // The advice.
    fs::write(vm.path("disk.img.snapback"), kept).unwrap();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
}

#[test]
fn a_clean_stop_needs_no_record() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    fs::remove_file(&record).unwrap();
    contains(&vm.stop(), &["could not be removed"]);
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
}

#[test]
fn a_damaged_record_stops_the_start_and_is_left_alone() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let whole = fs::read(&record).unwrap();
    for at in [20, 512 + 40, whole.len()] {
        let mut damaged = whole.clone();
        match damaged.get_mut(at) {
            Some(byte) => *byte ^= 1,
            None => damaged.truncate(at / 2),
        }
        fs::write(&record, &damaged).unwrap();
        contains(
            &vm.refused_plain(&[]),
            &["damaged", record.to_str().unwrap()],
        );
        assert_eq!(vm.say(&["info", "s1.cow"]).0, 2);
        assert_eq!(fs::read(&record).unwrap(), damaged);
    }
    fs::write(&record, &whole).unwrap();
    // The advice.
    let said = vm.refused_plain(&["--forget", "none"]);
    assert!(!said.contains("damaged"), "{said}");
    fs::write(&record, b"x").unwrap();
    contains(
        &vm.refused_plain(&[]),
        &["remove that file", "--accept-changes"],
    );
    fs::remove_file(&record).unwrap();
    vm.start_plain(&["--accept-changes"]);
    assert_eq!(vm.shows("a.sock"), first_content());
    vm.stop();
}

#[test]
fn a_record_that_cannot_be_read_or_emptied_stops_the_start() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let aside = record.with_extension("aside");
    fs::rename(&record, &aside).unwrap();
    fs::create_dir(&record).unwrap();
    contains(
        &vm.refused_plain(&[]),
        &[
            "cannot be used",
            record.to_str().unwrap(),
            "make it accessible",
        ],
    );
    fs::remove_dir(&record).unwrap();
    fs::rename(&aside, &record).unwrap();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
}

#[test]
fn a_disk_that_grew_keeps_what_the_record_of_its_snapshot_lists() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, _)) = written(&field) else {
        return;
    };
    let larger = first_content().len() as u64 + (1 << 20);
    let client = Client::new(&vm.path("c.sock")).unwrap();
    client.resize(Some(larger)).unwrap();
    vm.write("s1.sock", 50..60, 0x44);
    vm.kill();
    vm.start_plain(&[]);
    let mut content = expected(0x33, FIRST);
    content[50 * CHUNK..60 * CHUNK].fill(0x44);
    assert_eq!(vm.shows("s1.sock"), content);
    vm.stop();
    assert_eq!(fs::metadata(vm.path("disk.img")).unwrap().len(), larger);
}

/// As with a full file system: what exists can be written, and nothing be made.
#[test]
fn without_room_for_a_record_entries_are_not_deferred_and_nothing_is_lost() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    vm.stop();
    fs::create_dir(record.with_extension("new")).unwrap();
    contains(&vm.start_plain(&[]), &["entries are not deferred"]);
    assert!(!defers(&vm));
    assert_eq!(self::record(&vm), None);
    vm.write("s1.sock", 0..80, 0x66);
    vm.kill();
    vm.verb(&["info", "s1.cow"]);
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x66, 0..80));
    vm.stop();
    fs::remove_dir(record.with_extension("new")).unwrap();
}

#[test]
fn after_another_boot_a_missing_record_is_power_loss_and_no_refusal() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    flush(&vm, "s1.sock");
    vm.write("s1.sock", 50..60, 0x44);
    vm.kill();
    fs::remove_file(&record).unwrap();
    let state = String::from_utf8(vm.bytes("disk.img.snapback")).unwrap();
    let parsed: Value = serde_json::from_str(&state).unwrap();
    let boot = parsed["snapshots"][0]["unflushed"]["boot"]
        .as_str()
        .unwrap();
    fs::write(
        vm.path("disk.img.snapback"),
        state.replace(boot, &"0".repeat(32)),
    )
    .unwrap();
    contains(&vm.start_plain(&[]), &["as after power loss"]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
}

#[test]
fn a_start_that_defers_no_more_takes_the_record_over() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let off = "name=s1,cow=s1.cow,defer-entries=no";
    vm.start_plain(&["--snapshot", off]);
    assert!(!defers(&vm));
    vm.write("s1.sock", FIRST.end..80, 0x33);
    vm.kill();
    for _ in 0..2 {
        vm.start_plain(&[]);
        assert!(!defers(&vm));
        assert_eq!(vm.shows("s1.sock"), expected(0x33, 0..80));
        vm.stop();
        assert!(!record.exists());
    }
}

#[test]
fn the_verbs_of_a_daemon_lose_no_unflushed_entry() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    let control = ["--control", "c.sock"];
    vm.verb(&[&["grow", "s1", "4M"][..], &control].concat());
    vm.write("s1.sock", 40..80, 0x33);
    vm.kill();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, 0..80));
    vm.write("s1.sock", 80..100, 0x33);
    vm.verb(&[&["rollback", "s1", "--now", "--wait"][..], &control].concat());
    assert_eq!(vm.shows("a.sock"), expected(0x33, 0..100));
    assert!(!record.exists(), "the record of a merged store");
    vm.kill();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("a.sock"), expected(0x33, 0..100));
    vm.stop();
}

#[test]
fn a_merge_that_is_killed_brings_no_merged_chunk_back() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    let control = ["--control", "c.sock"];
    let rollback = ["rollback", "s1", "--now", "--rate", "4K"];
    vm.verb(&[&rollback[..], &control].concat());
    vm.write("a.sock", 0..10, 0x77);
    vm.kill();
    assert!(record.exists());
    vm.start_plain(&[]);
    let mut content = expected(0x33, FIRST);
    content[..10 * CHUNK].fill(0x77);
    assert_eq!(vm.shows("a.sock"), content);
    vm.stop();
}

#[test]
fn a_snapshot_that_is_removed_takes_its_record_along() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    vm.verb(&["remove", "s1", "--control", "c.sock"]);
    assert!(!record.exists());
    vm.kill();
    assert_eq!(vm.say(&["info", "s1.cow"]).0, 1, "invalid");
    // The same file has a new store, and no old write.
    vm.verb(&["create", "s1.cow", "--force"]);
    vm.start(&[
        "--snapshot",
        "name=s1,cow=s1.cow,socket=s1.sock,defer-entries",
    ]);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();
}

#[test]
fn a_snapshot_that_was_not_taken_leaves_no_record() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    let folder = record.parent().unwrap();
    let before = fs::read_dir(folder).unwrap().count();
    let socket = vm.path("none/s2.sock");
    let s2 = [
        "snapshot",
        "s2",
        "--cow",
        "s2.cow",
        "--size",
        "2M",
        "--defer-entries",
    ];
    let at = [
        "--socket-path",
        socket.to_str().unwrap(),
        "--control",
        "c.sock",
    ];
    assert_eq!(vm.say(&[&s2[..], &at].concat()).0, 2);
    assert!(!vm.path("s2.cow").exists());
    if folder.starts_with(vm.folder()) {
        // Nobody else has records there.
        assert_eq!(fs::read_dir(folder).unwrap().count(), before);
    }
    vm.stop();
}

#[test]
fn another_daemon_gets_neither_the_store_nor_its_record() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = written(&field) else {
        return;
    };
    let other = field.vm("other");
    let cow = vm.path("s1.cow");
    let s1 = format!("name=s1,cow={},defer-entries", cow.display());
    let listed = fs::read(&record).unwrap();
    other.refused(&["--snapshot", &s1]);
    assert_eq!(fs::read(&record).unwrap(), listed);
    vm.kill();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
}

#[test]
fn a_copy_of_a_volume_whose_daemon_was_killed_is_told_what_it_lacks() {
    let field = Field::at(Where::Memory);
    let Some((mut vm, record)) = killed(&field) else {
        return;
    };
    let (from, to) = (field.path("vm"), field.path("copy"));
    crate::world::run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
    let copy = field.brought("copy");
    contains(&copy.refused_plain(&[]), &["s1"]);
    // The original is as it was.
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), expected(0x33, FIRST));
    vm.stop();
    assert!(!record.exists());
}

#[test]
fn a_volume_without_a_state_file_defers_nothing() {
    let field = Field::at(Where::Memory);
    let mut vm = field.vm("vm");
    let said = vm.start(&["--read-only", "--snapshot", S1]);
    contains(&said, &["no state file", "entries are not deferred"]);
    assert!(!defers(&vm));
    vm.stop();
}
