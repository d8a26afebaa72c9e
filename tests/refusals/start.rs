//! `serve` with what cannot be served.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use crate::world::{World, hold, store};

const SOCKET: [&str; 2] = ["--socket-path", "a.sock"];

/// `--snapshot` with this value, and a socket that must not be left behind.
fn with(snapshot: &str) -> [&str; 4] {
    let [option, socket] = SOCKET;
    [option, socket, "--snapshot", snapshot]
}

#[test]
fn an_origin_that_is_no_disk() {
    let world = World::new();
    fs::create_dir(world.path("folder")).unwrap();
    world.write("empty.img", b"");
    world.write("odd.img", &[7; 1000]);
    symlink("nowhere", world.path("dangling.img")).unwrap();
    let _listener = UnixListener::bind(world.path("socket.img")).unwrap();
    for (origin, words) in [
        ("missing.img", ["no such file", "check the path"]),
        ("missing/disk.img", ["no such file", "check the path"]),
        ("dangling.img", ["no such file", "check the path"]),
        (
            "folder",
            ["is a directory", "regular file or a block device"],
        ),
        (
            "socket.img",
            ["is a socket", "regular file or a block device"],
        ),
        ("empty.img", ["has 0 bytes", "512"]),
        ("odd.img", ["has 1000 bytes", "truncate"]),
    ] {
        let name = world.text(origin);
        let words = [["origin", &name].as_slice(), &words].concat();
        world.refused(
            &["serve", "--origin", origin, "--socket-path", "a.sock"],
            &words,
        );
        let snapshot = with("name=s,cow=new.cow,size=1M");
        world.refused(
            &[&["serve", "--origin", origin], &snapshot[..]].concat(),
            &words,
        );
    }
}

#[test]
fn a_cow_that_is_the_origin_under_any_name() {
    let world = World::new();
    fs::hard_link(world.path("disk.img"), world.path("hard.img")).unwrap();
    symlink("disk.img", world.path("soft.img")).unwrap();
    for name in ["disk.img", "hard.img", "soft.img", "./disk.img"] {
        for more in ["", ",size=1M", ",type=N", ",type=PO"] {
            world.start_refused(
                &with(&format!("name=s,cow={name}{more}")),
                &["snapshot s", "COW", "is the origin itself", "of its own"],
            );
        }
    }
    // And the other way round: it is the file that counts.
    world.refused(
        &[
            &["serve", "--origin", "hard.img"],
            &with("name=s,cow=disk.img")[..],
        ]
        .concat(),
        &["disk.img", "is the origin itself"],
    );
}

#[test]
fn files_that_others_use() {
    let mut world = World::alone();
    world.write("s.cow", &store(3));
    world.write("other.img", &[1; 1 << 20]);
    world.serve_at("o.sock", "other.img", &["--snapshot", "name=x,cow=s.cow"]);
    let user = format!("snapback (pid {})", world.pid());
    world.start_refused(
        &with("name=s,cow=s.cow"),
        &["snapshot s", "s.cow", "in use by", &user, "stop that first"],
    );
    for read_only in [&[][..], &["--read-only"]] {
        let start = ["serve", "--origin", "other.img", "--socket-path", "a.sock"];
        world.refused(
            &[&start[..], read_only].concat(),
            &["origin", "other.img", "in use by", &user, "stop that first"],
        );
    }
    world.stop();

    let me = format!("(pid {})", std::process::id());
    // A writer's lock over all, as a second daemon's, and QEMU's "I write".
    for (kind, start, len) in [(libc::F_WRLCK, 0, 0), (libc::F_RDLCK, 101, 1)] {
        let held = hold(world.path("s.cow"), kind, start, len);
        world.start_refused(
            &with("name=s,cow=s.cow"),
            &["snapshot s", "s.cow", "in use by", &me, "stop that first"],
        );
        drop(held);
        let held = hold(world.path("disk.img"), kind, start, len);
        for options in [&SOCKET[..], &[SOCKET[0], SOCKET[1], "--read-only"]] {
            world.start_refused(options, &["disk.img", "in use by", &me, "stop that first"]);
        }
        drop(held);
    }
    // A reader (QEMU's "nobody else may write") excludes writers and allows other readers.
    let _held = hold(world.path("disk.img"), libc::F_RDLCK, 201, 1);
    world.start_refused(&SOCKET, &["disk.img", "in use by", &me]);
    world.serve("disk.img", &["--read-only"]);
    world.start_refused(&SOCKET, &["disk.img", "in use by"]);
}

