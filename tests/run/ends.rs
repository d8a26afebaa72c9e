//! How commands end, and what is left then.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;

use crate::world::{Running, World, ended, exits, is_alive, signal, until};

const IMAGE: [&str; 2] = ["--image", "golden.img"];

#[test]
fn the_exit_status_is_that_of_the_command() {
    let world = World::new();
    for (script, status) in [
        ("exit 0", 0),
        ("exit 2", 2),
        ("exit 255", 255),
        ("kill -9 $$", 137),
    ] {
        let said = exits(status, &mut world.run(&IMAGE, &["sh", "-c", script]));
        assert_eq!(said, "", "{script}");
    }
    let said = exits(127, &mut world.run(&IMAGE, &["/no/such/program"]));
    assert!(
        said.starts_with("snapback: cannot run /no/such/program"),
        "{said}"
    );
    let said = exits(126, &mut world.run(&IMAGE, &["/etc/passwd"]));
    assert!(
        said.starts_with("snapback: cannot run /etc/passwd"),
        "{said}"
    );
    world.assert_files(&[]);
}

#[test]
fn errors_of_snapback_itself_are_125_and_name_what_is_wrong() {
    let world = World::new();
    let long = "x".repeat(100);
    for (options, word) in [
        (&["--image", "no.img"][..], "no.img"),
        (&["--image", "tmp"], "tmp"),
        (
            &["--image", "golden.img", "--cow", "no/such/c.cow"],
            "no/such/c.cow",
        ),
        (
            &["--image", "golden.img", "--cow", "golden.img"],
            "exists already",
        ),
        (&["--image", "golden.img", "--size", "512"], "too small"),
        (&["--image", "golden.img", "--keep", "always"], "--cow"),
        (&[], "--image"),
        // Refused by the daemon when the COW has been made.
        (
            &["--image", "golden.img", "--size", "512", "--cow", "c.cow"],
            "too small",
        ),
    ] {
        let said = exits(125, &mut world.run(options, &["true"]));
        assert!(said.starts_with("snapback: "), "{options:?}: {said}");
        assert!(said.contains(word), "{options:?}: {said}");
        world.assert_files(&[]);
    }
    for tmp in [long.as_str(), "no/such/folder"] {
        fs::create_dir_all(world.path(&long)).unwrap();
        let said = exits(
            125,
            world.run(&IMAGE, &["true"]).env("TMPDIR", world.path(tmp)),
        );
        assert!(
            said.contains("TMPDIR") || said.contains("disk.sock"),
            "{tmp}: {said}"
        );
    }
    fs::remove_dir(world.path(&long)).unwrap();
    world.assert_files(&[]);
}

#[test]
fn the_commands_input_and_output_pass_untouched() {
    let world = World::new();
    let script = "cat; echo to stderr >&2";
    let mut command = world.run(&IMAGE, &["sh", "-c", script]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut run = command.spawn().unwrap();
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut input = run.stdin.take().unwrap();
    let theirs = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&theirs).unwrap());
    let output = run.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    assert_eq!(output.stderr, b"to stderr\n");
    let said = exits(
        3,
        &mut world.run(&["-v", "--image", "golden.img"], &["sh", "-c", "exit 3"]),
    );
    assert!(
        said.contains("is served at") && said.contains("exited with 3"),
        "{said}"
    );
}

