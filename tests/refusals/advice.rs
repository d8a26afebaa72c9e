//! Refusals whose advice is followed: what was refused works then, and the snapshot
//! shows every byte of the disk.

use std::fs::{self, File};
use std::process::Command;

use crate::world::{World, hold, store};

/// A snapshot that is refused, what the message must say, what is done about it, and
/// how it is asked for again.
struct Case {
    refused: &'static [&'static str],
    words: &'static [&'static str],
    mend: fn(&World),
    again: &'static [&'static str],
}

fn nothing(_: &World) {}

fn clear_head(world: &World, name: &str, len: usize) {
    let mut bytes = world.read(name);
    bytes[..len].fill(0);
    world.write(name, &bytes);
}

const CASES: [Case; 14] = [
    Case {
        refused: &["--cow", "missing.cow"],
        words: &["does not exist", "--size"],
        mend: nothing,
        again: &["--cow", "missing.cow", "--size", "1M"],
    },
    Case {
        refused: &["--cow", "none/a.cow", "--size", "1M"],
        words: &["not a directory", "in an existing one"],
        mend: |world| fs::create_dir(world.path("none")).unwrap(),
        again: &["--cow", "none/a.cow", "--size", "1M"],
    },
    Case {
        refused: &["--cow", "old.cow"],
        words: &["remove the file (or clear its first 4096 bytes)"],
        mend: |world| clear_head(world, "old.cow", 4096),
        again: &["--cow", "old.cow"],
    },
    Case {
        refused: &["--cow", "older.cow", "--size", "1M"],
        words: &["remove the file (or clear its first 4096 bytes)"],
        mend: |world| fs::remove_file(world.path("older.cow")).unwrap(),
        again: &["--cow", "older.cow", "--size", "1M"],
    },
    Case {
        refused: &["--cow", "invalid.cow"],
        words: &["invalidated", "clear its first 4096 bytes"],
        mend: |world| clear_head(world, "invalid.cow", 4096),
        again: &["--cow", "invalid.cow"],
    },
    Case {
        refused: &["--cow", "junk.cow"],
        words: &["clear its first chunk to have a new store made there"],
        mend: |world| clear_head(world, "junk.cow", 4096),
        again: &["--cow", "junk.cow"],
    },
    Case {
        refused: &["--cow", "tiny.cow"],
        words: &["at least 12 KiB", "enlarge it"],
        mend: |world| {
            let file = File::options().write(true).open(world.path("tiny.cow"));
            file.unwrap().set_len(24 * 512).unwrap();
        },
        again: &["--cow", "tiny.cow"],
    },
    Case {
        refused: &["--cow", "odd.cow"],
        words: &["10000 bytes", "`truncate -s %512`"],
        mend: |world| {
            let mut truncate = Command::new("truncate");
            truncate.args(["-s", "%512"]).arg(world.path("odd.cow"));
            // Two sectors short of a store; the next advice, above, is followed too.
            world.succeed(&mut truncate);
            let file = File::options().write(true).open(world.path("odd.cow"));
            file.unwrap().set_len(24 * 512).unwrap();
        },
        again: &["--cow", "odd.cow"],
    },
    Case {
        refused: &["--cow", "wide.cow", "--size", "1M", "--chunk-size", "512K"],
        words: &["choose smaller chunks"],
        mend: nothing,
        again: &["--cow", "wide.cow", "--size", "1M", "--chunk-size", "64K"],
    },
    Case {
        refused: &["--cow", "three.cow", "--size", "1M", "--chunk-size", "3K"],
        words: &["take 2K or 4K"],
        mend: nothing,
        again: &["--cow", "three.cow", "--size", "1M", "--chunk-size", "2K"],
    },
    Case {
        refused: &["--cow", "empty.cow", "--chunk-size", "8K"],
        words: &["leave the chunk size out"],
        mend: nothing,
        again: &["--cow", "empty.cow"],
    },
    Case {
        refused: &["--cow", "disk.img"],
        words: &["a file or device of its own"],
        mend: nothing,
        again: &["--cow", "own.cow", "--size", "1M"],
    },
    Case {
        refused: &[
            "--cow",
            "d.cow",
            "--size",
            "1M",
            "--discard-passdown-origin",
        ],
        words: &["--discard-zeroes-cow"],
        mend: nothing,
        again: &[
            "--cow",
            "d.cow",
            "--size",
            "1M",
            "--discard-zeroes-cow",
            "--discard-passdown-origin",
        ],
    },
    Case {
        refused: &[
            "--cow",
            "k.cow",
            "--size",
            "1M",
            "--socket-path",
            "file.sock",
        ],
        words: &["not a socket", "choose another path"],
        mend: nothing,
        again: &["--cow", "k.cow", "--size", "1M", "--socket-path", "t.sock"],
    },
];

