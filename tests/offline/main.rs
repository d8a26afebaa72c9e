//! The offline verbs on stores of known content: exit status, text and JSON.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod decoder;
mod diff;
mod export;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use snapback::io::{BlockFile, OpenOptions};

const CHUNK: usize = 4096;
/// Chunks of the disk; it ends within the last.
const CHUNKS: usize = 40;
const DISK: usize = CHUNKS * CHUNK - 1536;

/// A disk, and a store of 64 chunks with some entries.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    /// COW chunk `n` holds bytes `0x80 + n`.
    fn new(entries: &[(u64, u64)]) -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let mut cow = vec![0u8; 64 * CHUNK];
        cow[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
        for (slot, (old, new)) in entries.iter().enumerate() {
            let at = CHUNK + slot * 16;
            cow[at..at + 8].copy_from_slice(&old.to_le_bytes());
            cow[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
            let data = *new as usize * CHUNK;
            if *new > 1 && data < cow.len() {
                cow[data..data + CHUNK].fill(0x80 + *new as u8);
            }
        }
        std::fs::write(world.path("cow"), cow).unwrap();
        // The first half has data, the second is zero.
        let mut disk: Vec<u8> = (0..DISK / 2).map(|i| (i / 512 + 1) as u8).collect();
        disk.resize(DISK, 0);
        std::fs::write(world.path("disk"), disk).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn change_cow(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut cow = self.cow();
        change(&mut cow);
        std::fs::write(self.path("cow"), cow).unwrap();
    }

    fn cow(&self) -> Vec<u8> {
        std::fs::read(self.path("cow")).unwrap()
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.path("disk")).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        assert_cmd::Command::cargo_bin("snapback")
            .unwrap()
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env_remove("SNAPBACK_LOG")
            .args(arguments)
            .timeout(std::time::Duration::from_secs(60))
            .output()
            .unwrap()
    }

    /// Nothing is written to stderr, which is no terminal here.
    #[track_caller]
    fn answer(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), error.as_str()),
            (Some(status), ""),
            "{arguments:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, status: i32, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.answer(status, arguments)).unwrap()
    }

    #[track_caller]
    fn refuse(&self, arguments: &[&str], word: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        let start = match arguments.contains(&"--json") {
            true => "{\"kind\":",
            false => "snapback: ",
        };
        assert!(
            error.starts_with(start) && error.contains(word),
            "{arguments:?}: {error}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

const BOTH: [&str; 4] = ["--origin", "disk", "--cow", "cow"];

fn both<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &BOTH].concat()
}

#[test]
fn check_of_a_good_store_is_0_and_changes_nothing() {
    let world = World::new(&[(7, 2), (0, 3), (39, 4)]);
    let before = world.cow();
    let text = world.answer(0, &["check", "cow", "--origin", "disk"]);
    assert!(
        text.contains("verdict   good\n") && text.contains("entries   3\n"),
        "{text}"
    );
    let found = world.json(0, &["check", "cow", "--json"]);
    assert_eq!(
        (&found["verdict"], &found["entries"]),
        (&json!("good"), &json!(3))
    );
    assert_eq!(world.cow(), before);
}

#[test]
fn check_finds_all_damage_and_counts_what_a_repair_would_drop() {
    // 10 twice, COW chunk 5 twice, metadata, beyond the file, beyond the disk; 8 is good.
    let world = World::new(&[
        (10, 2),
        (10, 3),
        (11, 5),
        (12, 5),
        (13, 1),
        (14, 70),
        (40, 6),
        (8, 7),
    ]);
    let found = world.json(1, &["check", "cow", "--origin", "disk", "--json"]);
    let mut kinds: Vec<&str> = found["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|damage| damage["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "beyond-origin",
            "beyond-store",
            "metadata",
            "shared-copy",
            "two-copies"
        ]
    );
    let repair = &found["repair"];
    assert_eq!(
        (&repair["drops_entries"], &repair["keeps_entries"]),
        (&json!(7), &json!(1))
    );
    let text = world.answer(1, &["check", "cow"]);
    assert!(text.contains("drops 6 of 8 entries"), "{text}");
    assert!(text.contains("corrupt entry 4: origin chunk 13"), "{text}");
}

#[test]
fn check_tells_stale_bytes_which_linux_would_revive_from_harmless_repeats() {
    let world = World::new(&[(7, 2), (9, 3), (7, 2)]);
    let found = world.json(0, &["check", "cow", "--json"]);
    assert_eq!(found["repeated_entries"], json!(1));
    // What a change of the log leaves behind the end when it is cut short: copies of an
    // entry that stays.
    let copies = |entry: [u64; 2]| {
        world.change_cow(|cow| {
            for slot in [33, 34, 70] {
                let bytes = entry.map(u64::to_le_bytes);
                cow[CHUNK + slot * 16..][..16].copy_from_slice(bytes.as_flattened());
            }
        });
    };
    copies([9, 3]);
    let found = world.json(0, &["check", "cow", "--json"]);
    assert_eq!(found["repeated_entries"], json!(4));
    let info = world.json(0, &["info", "cow", "--json"]);
    assert_eq!(info["contents"]["repeated_entries"], json!(4), "{info}");
    assert_eq!(info["contents"]["stale_bytes"], json!(0), "{info}");
    copies([9, 4]);
    let found = world.json(1, &["check", "cow", "--json"]);
    assert_eq!(
        (&found["verdict"], &found["stale_bytes"]),
        (&json!("stale"), &json!(1024))
    );
    copies([0, 0]);
    world.change_cow(|cow| cow[CHUNK + 100 * 16 + 8] = 4);
    let found = world.json(1, &["check", "cow", "--json"]);
    assert_eq!(
        (&found["verdict"], &found["repair"]["clears_bytes"]),
        (&json!("stale"), &json!(512))
    );
    assert_eq!(found["repair"]["drops_entries"], json!(0));
}

