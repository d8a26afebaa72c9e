//! A start that contradicts what the volume remembers.

use std::fs;

use crate::world::{World, hold, store};

/// A disk that was served with snapshots `s` and `t`, stopped cleanly.
fn remembered() -> World {
    let mut world = World::new();
    world.serve(
        "disk.img",
        &[
            "--snapshot",
            "name=s,cow=s.cow,size=1M",
            "--snapshot",
            "name=t,cow=t.cow,size=1M,type=PO,chunk-size=8K",
        ],
    );
    world.stop();
    world
}

#[test]
fn an_origin_that_was_changed_behind_the_daemons_back() {
    let mut world = remembered();
    let mut disk = world.read("disk.img");
    disk[7] ^= 1;
    world.write("disk.img", &disk);
    let refusal = [
        "disk.img was changed while no daemon served it",
        "it was written",
        "s, t",
        "--forget NAME",
        "--accept-changes",
    ];
    world.start_refused(&[], &refusal);
    world.start_refused(
        &["--forget", "s"],
        &["was changed", "snapshots t ", "--accept-changes"],
    );
    world.start_refused(&["--merge", "s"], &refusal);
    world.serve("disk.img", &["--accept-changes"]);
    assert!(world.done(&["status", "s"]).contains("active"));
    world.stop();

    // A copy in its place, and one of another size.
    fs::rename(world.path("disk.img"), world.path("away")).unwrap();
    world.write("disk.img", &disk);
    world.start_refused(
        &[],
        &["was changed", "another file (its inode", "--accept-changes"],
    );
    world.write("disk.img", &disk[..disk.len() / 2]);
    for options in [&[][..], &["--accept-changes"]] {
        world.start_refused(
            options,
            &["disk.img has 512 KiB", "snapshot s has 1 MiB", "--forget s"],
        );
    }
}

#[test]
fn a_known_cow_that_is_missing_or_is_not_the_store() {
    let mut world = remembered();
    let good = world.read("s.cow");
    fs::remove_file(world.path("s.cow")).unwrap();
    let choices = [
        "snapshot s is known",
        "Restore the COW",
        "snapback serve --forget s",
    ];
    let refusal = |word| [&[word], &choices[..]].concat();
    world.start_refused(&[], &refusal("s.cow does not exist"));
    // Nor is it made anew, whatever the options say.
    world.start_refused(
        &["--snapshot", "name=s,cow=s.cow,size=1M"],
        &refusal("s.cow does not exist"),
    );
    fs::create_dir(world.path("s.cow")).unwrap();
    world.start_refused(&[], &refusal("is a directory"));
    fs::remove_dir(world.path("s.cow")).unwrap();
    for (damage, word) in [
        ((|b| b.fill(0)) as fn(&mut Vec<u8>), "the header is missing"),
        (|b| b[0] = b'X', "not a dm-snapshot COW store"),
        (|b| b[8] = 2, "format version 2"),
        (|b| b[12] = 6, "chunk size is 6 sectors"),
        (|b| b.truncate(8192), "8 KiB and had 1 MiB"),
        (|b| b[4104] = 1, "corrupt entry 0"),
    ] {
        let mut bytes = good.clone();
        damage(&mut bytes);
        world.write("s.cow", &bytes);
        world.start_refused(&[], &refusal(word));
    }
    // It comes back as it was, or it is given up.
    world.write("s.cow", &good);
    let held = hold(world.path("s.cow"), libc::F_WRLCK, 0, 0);
    world.start_refused(&[], &refusal("in use by"));
    drop(held);
    // Its times are not those of then, so that only the operator knows.
    world.start_refused(
        &[],
        &[
            "snapshot s is known",
            "not as the daemon left it",
            "--accept-changes",
        ],
    );
    world.serve("disk.img", &["--accept-changes"]);
    assert!(world.done(&["status", "s"]).contains("active"));
    world.stop();
    fs::remove_file(world.path("s.cow")).unwrap();
    world.serve("disk.img", &["--forget", "s"]);
    world.refused(&["status", "s"], &["no snapshot `s`", "t"]);
    assert!(!world.path("s.cow").exists());
}

