//! `merge --origin --cow`, `create` and `info` on what they must leave alone.

use std::fs;
use std::os::unix::fs::symlink;

use crate::world::{DISK, World, hold, store};

const MERGE: [&str; 5] = ["merge", "--origin", "disk.img", "--cow", "s.cow"];

fn merge<'a>(origin: &'a str, cow: &'a str) -> [&'a str; 5] {
    ["merge", "--origin", origin, "--cow", cow]
}

#[test]
fn a_merge_of_files_that_are_not_there_or_not_what_they_should_be() {
    let world = World::new();
    world.write("s.cow", &store(8));
    world.write("empty", b"");
    world.write("odd", &[0; 1000]);
    world.write("zero.cow", &[0; 1 << 20]);
    fs::create_dir(world.path("folder")).unwrap();
    for (origin, cow, words) in [
        ("none", "s.cow", ["none", "no such file"]),
        ("disk.img", "none", ["none", "no such file"]),
        ("folder", "s.cow", ["folder", "is a directory"]),
        ("disk.img", "folder", ["folder", "is a directory"]),
        ("empty", "s.cow", ["empty", "0 bytes"]),
        ("odd", "s.cow", ["odd", "1000 bytes"]),
        ("disk.img", "empty", ["empty", "0 bytes"]),
        (
            "disk.img",
            "zero.cow",
            ["zero.cow", "no store was made here"],
        ),
    ] {
        world.refused(&merge(origin, cow), &words);
    }
}

#[test]
fn a_merge_of_the_origin_into_itself() {
    let world = World::new();
    fs::hard_link(world.path("disk.img"), world.path("hard.img")).unwrap();
    symlink("disk.img", world.path("soft.img")).unwrap();
    for cow in ["disk.img", "hard.img", "soft.img"] {
        world.refused(&merge("disk.img", cow), &[cow, "is the origin itself"]);
    }
}

#[test]
fn a_merge_of_a_store_that_cannot_be_trusted() {
    let world = World::new();
    for (damage, words) in [
        (
            (|b| b[0] = b'X') as fn(&mut Vec<u8>),
            ["not a dm-snapshot COW store", "right file"],
        ),
        (|b| b[4] = 0, ["s.cow", "invalid"]),
        (|b| b[8] = 2, ["format version 2", "another COW"]),
        (|b| b[12] = 6, ["chunk size is 6 sectors", "another COW"]),
        (
            |b| b.truncate(4 * 4096),
            ["truncated", "a copy that is whole"],
        ),
        (|b| b[4104] = 1, ["corrupt entry 0", "use another"]),
    ] {
        let mut bytes = store(8);
        damage(&mut bytes);
        world.write("s.cow", &bytes);
        world.refused(&MERGE, &[&["s.cow"], &words[..]].concat());
    }
    // A disk that is shorter than what the store keeps.
    world.write("s.cow", &store(8));
    world.write("short.img", &vec![3; DISK / 64]);
    world.refused(
        &merge("short.img", "s.cow"),
        &["s.cow", "of the origin, which has only 4 chunks"],
    );
}

#[test]
fn a_merge_of_files_that_others_use() {
    let mut world = World::alone();
    world.write("s.cow", &store(8));
    let me = format!("(pid {})", std::process::id());
    for file in ["disk.img", "s.cow"] {
        // A writer's lock over all, and QEMU's "I write" and "nobody else may".
        for (kind, start, len) in [
            (libc::F_WRLCK, 0, 0),
            (libc::F_RDLCK, 101, 1),
            (libc::F_RDLCK, 201, 1),
        ] {
            let _held = hold(world.path(file), kind, start, len);
            world.refused(&MERGE, &[file, "in use by", &me]);
        }
    }
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    let user = format!("snapback (pid {})", world.pid());
    world.refused(&MERGE, &["in use by", &user, "stop that first"]);
    world.write("other.img", &vec![5; DISK]);
    world.refused(&merge("other.img", "s.cow"), &["s.cow", "in use by", &user]);
    world.stop();
    world.serve("disk.img", &["--read-only"]);
    world.write("t.cow", &store(8));
    world.refused(&merge("disk.img", "t.cow"), &["disk.img", "in use by"]);
}

#[test]
fn a_merge_that_the_volume_does_not_allow() {
    // Another merge is half done: this one would mix three moments.
    let mut world = World::new();
    world.serve_half_merged(&["--snapshot", "name=o,cow=o.cow,size=2M"]);
    world.stop();
    world.write("unknown.cow", &store(8));
    let first = format!("--cow {}", world.text("s.cow"));
    for cow in ["o.cow", "unknown.cow"] {
        world.refused(
            &merge("disk.img", cow),
            &[cow, "the merge of s", "not finished", &first],
        );
    }

    // The volume's snapshot lost its origin's moment.
    let mut world = World::new();
    world.write("s.cow", &store(8));
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    world.stop();
    let mut disk = world.read("disk.img");
    disk[0] ^= 1;
    world.write("disk.img", &disk);
    world.refused(
        &MERGE,
        &[
            "disk.img",
            "was changed",
            "snapback serve",
            "--accept-changes",
        ],
    );

    // Another snapshot of the volume could not be kept exact.
    let mut world = World::new();
    world.write("s.cow", &store(8));
    world.serve(
        "disk.img",
        &[
            "--snapshot",
            "name=s,cow=s.cow",
            "--snapshot",
            "name=o,cow=o.cow,size=2M",
        ],
    );
    world.stop();
    fs::remove_file(world.path("o.cow")).unwrap();
    world.refused(&MERGE, &["snapshot o", "o.cow does not exist"]);

    // A state file that cannot be read may speak of anything.
    world.write("disk.img.snapback", b"{");
    world.refused(&MERGE, &["disk.img.snapback", "damaged"]);
}

#[test]
fn a_store_is_not_made_over_anything() {
    let mut world = World::new();
    fs::create_dir(world.path("folder")).unwrap();
    world.write("tiny.cow", &[0; 8192]);
    world.write("s.cow", &store(8));
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    for (arguments, words) in [
        (&["new.cow"][..], ["new.cow", "--size"]),
        (&["new.cow", "--size", "8K"], ["new.cow", "too small"]),
        (
            &["new.cow", "--size", "1M", "--chunk-size", "3K"],
            ["3K", "take 2K or 4K"],
        ),
        (
            &["none/new.cow", "--size", "1M"],
            ["none/new.cow", "no such file"],
        ),
        (&["folder"], ["folder", "is a directory"]),
        (&["tiny.cow"], ["tiny.cow", "too small"]),
        (
            &["tiny.cow", "--size", "1M"],
            ["tiny.cow", "exists with 8 KiB, not 1 MiB"],
        ),
        // Not even by force while somebody uses it.
        (&["disk.img", "--force"], ["disk.img", "in use by snapback"]),
        (&["s.cow", "--force"], ["s.cow", "in use by snapback"]),
    ] {
        world.refused(&[&["create"], arguments].concat(), &words);
    }
    world.refused(&["info", "s.cow"], &["s.cow", "in use by snapback"]);
    world.stop();
    world.refused(
        &["create", "disk.img"],
        &["disk.img", "not empty", "--force"],
    );
    world.refused(&["info", "none.cow"], &["none.cow", "no such file"]);
}
