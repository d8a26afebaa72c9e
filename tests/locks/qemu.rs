//! The programs of QEMU beside snapback, in both directions.

use crate::alone;
use crate::world::{Running, World};

const WRITE: &str = "Failed to get \"write\" lock";
const SHARED_WRITE: &str = "Failed to get shared \"write\" lock";

/// A machine that does not run has its disk open.
fn machine(world: &World, disk: &str) -> Running {
    let drive = format!("file={disk},format=raw,if=virtio");
    let fixed = ["-accel", "tcg", "-display", "none", "-S", "-qmp", "stdio"];
    let hello = r#"{"execute":"qmp_capabilities"}"#;
    let all = [&fixed[..], &["-drive", &drive]].concat();
    // It answers when the machine is there.
    world.run("qemu-system-x86_64", &all, hello, "\"return\"")
}

fn export(world: &World, disk: &str, writable: &str) -> Running {
    let read_only = if writable == "on" { "off" } else { "on" };
    let node = format!("driver=file,node-name=n,filename={disk},read-only={read_only}");
    let export = format!("type=nbd,id=e,node-name=n,writable={writable}");
    let server = ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"];
    let _ = std::fs::remove_file(world.path("nbd.sock"));
    let fixed = ["--chardev", "stdio,id=c", "--monitor", "chardev=c"];
    let all = [
        &["--blockdev", &node][..],
        &server,
        &["--export", &export],
        &fixed,
    ]
    .concat();
    world.run("qemu-storage-daemon", &all, "", "QMP")
}

#[track_caller]
fn assert_qemu_refuses(world: &World, disk: &str) {
    let image = |arguments: &[&str], words| {
        let all = [arguments, &["-f", "raw", disk]].concat();
        world.refused("qemu-img", &all, &[words, disk]);
    };
    world.refused("qemu-img", &["resize", "-f", "raw", disk, "8M"], &[WRITE]);
    world.refused("qemu-img", &["create", "-f", "raw", disk, "1M"], &[WRITE]);
    let read = ["convert", "-f", "raw", "-O", "raw", disk, "copy.img"];
    world.refused("qemu-img", &read, &[SHARED_WRITE, disk]);
    let write = ["convert", "-n", "-f", "raw", "-O", "raw", "other.img", disk];
    world.refused("qemu-img", &write, &[WRITE, disk]);
    image(&["bench", "-w", "-c", "1"], WRITE);
    let write = ["-f", "raw", "-c", "write 0 512", disk];
    world.refused("qemu-io", &write, &[WRITE, disk]);

    let quiet = ["-accel", "tcg", "-display", "none", "-S", "-drive"];
    for (more, words) in [("", WRITE), (",readonly=on", SHARED_WRITE)] {
        let drive = format!("file={disk},format=raw,if=virtio{more}");
        let all = [&quiet[..], &[drive.as_str()]].concat();
        world.refused("qemu-system-x86_64", &all, &[words, disk]);
    }
    let node = format!("driver=file,node-name=n,filename={disk}");
    let server = ["--nbd-server", "addr.type=unix,addr.path=n.sock"];
    let export = ["--export", "type=nbd,id=e,node-name=n,writable=on"];
    let all = [&["--blockdev", node.as_str()][..], &server, &export].concat();
    world.refused("qemu-storage-daemon", &all, &[WRITE]);

    // Who insists may read.
    world.succeed("qemu-img", &["info", "-U", disk]);
    let insists = ["convert", "-U", "-f", "raw", "-O", "raw", disk, "copy.img"];
    world.succeed("qemu-img", &insists);
}

#[test]
fn programs_of_qemu_refuse_what_a_daemon_serves_and_read_it_if_they_insist() {
    let _alone = alone();
    let world = World::new();
    world.disk("other.img");
    std::os::unix::fs::symlink(world.path("disk.img"), world.path("link.img")).unwrap();
    std::fs::hard_link(world.path("disk.img"), world.path("hard.img")).unwrap();
    let options = [
        "--origin",
        "disk.img",
        "--snapshot",
        "name=s,cow=s.cow,size=1M",
    ];
    let daemon = world.serve("a", &options);
    for file in ["disk.img", "s.cow", "link.img", "hard.img"] {
        assert_qemu_refuses(&world, file);
    }
    // The lock ends with the daemon, however that ends.
    daemon.kill();
    for file in ["disk.img", "s.cow"] {
        let write = ["-f", "raw", "-c", "write -P 0 3M 512", file];
        let write = if file == "disk.img" {
            write
        } else {
            ["-f", "raw", "-c", "read 0 512", file]
        };
        world.succeed("qemu-io", &write);
    }
}

