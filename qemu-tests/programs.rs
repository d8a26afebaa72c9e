//! docs/front-ends.md, followed: programs that read a snapshot at its socket.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::Bench;
use crate::disk::{MIB, Sums};

const GUIDE: &str = include_str!("../docs/front-ends.md");
const SIZE: u64 = 64 * MIB;

/// Runs shell commands in the folder; they end with the first that fails.
fn run(folder: &Path, commands: &str) -> (bool, String) {
    let output = Command::new("timeout")
        .args(["120", "sh", "-e", "-c", commands])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn programs_copy_a_snapshot_from_its_socket_as_the_guide_says() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, 7);
    let before = Sums::of_file(&origin);
    let daemon = bench.serve(&[]);
    let (cow, socket) = (bench.text("nightly.cow"), bench.text("nightly.sock"));
    let take = ["snapshot", "nightly", "--cow", &cow, "--size", "96M"];
    daemon.run(&[&take[..], &["--socket-path", &socket, "--read-only"]].concat());
    let folder = bench.path("");

    let (_, formats) = run(&folder, "qemu-img --help");
    if !formats.contains("virtio-blk-vhost-user") {
        let command = "qemu-img info --image-opts driver=virtio-blk-vhost-user,path=nightly.sock";
        let (done, said) = run(&folder, command);
        assert!(!done && said.contains("Unknown driver"), "{said}");
        println!("this QEMU has no driver for it; qemu-tests/newer-qemu.sh has one that does");
        daemon.terminate();
        return;
    }
    // The guest writes all of the disk meanwhile.
    let mut guest = bench.boot("guest", &[bench.view("origin")]);
    guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct 2>/dev/null");
    let (_, section) = GUIDE.split_once("## Programs on the socket\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut blocks = 0;
    for block in section.split("```sh\n").skip(1) {
        let commands = block.split("```").next().unwrap();
        println!("$ {commands}");
        let (done, said) = run(&folder, commands);
        assert!(done, "{commands}\n{said}");
        println!("{said}");
        blocks += 1;
    }
    assert_eq!(blocks, 2);
    let (done, said) = run(&folder, "qemu-img convert -O raw nightly.qcow2 nightly.img");
    assert!(done, "{said}");
    for image in ["nightly.img", "by-nbd.img", "by-nbdkit.img"] {
        let copy = Sums::of_file(&bench.path(image));
        copy.assert_same(&before, &format!("{image} with the disk when it was taken"));
    }
    Sums::of_file(&origin).assert_differs(&before, "the disk now with the snapshot");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
}