#[test]
fn options_that_contradict_the_state_file() {
    let world = remembered();
    world.write("other.cow", &store(3));
    fs::hard_link(world.path("t.cow"), world.path("same.cow")).unwrap();
    for (snapshot, words) in [
        ("name=s,cow=other.cow", &["cow", "s.cow", "other.cow"][..]),
        ("name=s,cow=new.cow,size=1M", &["cow", "s.cow", "new.cow"]),
        (
            "name=s,cow=s.cow,type=PO",
            &["type", "is P", "PO in --snapshot"],
        ),
        (
            "name=s,cow=s.cow,type=N",
            &["type", "is P", "N in --snapshot"],
        ),
        (
            "name=t,cow=t.cow,type=PO,chunk-size=4K",
            &["chunk-size", "8 KiB", "4 KiB"],
        ),
    ] {
        let name = format!("snapshot {}", &snapshot[5..6]);
        let words = [&[&name, "state file", "leave the option out"], words].concat();
        world.start_refused(&["--snapshot", snapshot], &words);
    }
    world.start_refused(
        &["--snapshot", "name=u,cow=same.cow"],
        &["snapshot u", "same.cow", "used by snapshot t", "of its own"],
    );
    world.start_refused(
        &["--snapshot", "name=u,cow=other.cow,socket=c.sock"],
        &["c.sock", "would serve both", "another path"],
    );
}

#[test]
fn a_state_file_that_cannot_be_believed() {
    let world = remembered();
    let good = world.read("disk.img.snapback");
    let restored = || world.write("disk.img.snapback", &good);
    let way_out = [
        "disk.img.snapback",
        "move it away",
        "cannot be trusted then",
    ];
    for (content, word) in [
        (&b""[..], "damaged"),
        (&good[..good.len() / 2], "damaged"),
        (b"{\"version\":1}", "damaged"),
        (b"\0\0\0\0", "damaged"),
        (b"[]", "damaged"),
    ] {
        world.write("disk.img.snapback", content);
        world.start_refused(&[], &[&[word], &way_out[..]].concat());
    }
    restored();
    world.edit_state(|s| s["version"] = 7.into());
    world.start_refused(
        &[],
        &[
            &["has version 7", "use the snapback that wrote it"],
            &way_out[..],
        ]
        .concat(),
    );
    restored();
    world.edit_state(|s| s["colour"] = "red".into());
    world.start_refused(&[], &[&["damaged", "colour"], &way_out[..]].concat());
    restored();
    world.edit_state(|s| s["snapshots"][1] = s["snapshots"][0].clone());
    world.start_refused(&[], &[&["lists snapshot s twice"], &way_out[..]].concat());

    fs::remove_file(world.path("disk.img.snapback")).unwrap();
    fs::create_dir(world.path("disk.img.snapback")).unwrap();
    world.start_refused(
        &["--socket-path", "a.sock"],
        &["disk.img.snapback", "irectory", "--state FILE"],
    );
    world.start_refused(
        &[
            "--state",
            "disk.img.snapback/none/deeper",
            "--socket-path",
            "disk.img",
            "--forget",
            "s",
            "--forget",
            "t",
        ],
        &["disk.img", "not a socket"],
    );
    fs::create_dir(world.path("folder")).unwrap();
    world.start_refused(
        &["--state", "folder", "--socket-path", "a.sock"],
        &["folder", "irectory", "--state FILE"],
    );
}

#[test]
fn a_state_file_of_another_daemon() {
    let mut world = World::new();
    world.write("other.img", &[1; 1 << 20]);
    world.serve_at(
        "o.sock",
        "other.img",
        &[
            "--snapshot",
            "name=x,cow=x.cow,size=1M",
            "--state",
            "volume",
        ],
    );
    world.start_refused(
        &["--state", "volume", "--socket-path", "a.sock"],
        &["volume", "in use", "--state FILE"],
    );
    world.stop();
    // And once it is free it still belongs to another disk.
    world.start_refused(
        &["--state", "volume", "--socket-path", "a.sock"],
        &["disk.img was changed", "another file", "--accept-changes"],
    );
}
