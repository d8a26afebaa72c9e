//! `serve --config`, `serve --check` and SIGHUP.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;

use rustix::process::Signal;

use super::world::{World, run, text};

const CONFIG: &str = "\
origin = \"disk.img\"
socket-path = \"d.sock\"
control = \"c.sock\"
log-level = \"warn\"
[[snapshot]]
name = \"before\"
cow = \"before.cow\"
size = \"1M\"
";

fn configured(text: &str) -> World {
    let world = World::new();
    world.write("d.toml", text);
    world
}

#[test]
fn a_daemon_serves_what_its_file_says_and_what_the_command_line_adds() {
    let mut world = configured(CONFIG);
    let mut command = world.serve();
    let other = format!("name=other,cow={},size=2M", text(&world.path("other.cow")));
    command.args([
        "--config",
        text(&world.path("d.toml")),
        "--snapshot",
        &other,
    ]);
    world.start(command);
    let status = world.client().status().unwrap();
    let mut names: Vec<&str> = status.snapshots.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["before", "other"]);
    for name in ["d.sock", "before.cow", "other.cow", "disk.img.snapback"] {
        assert!(world.path(name).exists(), "{name}");
    }
    assert_eq!(
        fs::metadata(world.path("before.cow")).unwrap().len(),
        1 << 20
    );
    // With `warn` a start says nothing.
    assert_eq!(world.log(), "");

    // A check can be made meanwhile.
    let mut check = world.serve();
    check.args(["--check", "--config", text(&world.path("d.toml"))]);
    let (code, answer, _) = run(&mut check);
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer.contains("in use"), "{answer}");
    world.stop();
}

#[test]
fn errors_in_a_file_have_a_place_and_touch_nothing() {
    for (file, more, expected) in [
        (
            "origin = \"disk.img\"\nnum-queues = 300\n",
            &[][..],
            ":2:1: invalid value '300' for '--num-queues <N>': 300 is not in 1..=256",
        ),
        (
            "origin = \"disk.img\"\nmerge-writes = \"no\"\n",
            &[],
            ":2:1: invalid value 'no' for '--merge-writes <HOW>' [possible values: wait, redirect]",
        ),
        (
            "origin = \"disk.img\"\nfd = 5\nsocket-path = \"s\"\n",
            &[],
            ": the argument '--",
        ),
        (
            "origin = \"disk.img\"\n",
            &["--origin", "/d"],
            ":1:1: `origin` is also on the command line",
        ),
        (
            "log-level = \"info\"\norigin = \"d\"",
            &["--log-level", "debug"],
            ":1:1: `log-level` is also on the command line",
        ),
        (
            "control = \"c.sock\"\n",
            &[],
            "the configuration names no disk",
        ),
        (
            "origin = \"disk.img\"\n[[snapshot]]\nname = \"s\"\ncow = \"c\"\n[[snapshot]]\nname = \"s\"\ncow = \"e\"\n",
            &[],
            "two snapshots are named `s`",
        ),
        (
            "origin = \"disk.img\"\nlog-level = \"loud\"\n",
            &[],
            "log level `loud`",
        ),
        (
            "origin = \"disk.img\"\nmerge = \"s\"\n",
            &[],
            ":2:1: `merge` decides about one start",
        ),
        (
            "metrics = \"127.0.0.1:1\"\norigin = \"disk.img\"",
            &["--metrics", "127.0.0.1:2"],
            ":1:1: `metrics` is also on the command line",
        ),
        (
            "origin = \"disk.img\"\nsocket-mode = 666\ncontrol-mode = 0o400",
            &[],
            ":3:1: invalid value '400' for '--control-mode <MODE>'",
        ),
        (
            "origin = \"disk.img\"\non-event = \"none\"",
            &[],
            "/none: No such file",
        ),
    ] {
        let world = configured(file);
        let mut command = world.serve();
        command
            .args(["--config", text(&world.path("d.toml"))])
            .args(more);
        let (code, _, error) = run(&mut command);
        assert_eq!(code, Some(2), "{file}: {error}");
        assert!(error.contains(expected), "{file}: {error}");
        assert_eq!(world.names(), ["d.toml", "disk.img"], "{file}");
    }
    let world = World::new();
    let mut command = world.serve();
    command.args(["--config", text(&world.path("none.toml"))]);
    let (code, _, error) = run(&mut command);
    assert_eq!(code, Some(2));
    assert!(error.contains("none.toml: cannot read it"), "{error}");
}

/// The unit makes the folder of the sockets when it starts, so that it is no obstacle before that.
#[test]
fn a_check_before_the_first_start_of_a_unit_does_not_miss_its_folder() {
    let name = format!("test-{}", std::process::id());
    let text = format!(
        "origin = \"disk.img\"\nsocket-path = \"/run/snapback/{name}/d.sock\"\n\
         control = \"/run/snapback/{name}/c.sock\"\n"
    );
    let world = configured(&text);
    let (code, answer) = check(&world);
    let note = format!(
        "note: folder /run/snapback/{name} does not exist; the unit snapback@{name} makes it"
    );
    assert_eq!(code, Some(0), "{answer}");
    assert!(
        answer.starts_with(&note) && answer.lines().count() == 2,
        "{answer}"
    );
    for other in ["/run/other-folder", "/run/snapback/a/b"] {
        world.write(
            "d.toml",
            &text.replace(&format!("/run/snapback/{name}"), other),
        );
        let (code, answer) = check(&world);
        assert_eq!(code, Some(1), "{answer}");
    }
}

