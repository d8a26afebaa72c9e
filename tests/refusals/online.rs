//! What a running daemon refuses, and what is not a daemon.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::world::{World, hold, store};

#[test]
fn verbs_without_a_daemon() {
    let mut world = World::new();
    world.serve("disk.img", &[]);
    world.kill();
    world.write("file.sock", b"");
    let verbs: [&[&str]; 10] = [
        &["status"],
        &["table"],
        &["grow", "s", "2M"],
        &["snapshot", "s", "--cow", "s.cow", "--size", "1M"],
        &["remove", "s"],
        &["rollback", "s"],
        &["rollback", "--cancel"],
        &["merge", "s"],
        &["merge", "--pause"],
        &["merge", "s", "--wait"],
    ];
    for verb in verbs {
        for (socket, words) in [
            ("none.sock", ["no daemon at none.sock", "snapback serve"]),
            // A killed daemon's, and something that never was one.
            ("c.sock", ["no daemon at c.sock", "snapback serve"]),
            ("file.sock", ["no daemon at file.sock", "snapback serve"]),
            ("", ["no daemon of this user is running", "--control SOCK"]),
        ] {
            let words = [&words[..], &["SNAPBACK_CONTROL"]].concat();
            world.refused(&[verb, &["--control", socket]].concat(), &words);
        }
    }
}

#[test]
fn what_answers_is_not_the_api() {
    let world = World::new();
    let listener = UnixListener::bind(world.path("ssh.sock")).unwrap();
    std::thread::spawn(move || {
        // A greeting, and the line stays open, as such servers do it.
        let mut lines = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
            lines.push(stream);
        }
    });
    world.refused(
        &["status", "--control", "ssh.sock"],
        &["ssh.sock", "does not have snapback's API"],
    );
}

#[test]
fn names_that_nobody_has() {
    let mut world = World::new();
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow,size=1M"]);
    let verbs: [&[&str]; 8] = [
        &["grow", "t", "2M"],
        &["remove", "t"],
        &["rollback", "t"],
        &["rollback", "t", "--at-reset"],
        &[
            "rollback", "t", "--keep", "k", "--cow", "k.cow", "--size", "1M",
        ],
        &["merge", "t"],
        &["merge", "t", "--follow", "--wait"],
        &["status", "t"],
    ];
    for verb in verbs {
        world.refused(verb, &["no snapshot", "t", " s"]);
    }
    for control in ["--pause", "--resume"] {
        world.refused(
            &["merge", control],
            &["no merge is running", "snapback rollback NAME"],
        );
    }
    world.refused(&["merge", "--rate", "1M"], &["no merge is running"]);
    world.refused(
        &["snapshot", "s", "--cow", "n.cow", "--size", "1M"],
        &["snapshot s", "exists already", "another name"],
    );
    world.refused(
        &[
            "rollback", "s", "--keep", "s", "--cow", "n.cow", "--size", "1M",
        ],
        &["--keep s", "another name"],
    );
}

#[test]
fn cows_that_a_new_snapshot_cannot_have() {
    let mut world = World::alone();
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow,size=1M"]);
    fs::hard_link(world.path("disk.img"), world.path("hard.img")).unwrap();
    symlink("disk.img", world.path("soft.img")).unwrap();
    fs::create_dir(world.path("folder")).unwrap();
    world.write("old.cow", &store(3));
    world.write("junk.cow", &[7; 1 << 20]);
    world.write("tiny.cow", &[0; 8192]);
    world.write("held.cow", &[0; 1 << 20]);
    world.write("file.sock", b"precious");
    let mut future = store(3);
    future[8] = 9;
    world.write("future.cow", &future);
    let _held = hold(world.path("held.cow"), libc::F_WRLCK, 0, 0);
    let cases: [(&[&str], &[&str]); 15] = [
        (
            &["--cow", "disk.img"],
            &["is the origin itself", "of its own"],
        ),
        (
            &["--cow", "hard.img"],
            &["is the origin itself", "of its own"],
        ),
        (
            &["--cow", "soft.img"],
            &["is the origin itself", "of its own"],
        ),
        (&["--cow", "s.cow"], &["used by snapshot s", "of its own"]),
        (&["--cow", "folder"], &["folder", "is a directory"]),
        (
            &["--cow", "new.cow"],
            &["new.cow", "does not exist", "--size"],
        ),
        (
            &["--cow", "none/new.cow", "--size", "1M"],
            &["none/new.cow", "not a directory"],
        ),
        (
            &["--cow", "old.cow"],
            &[
                "old.cow",
                "does not belong to the current origin",
                "remove the file",
            ],
        ),
        (
            &["--cow", "junk.cow"],
            &[
                "junk.cow",
                "not a dm-snapshot COW store",
                "give the right file",
            ],
        ),
        (
            &["--cow", "future.cow"],
            &["future.cow", "version 9", "another COW"],
        ),
        (
            &["--cow", "tiny.cow"],
            &["tiny.cow", "too small", "enlarge it"],
        ),
        (
            &["--cow", "new.cow", "--size", "8K"],
            &["new.cow", "too small", "enlarge it"],
        ),
        (
            &["--cow", "new.cow", "--size", "1M", "--chunk-size", "3K"],
            &["3K", "power of two", "take 2K or 4K"],
        ),
        (
            &["--cow", "held.cow"],
            // The daemon may not look into other processes any more.
            &["held.cow", "in use by another process", "stop that first"],
        ),
        (
            &[
                "--cow",
                "new.cow",
                "--size",
                "1M",
                "--socket-path",
                "file.sock",
            ],
            &["file.sock", "not a socket", "another path"],
        ),
    ];
    for (options, words) in cases {
        world.refused(&[&["snapshot", "t"], options].concat(), words);
        // The snapshot that a rollback keeps is one like any other, and if it
        // cannot be taken nothing is rolled back.
        if !options.contains(&"--socket-path") {
            world.refused(
                &[&["rollback", "s", "--keep", "t"], options].concat(),
                words,
            );
        }
    }
    world.refused(
        &[
            "snapshot",
            "t",
            "--cow",
            "new.cow",
            "--size",
            "1M",
            "--socket-path",
            "c.sock",
        ],
        &["c.sock", "another path"],
    );
    let status = world.done(&["status"]);
    assert!(
        status.contains("s     active") && !status.contains("merge"),
        "{status}"
    );
}