#[test]
fn a_snapshot_is_taken_once_the_advice_is_followed() {
    let mut world = World::new();
    let disk = world.read("disk.img");
    for name in ["old.cow", "older.cow"] {
        world.write(name, &store(3));
    }
    let mut invalid = store(3);
    invalid[4] = 0;
    world.write("invalid.cow", &invalid);
    world.write("junk.cow", &[7; 1 << 20]);
    world.write("tiny.cow", &[0; 8192]);
    world.write("odd.cow", &[0; 10_000]);
    world.write("file.sock", b"precious");
    world.done(&["create", "empty.cow", "--size", "1M"]);
    world.serve("disk.img", &[]);
    for (number, case) in CASES.iter().enumerate() {
        let name = format!("t{number}");
        let refused = [&["snapshot", &name], case.refused].concat();
        world.refused(&refused, case.words);
        (case.mend)(&world);
        world.done(&[&["snapshot", &name], case.again].concat());
    }
    // Somebody else's file, and a name that is taken.
    world.write("held.cow", &[0; 1 << 20]);
    let held = hold(world.path("held.cow"), libc::F_WRLCK, 0, 0);
    world.refused(
        &["snapshot", "h", "--cow", "held.cow"],
        &["stop that first"],
    );
    drop(held);
    world.done(&["snapshot", "h", "--cow", "held.cow"]);
    let twice = ["snapshot", "h", "--cow", "h2.cow", "--size", "1M"];
    world.refused(&twice, &["exists already", "remove it first"]);
    world.done(&["remove", "h"]);
    world.done(&twice);
    let (other, size) = (["grow", "h", "512K"], ["grow", "h", "2M"]);
    world.refused(&other, &["give a size that is not smaller"]);
    world.done(&size);
    world.stop();

    let cows = CASES.iter().map(|case| case.again[1]).chain(["h2.cow"]);
    for (number, cow) in cows.enumerate() {
        let out = format!("out{number}.img");
        world.done(&["export", "--origin", "disk.img", "--cow", cow, &out]);
        assert_eq!(world.read(&out), disk, "{cow}");
        fs::remove_file(world.path(&out)).unwrap();
    }
    assert_eq!(world.read("file.sock"), b"precious");
    assert_eq!(world.read("disk.img"), disk);
}

/// A start that is refused, what the message must say, and the start that it advises.
type Start = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

#[test]
fn a_start_succeeds_once_the_advice_is_followed() {
    let s = ["--snapshot", "name=s,cow=s.cow,size=1M"];
    let cases: [Start; 6] = [
        (
            &[],
            &["nothing to serve", "--socket-path"],
            &["--socket-path", "a.sock"],
        ),
        (
            &["--snapshot", "name=s,cow=new.cow,size=1M"],
            &["cow", "leave the option out"],
            &[],
        ),
        (
            &["--snapshot", "name=s,cow=s.cow,type=PO"],
            &["type is P in the state file and PO", "leave the option out"],
            &[],
        ),
        (
            &[
                "--snapshot",
                "name=n,cow=n.cow,size=1M,type=N",
                "--merge",
                "n",
            ],
            &["transient", "type=P"],
            &[
                "--snapshot",
                "name=n,cow=n.cow,size=1M,type=P",
                "--merge",
                "n",
            ],
        ),
        (
            &[
                "--snapshot",
                "name=m,cow=m.cow,size=1M",
                "--merge",
                "m",
                "--read-only",
            ],
            &["leave one of them out"],
            &["--snapshot", "name=m,cow=m.cow,size=1M", "--merge", "m"],
        ),
        (
            &[
                "--socket-path",
                "a.sock",
                "--snapshot",
                "name=k,cow=k.cow,size=1M,socket=a.sock",
            ],
            &["choose another path"],
            &[
                "--socket-path",
                "a.sock",
                "--snapshot",
                "name=k,cow=k.cow,size=1M,socket=b.sock",
            ],
        ),
    ];
    for (refused, words, advised) in cases {
        let mut world = World::new();
        let disk = world.read("disk.img");
        world.serve("disk.img", &s);
        world.stop();
        // The state file has a control socket, which would be enough to serve.
        world.edit_state(|state| state["control"] = serde_json::Value::Null);
        let start =
            |options: &[&'static str]| [&["serve", "--origin", "disk.img"], options].concat();
        world.refused(&start(refused), words);
        world.serve("disk.img", advised);
        let status = world.done(&["status", "s"]);
        assert!(status.contains("active"), "{refused:?}: {status}");
        world.stop();
        world.done(&["export", "--origin", "disk.img", "--cow", "s.cow", "s.img"]);
        assert_eq!(world.read("s.img"), disk, "{refused:?}");
    }
}

#[test]
fn an_origin_of_an_odd_size_is_served_once_it_is_rounded_up() {
    let mut world = World::new();
    world.write("odd.img", &[7; 1000]);
    let start = ["serve", "--origin", "odd.img", "--socket-path", "a.sock"];
    world.refused(&start, &["1000 bytes", "`truncate -s %512`"]);
    let mut truncate = Command::new("truncate");
    truncate.args(["-s", "%512"]).arg(world.path("odd.img"));
    world.succeed(&mut truncate);
    world.serve("odd.img", &["--socket-path", "a.sock"]);
    assert!(world.done(&["status"]).contains("odd.img, 1 KiB"));
    world.stop();
    assert_eq!(world.read("odd.img")[..1000], [7; 1000]);
}

#[test]
fn offline_verbs_work_once_the_advice_is_followed() {
    let world = World::new();
    let disk = world.read("disk.img");
    world.write("used.cow", &[7; 1 << 20]);
    world.refused(&["create", "used.cow"], &["not empty", "say --force"]);
    world.done(&["create", "used.cow", "--force"]);
    world.refused(
        &["create", "used.cow", "--size", "2M"],
        &["leave --size out"],
    );
    world.refused(&["create", "new.cow"], &["give --size"]);
    world.done(&["create", "new.cow", "--size", "1M"]);
    let export = |out: &'static str| ["export", "--origin", "disk.img", "--cow", "used.cow", out];
    world.write("out.img", b"precious");
    world.refused(&export("out.img"), &["choose another name"]);
    world.done(&export("other.img"));
    assert_eq!(world.read("other.img"), disk);
    assert_eq!(world.read("out.img"), b"precious");
    let same = ["diff", "--origin", "disk.img", "--cow", "disk.img"];
    world.refused(
        &same,
        &["give the disk as --origin and the snapshot's store as --cow"],
    );
    world.done(&["diff", "--origin", "disk.img", "--cow", "new.cow"]);
}