#[test]
fn check_of_what_is_no_store_any_more_says_whether_there_is_hope() {
    let world = World::new(&[(7, 2)]);
    let verdict = |status, change: fn(&mut Vec<u8>)| {
        world.change_cow(change);
        let found = world.json(status, &["check", "cow", "--json"]);
        (
            found["verdict"].clone(),
            found["repair"]["possible"].clone(),
        )
    };
    assert_eq!(
        verdict(1, |cow| cow[4] = 0),
        (json!("invalid"), json!(false))
    );
    assert_eq!(
        verdict(1, |cow| cow[8] = 2),
        (json!("damaged"), json!(false))
    );
    assert_eq!(
        verdict(0, |cow| cow[..4].fill(0)),
        (json!("new"), json!(true))
    );
    assert_eq!(
        verdict(1, |cow| cow[0] = 9),
        (json!("damaged"), json!(false))
    );
    assert_eq!(
        verdict(1, |cow| cow.truncate(1000)),
        (json!("damaged"), json!(false))
    );
    assert_eq!(verdict(1, Vec::clear), (json!("damaged"), json!(false)));
    world.refuse(&["check", "nowhere"], "nowhere");
    world.refuse(&["check", "disk", "--origin", "disk"], "the same");
}

#[test]
fn dump_prints_runs_in_the_order_of_the_log_also_of_damaged_stores() {
    let world = World::new(&[(7, 2), (8, 3), (9, 4), (0, 5), (30, 1)]);
    assert_eq!(
        world.answer(0, &["dump", "cow"]),
        "magic \"SnAp\", valid 1, version 1, chunk size 8 sectors\n\
         slot  origin chunks -> COW chunks\n\
         0     7-9 -> 2-4\n\
         3     0 -> 5\n\
         4     30 -> 1\n\
         5 entries\n"
    );
    let dump = world.json(0, &["dump", "cow", "--json"]);
    assert_eq!(dump["header"]["chunk_sectors"], json!(8));
    assert_eq!(
        dump["runs"][0],
        json!({"slot": 0, "old": 7, "new": 2, "count": 3})
    );
    assert_eq!(dump["entries"], json!(5));
    world.change_cow(|cow| cow[4] = 0);
    let invalid = world.json(1, &["dump", "cow", "--json"]);
    assert_eq!(invalid["runs"], json!([]));
    assert!(invalid["problem"].as_str().unwrap().contains("invalid"));
}

#[test]
fn a_store_without_a_view_is_refused_with_the_reason() {
    let world = World::new(&[(7, 2)]);
    world.change_cow(|cow| cow[4] = 0);
    world.refuse(&both(&["export", "out"]), "invalid for good");
    world.refuse(&["diff", "--origin", "disk", "--cow", "disk"], "the same");
    world.change_cow(|cow| cow[..16].fill(0));
    let output = world.run(&both(&["diff", "--json"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(!world.path("out").exists());
}

#[test]
fn nothing_is_read_while_somebody_writes() {
    let world = World::new(&[(7, 2)]);
    let verbs: [&[&str]; 4] = [
        &["check", "cow", "--origin", "disk"],
        &["dump", "cow"],
        &both(&["diff"]),
        &both(&["export", "out"]),
    ];
    for used in ["cow", "disk"] {
        let writer = BlockFile::open(world.path(used), OpenOptions::default()).unwrap();
        for verb in verbs {
            if verb.contains(&used) {
                world.refuse(verb, "in use");
            }
        }
        drop(writer);
    }
    let reader = BlockFile::open(world.path("disk"), OpenOptions::read_only()).unwrap();
    for verb in verbs {
        world.answer(0, verb);
    }
    drop(reader);
    assert!(Path::exists(&world.path("out")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let entries: Vec<(u64, u64)> = (0..40).map(|n| (39 - n, 2 + n)).collect();
    let world = World::new(&entries);
    for verb in [&["dump", "cow"][..], &both(&["diff"])] {
        let command = format!(
            "{} {} | head -n 1 > /dev/null; exit ${{PIPESTATUS[0]}}",
            assert_cmd::cargo::cargo_bin!("snapback").display(),
            verb.join(" ")
        );
        let status = std::process::Command::new("bash")
            .current_dir(world.folder.path())
            .env("XDG_RUNTIME_DIR", world.folder.path())
            .args(["-c", &command])
            .status()
            .unwrap();
        assert!(status.success(), "{verb:?}");
    }
}
