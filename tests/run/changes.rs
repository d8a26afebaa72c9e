//! What becomes of what the command writes.

use std::fs;

use crate::world::{Running, World, ended, exits, original, until};

#[test]
fn changes_are_dropped_and_the_image_is_never_written() {
    let world = World::new();
    let mut permissions = fs::metadata(world.path("golden.img"))
        .unwrap()
        .permissions();
    permissions.set_readonly(true);
    fs::set_permissions(world.path("golden.img"), permissions).unwrap();
    let first = format!("r3={} w3=9 r3=9 x0", original(3));
    let said = exits(0, &mut world.guest(&[], &first));
    assert_eq!(said, "", "nothing is printed without -v");
    // What the first run wrote is not there.
    exits(4, &mut world.guest(&[], &first.replace("x0", "x4")));
    // With its changes in a file that the user chose, for the place.
    exits(0, &mut world.guest(&["--cow", "scratch.cow"], &first));
    world.assert_image_untouched();
    world.assert_files(&[]);
}

#[test]
fn runs_on_one_image_at_once_do_not_see_each_other() {
    let world = World::new();
    let runs: Vec<_> = (10..14)
        .map(|n| {
            let steps = format!("r5={} w5={n} w6={n} r5={n} r6={n} x{n}", original(5));
            (n, world.guest(&[], &steps).spawn().unwrap())
        })
        .collect();
    for (n, mut run) in runs {
        assert_eq!(run.wait().unwrap().code(), Some(n));
    }
    world.assert_image_untouched();
    world.assert_files(&[]);
}

#[test]
fn changes_are_kept_by_the_exit_status() {
    let world = World::new();
    for (keep, status, success, kept) in [
        ("on-failure", 1, "0", true),
        ("on-failure", 0, "0", false),
        ("on-success", 0, "0", true),
        ("on-success", 1, "0", false),
        ("on-success", 33, "0,33", true),
        ("on-failure", 33, "33", false),
        ("always", 7, "0", true),
    ] {
        let options = ["--keep", keep, "--cow", "kept.cow", "--success", success];
        let steps = format!("w4=8 x{status}");
        let said = exits(status, &mut world.guest(&options, &steps));
        assert_eq!(said, "", "{options:?}");
        assert_eq!(
            world.path("kept.cow").exists(),
            kept,
            "{options:?}, status {status}"
        );
        if !kept {
            world.assert_files(&[]);
            continue;
        }
        world.assert_files(&["kept.cow"]);
        exits(0, &mut world.snapback(&["info", "kept.cow"]));
        let export = [
            "export",
            "--origin",
            "golden.img",
            "--cow",
            "kept.cow",
            "full.img",
        ];
        exits(0, &mut world.snapback(&export));
        assert_eq!(world.block("full.img", 4), 8);
        assert_eq!(world.block("full.img", 5), original(5));
        fs::remove_file(world.path("full.img")).unwrap();
        // A COW that exists may be needed.
        let again = exits(125, &mut world.guest(&options, &steps));
        assert!(again.contains("kept.cow exists already"), "{again}");
        fs::remove_file(world.path("kept.cow")).unwrap();
    }
    world.assert_image_untouched();
}

#[test]
fn a_success_is_committed_and_a_failure_or_an_interrupted_command_is_not() {
    let world = World::new();
    exits(1, &mut world.guest(&["--commit"], "w4=8 x1"));
    world.assert_image_untouched();
    // QEMU exits with 0 when it gets SIGTERM.
    let options = ["--image", "golden.img", "--commit"];
    let script = "trap 'exit 0' TERM; touch ready; while :; do sleep 0.1; done";
    let mut command = world.run(&options, &["sh", "-c", script]);
    let running = Running::start(&world, &mut command);
    let other = exits(125, &mut world.guest(&[], "x0"));
    assert!(other.contains("golden.img"), "{other}");
    assert!(other.contains("is in use by snapback (pid "), "{other}");
    crate::world::signal(running.0.id(), rustix::process::Signal::TERM);
    assert_eq!(running.status(), 128 + 15);
    fs::remove_file(world.path("ready")).unwrap();
    world.assert_image_untouched();
    world.assert_files(&[]);

    exits(0, &mut world.guest(&["--commit"], "w4=8 w9=1 x0"));
    assert_eq!(world.block("golden.img", 4), 8);
    assert_eq!(world.block("golden.img", 9), 1);
    assert_eq!(world.block("golden.img", 5), original(5));
    world.assert_files(&[]);
    exits(0, &mut world.guest(&["--commit"], "r4=8 w4=6 x0"));
    assert_eq!(world.block("golden.img", 4), 6);
}

#[test]
fn a_commit_that_fails_says_how_to_finish_it() {
    let world = World::new();
    // The place of the state file is taken, which only the merge needs.
    fs::create_dir(world.path("golden.img.snapback")).unwrap();
    let said = exits(125, &mut world.guest(&["--commit"], "w4=8 x0"));
    assert!(said.contains("not merged"), "{said}");
    world.assert_image_untouched();
    fs::remove_dir(world.path("golden.img.snapback")).unwrap();
    let advice = said.trim().split("finish with: snapback ").nth(1).unwrap();
    let words: Vec<&str> = advice.split(' ').collect();
    exits(0, &mut world.snapback(&words));
    assert_eq!(world.block("golden.img", 4), 8);
}

