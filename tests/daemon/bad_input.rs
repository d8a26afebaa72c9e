//! Options that make no sense.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn bad_input_is_refused_by_name_and_nothing_is_touched() {
    let mut world = World::new();
    fs::write(world.path("full.cow"), vec![7; 1 << 20]).unwrap();
    fs::write(world.path("zero.cow"), vec![0; 1 << 20]).unwrap();
    fs::write(
        world.path("superblock.cow"),
        [vec![0; 1024], vec![7; 1 << 20]].concat(),
    )
    .unwrap();
    fs::create_dir(world.path("dir")).unwrap();
    let before = everything(world.folder.path());
    let socket = ["--socket-path", "a.sock"];
    for (arguments, word) in [
        (
            ["--snapshot", "name=s,cow=disk.img"].as_slice(),
            "is the origin itself",
        ),
        (&["--snapshot", "name=s,cow=dir"], "directory"),
        (&["--snapshot", "name=s,cow=none.cow"], "size="),
        (
            &["--snapshot", "name=s,cow=no/dir.cow,size=8M"],
            "not a directory",
        ),
        (&["--snapshot", "name=s,cow=new.cow,size=8K"], "too small"),
        (
            &["--snapshot", "name=s,cow=full.cow"],
            "not a dm-snapshot COW store",
        ),
        (&["--snapshot", "name=s,cow=superblock.cow"], "not empty"),
        (&["--snapshot", "name=s,cow=full.cow,type=N"], "not empty"),
        (
            &[
                "--snapshot",
                "name=a,cow=new.cow,size=8M",
                "--snapshot",
                "name=b,cow=new.cow,size=8M",
            ],
            "the same COW",
        ),
        (
            &[
                "--snapshot",
                "name=a,cow=zero.cow",
                "--snapshot",
                "name=b,cow=dir/../zero.cow",
            ],
            "used by snapshot a",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M", "--merge", "b"],
            "no such snapshot",
        ),
        (
            &[
                "--snapshot",
                "name=a,cow=new.cow,size=8M,type=N",
                "--merge",
                "a",
            ],
            "transient",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M,socket=a.sock"],
            "would serve both",
        ),
        (
            &["--snapshot", "name=a,cow=new.cow,size=8M,socket=full.cow"],
            "not a socket",
        ),
        (&["--forget", "a"], "no such snapshot"),
        (&["--fd", "77"], "--fd 77"),
    ] {
        let arguments: Vec<&str> = match arguments.first() {
            Some(&"--fd") => arguments.to_vec(),
            _ => socket.iter().chain(arguments).copied().collect(),
        };
        let text = world.refuse(&arguments);
        assert!(text.contains(word), "{arguments:?}: {text}");
        assert_eq!(everything(world.folder.path()), before, "{arguments:?}");
        assert!(!world.path("a.sock").exists(), "{arguments:?}");
    }
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M",
    ]);
    let text = world.refuse(&["--socket-path", "b.sock"]);
    assert!(
        text.contains("disk.img") && text.contains("in use"),
        "{text}"
    );
    fs::write(world.path("other.img"), vec![0; BYTES]).unwrap();
    for (arguments, word) in [
        (["--socket-path", "a.sock"].as_slice(), "a.sock"),
        (
            &["--socket-path", "b.sock", "--snapshot", "name=x,cow=s1.cow"],
            "in use",
        ),
    ] {
        let output = output(
            Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
                .current_dir(world.folder.path())
                .env("XDG_RUNTIME_DIR", world.folder.path())
                .args(["serve", "--origin", "other.img"])
                .args(arguments),
        );
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(2) && text.contains(word),
            "{text}"
        );
    }
}

/// What front ends cause in the log is limited. The count of what was held back was lost if
/// the daemon ended before the next line.
#[test]
fn every_line_about_a_view_is_written_or_counted() {
    let mut world = World::new();
    let log = world.path("log");
    let mut command = world.command(&["--socket-path", "a.sock", "--control", "c.sock"]);
    command.stderr(fs::File::create(&log).unwrap());
    world.daemon = Some(command.spawn().unwrap());
    world.until("the daemon answers", |w| w.client().status().is_ok());
    for _ in 0..50 {
        let mut front_end = UnixStream::connect(world.path("a.sock")).unwrap();
        // A request that does not exist, version 1, no payload.
        let message = [0xff, 1, 0].map(u32::to_ne_bytes);
        front_end.write_all(message.as_flattened()).unwrap();
        // Until the daemon has closed the connection.
        let _ = front_end.read(&mut [0]);
    }
    world.terminate();
    let log = fs::read_to_string(&log).unwrap();
    let written = log.matches(" view origin: ").count();
    let counts = log.lines().filter(|line| line.contains("held back"));
    let counts = counts.map(|line| {
        let words = line
            .split(' ')
            .filter_map(|word| word.parse::<usize>().ok());
        words.sum::<usize>()
    });
    let counted: usize = counts.sum();
    assert!(written <= 40, "{written} lines: {log}");
    assert!(written + counted >= 100, "{written} + {counted}: {log}");
}
