//! The commands of `docs/forks.md`, one after the other. QEMU is a script: it connects a guest
//! with a virtio-blk driver to the socket that its options name. (`qemu-tests/run.rs` has a
//! real guest.)
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../daemon/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::Guest;

const BLOCK: usize = 4096;
const BLOCKS: usize = 512;

/// What stands for QEMU: a guest writes block 1, in which it counts how often it has booted,
/// and says in the log which block 0 it saw.
#[test]
#[ignore = "the other test starts it"]
fn guest_that_counts_its_boots() {
    let Ok(socket) = std::env::var("QEMU_SOCKET") else {
        return;
    };
    let mut guest = Guest::connect(Path::new(&socket));
    let image = guest.read(0, BLOCK).unwrap()[0];
    let boots = guest.read(8, BLOCK).unwrap()[0] + 1;
    assert_eq!(guest.write(8, &[boots; BLOCK]), 0);
    assert_eq!(guest.flush(), 0);
    let name = Path::new(&socket).file_stem().unwrap().to_str().unwrap();
    let mut log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open("guests")
        .unwrap();
    std::io::Write::write_all(&mut log, format!("{name} {image} {boots}\n").as_bytes()).unwrap();
}

/// A program of this name in the folder `bin`.
fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join("bin").join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The commands of the document: all blocks that are marked as such.
fn commands() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/forks.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() > 10, "{} blocks", blocks.len());
    blocks.join("\n")
}

fn block(path: PathBuf, number: usize) -> u8 {
    fs::read(path).unwrap()[number * BLOCK]
}

#[test]
fn the_commands_of_the_document_do_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["bin", "tmp"] {
        fs::create_dir(path(name)).unwrap();
    }
    let snapback = assert_cmd::cargo::cargo_bin!("snapback");
    std::os::unix::fs::symlink(snapback, path("bin/snapback")).unwrap();
    let this = std::env::current_exe().unwrap();
    let qemu = format!(
        r#"#!/bin/sh
# Like isa-debug-exit, if that device is there: 33.
status=0 memory=
for word; do
    case $word in
        socket,*path=*) QEMU_SOCKET=${{word##*path=}} ;;
        isa-debug-exit,*) status=33 ;;
        memory-backend-memfd,*share=on) memory=shared ;;
    esac
done
export QEMU_SOCKET
[ "$memory" = shared ] || exit 99
"{}" guest_that_counts_its_boots --exact --ignored --nocapture >/dev/null || exit 98
exit $status
"#,
        this.display()
    );
    program(folder.path(), "qemu-system-x86_64", &qemu);
    let mut image = vec![5; BLOCK];
    image.resize(BLOCK * BLOCKS, 0);
    fs::write(path("golden.img"), image).unwrap();

    // A boot test with isa-debug-exit says 33, and the script goes on.
    let script = commands().replace(
        "{disk},bootindex=1\n",
        "{disk},bootindex=1 || [ $? = 33 ]\n",
    );
    // A failure, for the page's own way to look at it.
    let script = script.replace("--success 0,33 --keep", "--success 0,32 --keep");
    let search = format!(
        "{}:{}",
        path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-eux", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", search)
        .env("TMPDIR", path("tmp"))
        .env("XDG_RUNTIME_DIR", folder.path())
        .env_remove("SNAPBACK_CONTROL")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);

    // Which guests ran, what image they saw, and how often they had booted.
    let guests = fs::read_to_string(path("guests")).unwrap();
    let mut guests: Vec<&str> = guests.lines().collect();
    let once = guests.iter().filter(|line| **line == "disk 5 1").count();
    assert_eq!(once, 8, "{guests:?}");
    guests.retain(|line| *line != "disk 5 1");
    guests.sort_unstable();
    assert_eq!(
        guests,
        [
            "failed 5 2", // the kept changes
            "vm1 5 2",    // after the commit into the image
            "vm2 5 2",
            "vm3 5 2",
            "vm3 5 3", // found again by the next start
            "vm4 5 2",
            "vm5 5 2", // not those of vm4, which were merged
            "vm6 5 2",
        ]
    );
    for (name, boots) in [
        ("golden.img", 1),
        ("failed.img", 1),
        ("golden-2.img", 2),
        ("disk.img", 2),
        ("golden-3.img", 2),
    ] {
        assert_eq!(block(path(name), 0), 5, "{name}");
        assert_eq!(block(path(name), 1), boots, "{name}");
    }
    assert!(!path("vm2.cow").exists());
    let left: Vec<_> = fs::read_dir(path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