#[test]
fn a_daemon_refuses_what_a_program_of_qemu_uses_and_names_it() {
    let _alone = alone();
    let world = World::new();
    world.we_do(&["create", "s.cow", "--size", "1M"]);
    let serve = ["serve", "--socket-path", "b.sock", "--origin", "disk.img"];
    let readers: [&[&str]; 4] = [
        &[
            "serve",
            "--socket-path",
            "b.sock",
            "--origin",
            "disk.img",
            "--read-only",
        ],
        &[
            "export", "--origin", "disk.img", "--cow", "s.cow", "out.img",
        ],
        &["diff", "--origin", "disk.img", "--cow", "s.cow"],
        &["check", "s.cow", "--origin", "disk.img"],
    ];
    let merge = ["merge", "--origin", "disk.img", "--cow", "s.cow"];
    type Start = fn(&World, &str) -> Running;
    let writers: [(&str, Start); 3] = [
        ("qemu-system-x86", machine),
        ("qemu-storage-da", |world, disk| export(world, disk, "on")),
        ("qemu-io", |world, disk| world.qemu_io(disk)),
    ];
    for (name, start) in writers {
        let user = start(&world, "disk.img");
        let named = format!(
            "is in use by {name} (pid {}), which has a lock for writing",
            user.id()
        );
        for arguments in readers.into_iter().chain([&serve[..], &merge]) {
            world.we_refuse(arguments, &["disk.img", &named, "stop that first"]);
        }
        user.kill();
        // Nothing is left of it.
        drop(world.serve("b", &["--origin", "disk.img"]));
        let _ = std::fs::remove_file(world.path("disk.img.snapback"));
    }

    let user = machine(&world, "s.cow");
    let named = format!("(pid {}), which has a lock for writing", user.id());
    let cow = ["--snapshot", "name=s,cow=s.cow"];
    world.we_refuse(
        &[&serve[..], &cow].concat(),
        &["snapshot s", "s.cow", &named],
    );
    for arguments in [
        &["info", "s.cow"][..],
        &["dump", "s.cow"],
        &["check", "s.cow"],
    ] {
        world.we_refuse(arguments, &["s.cow", &named]);
    }
    user.kill();
    world.we_do(&["info", "s.cow"]);

    let reader = machine(&world, "disk.img,readonly=on");
    let named = format!("(pid {}), which has a lock against writers", reader.id());
    world.we_refuse(&serve, &["disk.img", &named]);
    world.we_refuse(&merge, &["disk.img", &named]);
    drop(world.serve("b", &["--origin", "disk.img", "--read-only"]));
    world.we_do(&["diff", "--origin", "disk.img", "--cow", "s.cow"]);
}

#[test]
fn daemons_that_share_a_golden_image_keep_writers_out_and_let_readers_in() {
    let _alone = alone();
    let world = World::new();
    world.disk("other.img");
    let fork = |name: &str| {
        let snapshot = format!("name=s,cow={name}.cow,size=1M,type=N");
        world.serve(
            name,
            &[
                "--origin",
                "disk.img",
                "--read-only",
                "--snapshot",
                &snapshot,
            ],
        )
    };
    let (one, two, three) = (fork("one"), fork("two"), fork("three"));
    world.refused(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", "disk.img"],
        &[WRITE],
    );
    let write = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        "other.img",
        "disk.img",
    ];
    world.refused("qemu-img", &write, &[WRITE]);
    world.refused(
        "qemu-img",
        &["resize", "-f", "raw", "disk.img", "8M"],
        &[WRITE],
    );
    world.succeed(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", "disk.img", "copy.img"],
    );
    drop(export(&world, "disk.img", "off"));
    drop(machine(&world, "disk.img,readonly=on"));
    let serve = ["serve", "--socket-path", "b.sock", "--origin", "disk.img"];
    world.we_refuse(
        &serve,
        &["disk.img", "snapback (pid ", "has a lock against writers"],
    );
    world.refused(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", "two.cow"],
        &[WRITE],
    );

    one.kill();
    two.kill();
    world.refused(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", "disk.img"],
        &[WRITE],
    );
    three.kill();
    world.succeed("qemu-io", &["-f", "raw", "-c", "write 0 512", "disk.img"]);
}