/// In a group of its own it would be stopped when it reads.
#[test]
fn a_command_at_a_terminal_can_read_from_it() {
    let world = World::new();
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    let line = format!(
        "'{}' run --timeout 1m --image golden.img -- sh -c 'read word; echo \"got $word\"; exit 6'",
        program.display()
    );
    let mut command = std::process::Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .current_dir(world.path(""))
        .env("XDG_RUNTIME_DIR", world.path(""))
        .env("TMPDIR", world.path("tmp"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut script = command.spawn().unwrap();
    let mut input = script.stdin.take().unwrap();
    input.write_all(b"hello\n").unwrap();
    let output = script.wait_with_output().unwrap();
    drop(input);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("got hello"), "{said}");
    world.assert_files(&[]);
}

#[test]
fn placeholders_become_words_for_qemu() {
    let world = World::new();
    let words = [
        "printf",
        "%s\n",
        "{disk},bootindex=1",
        "{memory=512M}",
        "s={socket}",
        "{x}",
    ];
    let (status, stdout, _) = ended(&mut world.run(&IMAGE, &words));
    assert_eq!(status, 0);
    let lines: Vec<&str> = stdout.lines().collect();
    let (_, socket) = lines[10].split_once('=').unwrap();
    let tmp = world.path("tmp");
    assert!(socket.starts_with(tmp.to_str().unwrap()) && socket.ends_with(".sock"));
    let chardev = format!("socket,id=snapback1,path={socket}");
    assert_eq!(
        [&lines[..10], &lines[11..]].concat(),
        [
            "-chardev",
            chardev.as_str(),
            "-device",
            "vhost-user-blk-pci,chardev=snapback1,bootindex=1",
            "-m",
            "512M",
            "-object",
            "memory-backend-memfd,id=snapback-memory,size=512M,share=on",
            "-machine",
            "memory-backend=snapback-memory",
            "{x}",
        ]
    );
}

#[test]
fn signals_reach_the_whole_process_group() {
    let world = World::new();
    let script = "trap 'exit 9' USR1; touch ready; while :; do sleep 0.1; done";
    for (sent, status) in [(Signal::USR1, 9), (Signal::TERM, 143), (Signal::INT, 130)] {
        let running = Running::start(&world, &mut world.run(&IMAGE, &["sh", "-c", script]));
        signal(running.0.id(), sent);
        assert_eq!(running.status(), status);
        fs::remove_file(world.path("ready")).unwrap();
        world.assert_files(&[]);
    }
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_124() {
    let world = World::new();
    let options = ["--image", "golden.img", "--timeout", "1s"];
    exits(124, &mut world.run(&options, &["sleep", "600"]));
    // One that ignores SIGTERM gets SIGKILL, and so does its child.
    let script = "trap '' TERM; sleep 600 & echo $! >child; wait; sleep 600";
    let child = ["1s", "8s", "60s"].into_iter().find_map(|limit| {
        let options = ["--image", "golden.img", "--timeout", limit];
        exits(124, &mut world.run(&options, &["sh", "-c", script]));
        // On a busy machine it may be ended before it has done anything.
        let child = fs::read_to_string(world.path("child")).ok()?;
        child.trim().parse().ok()
    });
    let child = child.expect("the script does not begin");
    until("the orphan is gone", || !is_alive(child));
    exits(
        0,
        &mut world.run(&["--image", "golden.img", "--timeout", "10m"], &["true"]),
    );
    fs::remove_file(world.path("child")).unwrap();
    world.assert_files(&[]);
}

#[test]
fn what_a_command_leaves_running_is_killed() {
    let world = World::new();
    let script = "sleep 600 & echo $! >child";
    exits(0, &mut world.run(&IMAGE, &["sh", "-c", script]));
    let child = fs::read_to_string(world.path("child")).unwrap();
    let child = child.trim().parse().unwrap();
    until("the orphan is gone", || !is_alive(child));
}

/// Whoever of the three is killed: no process and no file is left.
#[test]
fn a_killed_snapback_leaves_no_process_and_no_file() {
    let world = World::new();
    for options in [
        &[][..],
        &["--keep", "always", "--cow", "c.cow"],
        &["--commit"],
    ] {
        let script = "sleep 600 & echo $! >child; touch ready; wait";
        let all = [&IMAGE, options].concat();
        let mut running = Running::start(&world, &mut world.run(&all, &["sh", "-c", script]));
        let child: u32 = fs::read_to_string(world.path("child"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let (keeper, command) = (running.keeper(), running.command());
        assert!(is_alive(keeper) && is_alive(command) && is_alive(child));
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        until("the keeper has ended", || !is_alive(keeper));
        until("the command has ended", || !is_alive(command));
        until("the command's child has ended", || !is_alive(child));
        for name in ["ready", "child"] {
            fs::remove_file(world.path(name)).unwrap();
        }
        world.assert_files(&[]);
        world.assert_image_untouched();
    }
}

#[test]
fn a_killed_daemon_ends_the_command_with_125() {
    let world = World::new();
    for options in [&[][..], &["--keep", "always", "--cow", "c.cow"]] {
        let mut command = world.guest(options, "w1=1 s");
        command.stderr(Stdio::piped());
        let mut running = Running::start(&world, &mut command);
        let (keeper, command) = (running.keeper(), running.command());
        signal(keeper, Signal::KILL);
        let mut said = String::new();
        let mut stderr = running.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
        assert_eq!(running.status(), 125, "{said}");
        assert!(said.contains("ended while the command ran"), "{said}");
        assert!(!is_alive(command));
        fs::remove_file(world.path("ready")).unwrap();
        world.assert_files(&[]);
    }
}