#[test]
fn sizes_that_cannot_be() {
    let world = World::new();
    world.write("tiny.cow", &[0; 8192]);
    world.write("odd.cow", &[0; 10_000]);
    for (snapshot, words) in [
        (
            "name=s,cow=new.cow,size=1M,chunk-size=3K",
            &["3K", "power of two", "take 2K or 4K"][..],
        ),
        (
            "name=s,cow=new.cow,size=1M,chunk-size=256",
            &["256", "512 to 1G"],
        ),
        (
            "name=s,cow=new.cow,size=8K",
            &["new.cow", "too small", "at least 12 KiB", "enlarge it"],
        ),
        (
            "name=s,cow=new.cow,size=1M,chunk-size=512K",
            &["new.cow", "too small", "choose smaller chunks"],
        ),
        (
            "name=s,cow=tiny.cow",
            &[
                "tiny.cow",
                "too small",
                "the device has 8 KiB",
                "enlarge it",
            ],
        ),
        (
            "name=s,cow=odd.cow",
            &["odd.cow", "10000 bytes", "truncate"],
        ),
        (
            "name=s,cow=new.cow",
            &["new.cow", "does not exist", "size=", "check the path"],
        ),
        ("name=s,cow=new.cow,size=1000", &["size", "512"]),
        ("name=s,cow=new.cow,size=1.5", &["1.5", "part of a byte"]),
        ("name=s,cow=new.cow,size=4E", &["size", "E"]),
        (
            "name=s,cow=new.cow,size=4096T",
            &["snapshot s", "new.cow", "no space", "smaller size"],
        ),
    ] {
        world.start_refused(&with(snapshot), words);
    }
}