/// What `serve --check` says of the file.
fn check(world: &World) -> (Option<i32>, String) {
    let before = world.names();
    let mut command = world.serve();
    command.args(["--check", "--config", text(&world.path("d.toml"))]);
    let (code, answer, error) = run(&mut command);
    assert_eq!(world.names(), before, "a check makes nothing");
    (code, answer + &error)
}

#[test]
fn a_check_foresees_what_a_start_would_say() {
    let mut world = configured(CONFIG);
    let (code, answer) = check(&world);
    assert_eq!(code, Some(0), "{answer}");
    assert!(answer.contains("a start would succeed"), "{answer}");

    // A socket's path is taken, by a listener, by a file, or has no folder.
    let listener = UnixListener::bind(world.path("d.sock")).unwrap();
    let (code, answer) = check(&world);
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer.contains("d.sock is in use"), "{answer}");
    drop(listener);
    // Nobody listens any more.
    assert_eq!(check(&world).0, Some(0));
    fs::remove_file(world.path("d.sock")).unwrap();
    File::create(world.path("c.sock")).unwrap();
    let (code, answer) = check(&world);
    assert_eq!(code, Some(1), "{answer}");
    assert!(
        answer.contains("c.sock") && answer.contains("not a socket"),
        "{answer}"
    );
    fs::remove_file(world.path("c.sock")).unwrap();
    world.write("d.toml", &CONFIG.replace("\"d.sock\"", "\"none/d.sock\""));
    assert_eq!(check(&world).0, Some(1));
    world.write("d.toml", &CONFIG.replace("\"c.sock\"", "\"none/c.sock\""));
    assert_eq!(check(&world).0, Some(1));
    world.write("d.toml", &CONFIG.replace("\"before.cow\"", "\"none/c\""));
    assert_eq!(check(&world).0, Some(1));

    // A wrong file is wrong usage.
    world.write("d.toml", "origin = 5");
    assert_eq!(check(&world).0, Some(2));

    // What the state file expects is looked for.
    world.write("d.toml", CONFIG);
    let mut command = world.serve();
    command.args(["--config", text(&world.path("d.toml"))]);
    world.start(command);
    world.stop();
    assert_eq!(check(&world).0, Some(0));
    fs::rename(world.path("before.cow"), world.path("lost")).unwrap();
    let (code, answer) = check(&world);
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer.contains("--forget before"), "{answer}");
    fs::rename(world.path("lost"), world.path("before.cow")).unwrap();
    fs::write(world.path("disk.img"), vec![7; 4 << 20]).unwrap();
    let (code, answer) = check(&world);
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer.contains("--accept-changes"), "{answer}");
}

#[test]
fn a_check_locks_nothing() {
    let mut world = configured(CONFIG);
    let mut command = world.serve();
    command.args(["--config", text(&world.path("d.toml"))]);
    world.start(command);
    world.stop();
    let mut check = world.serve();
    check.args(["--check", "--config", text(&world.path("d.toml"))]);
    let calls = world.path("calls");
    let mut traced = std::process::Command::new("strace");
    traced
        .args([
            "-f",
            "-e",
            "trace=flock,fcntl,bind,openat,mkdir,unlink,rename",
            "-o",
        ])
        .arg(&calls)
        .arg(check.get_program())
        .args(check.get_args())
        .env("XDG_RUNTIME_DIR", world.folder.path());
    let (code, answer, error) = run(&mut traced);
    assert_eq!(code, Some(0), "{answer}{error}");
    let calls = fs::read_to_string(calls).unwrap();
    assert!(
        calls.contains("F_OFD_GETLK"),
        "the test would see locks:\n{calls}"
    );
    for call in [
        "F_OFD_SETLK",
        "flock(",
        "bind(",
        "O_CREAT",
        "mkdir(",
        "unlink(",
        "rename(",
    ] {
        assert!(!calls.contains(call), "{call}:\n{calls}");
    }
}

#[test]
fn sighup_applies_the_log_level_and_tells_of_the_rest() {
    let mut world = configured(CONFIG);
    let mut command = world.serve();
    command.args(["--config", text(&world.path("d.toml"))]);
    world.start(command);

    world.write("d.toml", &CONFIG.replace("\"warn\"", "\"info\""));
    world.signal(Signal::HUP);
    world.until_logged("the configuration was read again, and is in effect");

    world.write("d.toml", "origin = 5");
    world.signal(Signal::HUP);
    world.until_logged("is not valid, so that nothing changes: config ");

    let more =
        "poll-us = 1\n[[snapshot]]\nname = \"second\"\ncow = \"second.cow\"\nsize = \"1M\"\n";
    world.write(
        "d.toml",
        &format!("control = \"c.sock\"\norigin = \"disk.img\"\n{more}"),
    );
    world.signal(Signal::HUP);
    world.until_logged(
        "takes effect at the next start: poll-us, snapshot before, snapshot second, socket-path",
    );
    assert_eq!(world.client().status().unwrap().snapshots.len(), 1);
    world.stop();

    let mut command = world.serve();
    command.args(["--config", text(&world.path("d.toml"))]);
    world.start(command);
    assert_eq!(world.client().status().unwrap().snapshots.len(), 2);
    world.stop();
}