#[test]
fn the_api_itself_checks_what_the_command_line_would() {
    let mut world = World::new();
    world.serve("disk.img", &[]);
    let cow = world.text("n.cow");
    let before = world.done(&["status", "--json"]);
    for (body, word) in [
        (
            format!(r#"{{"name":"t","cow":"{cow}","chunk_size":3072,"size":1048576}}"#),
            "power of two",
        ),
        (
            format!(r#"{{"name":"t","cow":"{cow}","size":1}}"#),
            "too small",
        ),
        (
            r#"{"name":"t","cow":"n.cow","size":1048576}"#.to_owned(),
            "absolute",
        ),
        (
            format!(r#"{{"name":"u","cow":"{cow}","size":1048576}}"#),
            "u",
        ),
        (
            format!(r#"{{"name":"t","cow":"{cow}","size":1048576,"colour":1}}"#),
            "colour",
        ),
        ("{".to_owned(), "JSON"),
    ] {
        let mut stream = UnixStream::connect(world.path("c.sock")).unwrap();
        let length = body.len();
        write!(
            stream,
            "PUT /v1/snapshots/t HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains(word),
            "{body}: {answer}"
        );
        assert!(!world.path("n.cow").exists(), "{body}");
    }
    assert_eq!(world.done(&["status", "--json"]), before);
}

#[test]
fn nothing_beside_a_running_merge() {
    let mut world = World::new();
    world.serve_half_merged(&["--snapshot", "name=o,cow=o.cow,size=2M"]);
    world.refused(
        &["merge", "o"],
        &["the merge of s is running", "one at a time", "wait for it"],
    );
    world.refused(
        &["rollback", "o"],
        &["the merge of s is running", "wait for it"],
    );
    world.refused(
        &[
            "rollback", "o", "--keep", "k", "--cow", "k.cow", "--size", "1M",
        ],
        &["the merge of s is running", "wait for it"],
    );
    for again in ["merge", "rollback"] {
        world.refused(
            &[again, "s"],
            &["s is being merged already", "snapback status"],
        );
    }
    world.refused(
        &["snapshot", "n", "--cow", "n.cow", "--size", "1M"],
        &["snapshot n", "the merge of s is running", "wait for it"],
    );
    world.refused(
        &["grow", "s", "4M"],
        &["snapshot s is being merged", "no more space"],
    );
    world.refused(
        &["remove", "s"],
        &["snapshot s is being merged", "when the merge ends"],
    );
    world.stop();
    world.start_refused(
        &["--merge", "o"],
        &[
            "--merge o",
            "a merge of s is in progress",
            "leave --merge out",
        ],
    );
    world.start_refused(
        &["--read-only"],
        &["a merge of s", "not finished", "without --read-only"],
    );
    // Another state file, and the volume's own still has a word to say.
    fs::rename(world.path("s.cow"), world.path("away")).unwrap();
    world.start_refused(
        &[],
        &["snapshot s is known", "s.cow does not exist", "--forget s"],
    );
}

#[test]
fn a_merge_of_what_cannot_be_merged() {
    let mut world = World::new();
    world.serve(
        "disk.img",
        &["--snapshot", "name=n,cow=n.cow,size=1M,type=N"],
    );
    for verb in ["merge", "rollback"] {
        world.refused(
            &[verb, "n"],
            &["snapshot n is transient", "cannot be merged", "type P"],
        );
    }
    world.refused(
        &[
            "rollback", "n", "--keep", "k", "--cow", "k.cow", "--size", "1M",
        ],
        &["snapshot n is transient"],
    );
    world.stop();

    let mut world = World::new();
    world.serve(
        "disk.img",
        &["--read-only", "--snapshot", "name=s,cow=s.cow,size=1M"],
    );
    for verb in ["merge", "rollback"] {
        world.refused(
            &[verb, "s"],
            &["snapshot s", "read-only", "without --read-only"],
        );
    }
}

#[test]
fn an_invalid_snapshot_is_told_and_not_merged() {
    let mut world = World::new();
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow,size=1M"]);
    world.stop();
    let mut bytes = world.read("s.cow");
    bytes[4] = 0;
    world.write("s.cow", &bytes);
    world.serve("disk.img", &[]);
    world.answered_no(&["status", "s"], &["invalid"]);
    for verb in ["merge", "rollback"] {
        world.refused(
            &[verb, "s"],
            &["snapshot s is invalid", "snapback remove s"],
        );
    }
    world.stop();
    world.start_refused(
        &["--merge", "s"],
        &["--merge s", "is invalid", "--forget s"],
    );
}