#[test]
fn the_size_limits_the_changes_and_the_daemon_says_when_they_are_too_many() {
    let world = World::new();
    for (options, writes) in [
        (&["--size", "64K"][..], 16),
        (&["--size", "64K", "--keep", "always", "--cow", "c.cow"], 14),
    ] {
        let steps: Vec<String> = (0..writes).map(|n| format!("w{n}=1")).collect();
        let steps = format!("{} e30 x5", steps.join(" "));
        let said = exits(5, &mut world.guest(options, &steps));
        assert!(
            said.contains("golden.img has failed"),
            "{options:?}: {said}"
        );
    }
    // A success does not make up for what is missing.
    let steps: Vec<String> = (0..14).map(|n| format!("w{n}=1")).collect();
    let steps = format!("{} e30 x0", steps.join(" "));
    let said = exits(
        125,
        &mut world.guest(&["--size", "64K", "--commit"], &steps),
    );
    assert!(said.contains("a larger --size"), "{said}");
    world.assert_image_untouched();
    world.assert_files(&["c.cow"]);
    // Without a limit every block can be changed, with each kind of store.
    let all: Vec<String> = (0..crate::world::BLOCKS)
        .map(|n| format!("w{n}=3"))
        .collect();
    let all = format!("{} r511=3 x0", all.join(" "));
    assert_eq!(exits(0, &mut world.guest(&[], &all)), "");
    for chunk in ["512", "256K"] {
        let options = [
            "--keep",
            "on-failure",
            "--cow",
            "d.cow",
            "--chunk-size",
            chunk,
        ];
        assert_eq!(exits(0, &mut world.guest(&options, &all)), "");
    }
    world.assert_image_untouched();
}

#[test]
fn several_images_have_sockets_and_cows_of_their_own() {
    let world = World::new();
    world.image("data.img");
    let both = ["--image", "golden.img", "--image", "data.img"];
    let options = [
        &both[..],
        &["--keep", "always", "--cow", "a.cow", "--cow", "b.cow"],
    ]
    .concat();
    let script = r#"
        test -S "$1" && test -S "$2" && test "$1" != "$2"
        test "$1" = "$SNAPBACK_SOCKET1" && test "$1" = "$SNAPBACK_SOCKET" && test "$2" = "$SNAPBACK_SOCKET2"
        test -S "$SNAPBACK_CONTROL" && test -S "$SNAPBACK_CONTROL2"
        echo "$SNAPBACK_IMAGE $SNAPBACK_IMAGE2"
    "#;
    let command = ["sh", "-e", "-c", script, "sh", "{socket1}", "{socket2}"];
    let (status, stdout, stderr) = ended(&mut world.run(&options, &command));
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    let images = [world.path("golden.img"), world.path("data.img")];
    let expected = format!("{} {}\n", images[0].display(), images[1].display());
    assert_eq!(stdout, expected);
    world.assert_files(&["a.cow", "b.cow", "data.img"]);
    let refused = exits(125, &mut world.run(&both, &["true", "{socket}"]));
    assert!(refused.contains("{socket1}, {socket2}"), "{refused}");
    // The second one cannot be served; nothing is left of the first one.
    let missing = ["--image", "golden.img", "--image", "no.img"];
    let refused = exits(125, &mut world.run(&missing, &["true"]));
    assert!(refused.contains("no.img"), "{refused}");
    world.assert_files(&["a.cow", "b.cow", "data.img"]);
}

#[test]
fn the_forks_control_socket_takes_the_usual_verbs() {
    let world = World::new();
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    let program = program.to_str().unwrap();
    let command = ["--image", "golden.img"];
    let (status, stdout, _) = ended(&mut world.run(&command, &[program, "status", "fork"]));
    assert_eq!(status, 0);
    assert!(stdout.contains("fork"), "{stdout}");
}

#[test]
fn a_kept_fork_can_be_served_again() {
    let world = World::new();
    let options = ["--keep", "on-failure", "--cow", "failed.cow"];
    exits(1, &mut world.guest(&options, "w4=8 x1"));
    let snapshot = "name=failed,cow=failed.cow,socket=failed.sock";
    let serve = [
        "serve",
        "--origin",
        "golden.img",
        "--read-only",
        "--snapshot",
        snapshot,
    ];
    let daemon = Running(world.snapback(&serve).spawn().unwrap());
    let process = daemon.0.id();
    until("it listens", || {
        crate::listening::listens(process, "failed.sock")
    });
    let mut guest = crate::guest::Guest::connect(&world.path("failed.sock"));
    assert!(guest.read(32, 4096).unwrap() == [8; 4096]);
    drop((guest, daemon));
}