/// A way to damage a good store, and what the refusals must say.
type Damage = (&'static str, fn(&mut Vec<u8>), &'static [&'static str]);

const DAMAGES: [Damage; 6] = [
    (
        "magic",
        |b| b[0] = b'X',
        &["not a dm-snapshot COW store", "SnAp", "give the right file"],
    ),
    (
        "version",
        |b| b[8] = 2,
        &[
            "format version 2",
            "only version 1",
            "the program that wrote it",
        ],
    ),
    (
        "chunk size",
        |b| b[12] = 6,
        &[
            "chunk size is 6 sectors",
            "power of two",
            "restore the header",
        ],
    ),
    (
        "truncated",
        |b| b.truncate(4 * 4096),
        &[
            "too small or truncated",
            "the device has 16 KiB",
            "a copy that is whole",
        ],
    ),
    (
        "entry",
        |b| b[4096 + 8] = 1,
        &["corrupt entry 0", "cannot be trusted"],
    ),
    (
        "beyond",
        |b| b[4096..4096 + 8].copy_from_slice(&300u64.to_le_bytes()),
        &["chunk 300 of the origin", "256 chunks", "full size"],
    ),
];

#[test]
fn stores_that_cannot_be_trusted() {
    let world = World::new();
    for (what, damage, words) in DAMAGES {
        let mut bytes = store(8);
        damage(&mut bytes);
        world.write("bad.cow", &bytes);
        let words = [&["snapshot s", "bad.cow"], words].concat();
        world.start_refused(&with("name=s,cow=bad.cow"), &words);
        world.start_refused(&with("name=s,cow=bad.cow,type=PO"), &words);
        world.start_refused(
            &[&with("name=s,cow=bad.cow")[..], &["--merge", "s"]].concat(),
            &words,
        );
        // `info` has no origin to compare with, so "beyond" is nothing to it.
        if what != "beyond" {
            world.answered_no(&["info", "bad.cow"], &["corrupt", words[2]]);
        }
        world.refused(&["create", "bad.cow"], &["bad.cow", "not empty", "--force"]);
    }
    let mut invalid = store(8);
    invalid[4] = 0;
    world.write("bad.cow", &invalid);
    world.start_refused(
        &with("name=s,cow=bad.cow"),
        &[
            "snapshot s",
            "bad.cow",
            "invalidated",
            "remove the file",
            "another COW",
        ],
    );
    world.answered_no(&["info", "bad.cow"], &["state       invalid"]);
    // The data of somebody else; the header's place alone tells nothing.
    let mut labelled = vec![0; 1 << 20];
    labelled[1024 + 56] = 0x53;
    world.write("bad.cow", &labelled);
    world.start_refused(
        &with("name=s,cow=bad.cow"),
        &["bad.cow", "not empty", "remove the file", "another COW"],
    );
    world.write("bad.cow", &store(8));
    world.start_refused(
        &with("name=s,cow=bad.cow,chunk-size=8K"),
        &[
            "chunks of 4 KiB",
            "not of 8 KiB as requested",
            "leave the chunk size out",
        ],
    );
    world.start_refused(
        &with("name=s,cow=bad.cow,type=N"),
        &["not empty", "remove the file"],
    );
}

#[test]
fn a_cow_of_two_snapshots() {
    let world = World::new();
    world.write("s.cow", &store(3));
    symlink("s.cow", world.path("link.cow")).unwrap();
    let two = |a, b| ["--snapshot", a, "--snapshot", b, "--socket-path", "a.sock"];
    world.start_refused(
        &two("name=s,cow=s.cow", "name=t,cow=link.cow"),
        &["snapshot t", "link.cow", "used by snapshot s", "of its own"],
    );
    world.start_refused(
        &two("name=s,cow=n.cow,size=1M", "name=t,cow=n.cow,size=1M"),
        &["s and t", "the same COW", "n.cow", "of its own"],
    );
    world.start_refused(
        &two("name=s,cow=s.cow", "name=s,cow=n.cow,size=1M"),
        &["two snapshots", "`s`", "another name"],
    );
    // What was made for the first goes away with the second.
    world.write("bad.cow", &[9; 1 << 20]);
    world.start_refused(
        &two("name=s,cow=n.cow,size=1M", "name=t,cow=bad.cow"),
        &["snapshot t", "bad.cow", "not a dm-snapshot COW store"],
    );
}

#[test]
fn a_socket_path_that_is_taken() {
    let mut world = World::new();
    world.write("other.img", &[1; 1 << 20]);
    world.serve_at("o.sock", "other.img", &["--socket-path", "live.sock"]);
    world.write("file.sock", b"precious");
    fs::create_dir(world.path("folder")).unwrap();
    symlink("nowhere", world.path("link.sock")).unwrap();
    let long = format!("{}.sock", "x".repeat(120));
    let taken: [(&str, &[&str]); 6] = [
        ("live.sock", &["live.sock", "choose another path"]),
        ("o.sock", &["o.sock", "choose another path"]),
        ("file.sock", &["file.sock", "choose another path"]),
        ("folder", &["folder", "choose another path"]),
        ("link.sock", &["link.sock", "choose another path"]),
        (&long, &["107"]),
    ];
    for (path, words) in taken {
        let words = [&["socket"], words].concat();
        world.start_refused(&["--socket-path", path], &words);
        world.start_refused(&["--control", path], &words);
        world.start_refused(
            &[
                "--socket-path",
                "a.sock",
                "--snapshot",
                &format!("name=s,cow=n.cow,size=1M,socket={path}"),
            ],
            &words,
        );
    }
    world.start_refused(
        &["--socket-path", "none/a.sock"],
        &["socket", "none/a.sock"],
    );
    for options in [
        ["--socket-path", "a.sock", "--control", "a.sock"],
        [
            "--control",
            "a.sock",
            "--snapshot",
            "name=s,cow=n.cow,size=1M,socket=a.sock",
        ],
    ] {
        world.start_refused(&options, &["a.sock", "would serve both", "another path"]);
    }
    world.start_refused(&["--fd", "77"], &["--fd 77", "not open"]);
    world.start_refused(&[], &["nothing to serve", "--socket-path", "--control"]);
}

#[test]
fn a_stale_socket_is_no_reason_to_refuse() {
    let mut world = World::new();
    world.serve("disk.img", &["--socket-path", "a.sock"]);
    world.kill();
    for socket in ["a.sock", "c.sock"] {
        assert!(world.path(socket).exists(), "{socket}");
    }
    world.serve("disk.img", &["--socket-path", "a.sock"]);
    assert!(world.done(&["status"]).contains("a.sock"));
}

#[test]
fn merges_and_names_that_make_no_sense() {
    let world = World::new();
    world.write("s.cow", &store(3));
    let snapshot = with("name=s,cow=s.cow");
    let start = |more: &[&'static str]| [&snapshot[..], more].concat();
    world.start_refused(
        &start(&["--merge", "t"]),
        &["--merge t", "no such snapshot", "known are: s"],
    );
    world.start_refused(
        &start(&["--forget", "t"]),
        &["--forget t", "no such snapshot", "known are: none"],
    );
    world.start_refused(
        &start(&["--merge", "s", "--read-only"]),
        &["--merge", "--read-only", "leave one of them out"],
    );
    world.start_refused(
        &start(&["--forget", "s"]),
        &["`s`", "--snapshot", "--forget", "leave one of them out"],
    );
    world.start_refused(
        &[
            &with("name=s,cow=n.cow,size=1M,type=N")[..],
            &["--merge", "s"],
        ]
        .concat(),
        &["--merge s", "transient", "type=P"],
    );
    world.start_refused(&with("name=a/b,cow=s.cow"), &["a/b", "letters, digits"]);
    world.start_refused(&with("name=a,cow=s.cow,colour=red"), &["`colour`", "keys:"]);
}
