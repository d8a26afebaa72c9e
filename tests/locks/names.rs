//! The same storage under two names.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use snapback::io::OpenError;

use crate::world::{Loop, World};
use crate::{alone, open, reader};

const WRITE: &str = "Failed to get \"write\" lock";
const SERVE: [&str; 4] = ["serve", "--socket-path", "b.sock", "--origin"];

#[track_caller]
fn assert_we_refuse(world: &World, origin: &str, words: &[&str]) {
    world.we_refuse(&[&SERVE[..], &[origin]].concat(), words);
    // Without an attempt, too.
    world.we_refuse(&[&SERVE[..], &[origin, "--check"]].concat(), words);
}

#[test]
fn links_to_a_file_in_use_are_refused() {
    let _alone = alone();
    let world = World::new();
    std::os::unix::fs::symlink(world.path("disk.img"), world.path("link.img")).unwrap();
    fs::hard_link(world.path("disk.img"), world.path("hard.img")).unwrap();
    let daemon = world.serve("a", &["--origin", "disk.img"]);
    let named = format!(
        "snapback (pid {}), which has a lock for writing",
        daemon.id()
    );
    for name in ["disk.img", "link.img", "hard.img"] {
        assert_we_refuse(&world, name, &[name, &named, "stop that first"]);
    }
}

#[test]
fn a_file_with_a_loop_device_is_refused_until_that_is_detached() {
    let _alone = alone();
    let world = World::new();
    let disk = world.path("disk.img");
    let Some(device) = Loop::new(&disk) else {
        return;
    };
    let advice = format!("`losetup -d {}`", device.name());
    assert_we_refuse(&world, "disk.img", &["disk.img", device.name(), &advice]);
    let cow = ["--origin", "other.img", "--snapshot", "name=s,cow=disk.img"];
    world.disk("other.img");
    let all = [&SERVE[..3], &cow].concat();
    world.we_refuse(&all, &["snapshot s", "disk.img", &advice]);
    // A reader is only warned.
    assert!(reader(&disk).is_ok());
    world.succeed("losetup", &["-d", device.name()]);
    open(&disk).unwrap();

    world.succeed("mkfs.ext4", &["-q", "-F", "disk.img"]);
    fs::create_dir(world.path("mnt")).unwrap();
    let mut mount = world.command("mount", &["-o", "loop", "disk.img", "mnt"]);
    if !mount.status().unwrap().success() {
        return eprintln!("skipped: mounting is not allowed here");
    }
    let refused = open(&disk).map(drop).unwrap_err();
    let text = refused.to_string();
    let at = world.path("mnt");
    world.succeed("umount", &["mnt"]);
    assert!(
        text.contains(&format!("unmount {}", at.display())),
        "{text}"
    );
    open(&disk).unwrap();
}

#[test]
fn the_file_of_a_loop_device_is_locked_with_the_device() {
    let _alone = alone();
    let world = World::new();
    let disk = world.path("disk.img");
    let Some(device) = Loop::new(&disk) else {
        return;
    };
    let write = ["-f", "raw", "-c", "write 0 512", "disk.img"];
    let daemon = world.serve("a", &["--origin", device.name(), "--state", "state"]);
    world.refused("qemu-io", &write, &[WRITE]);
    assert!(open(&disk).is_err());
    let write_device = ["-f", "raw", "-c", "write 0 512", device.name()];
    world.refused("qemu-io", &write_device, &[WRITE]);
    daemon.kill();
    world.succeed("qemu-io", &write);
    world.succeed("qemu-io", &write_device);

    // The other way round: who uses the file keeps us from the device.
    let qemu = world.qemu_io("disk.img");
    let named = format!("qemu-io (pid {}), which has a lock for writing", qemu.id());
    let words = [device.name(), "disk.img", &named];
    assert_we_refuse(&world, device.name(), &words);
    qemu.kill();
    // And a device that came later does not hide that the file is served.
    drop(device);
    let daemon = world.serve("a", &["--origin", "disk.img"]);
    let device = Loop::new(&disk).unwrap();
    let named = format!("snapback (pid {})", daemon.id());
    let words = [device.name(), "disk.img", &named];
    assert_we_refuse(&world, device.name(), &words);
    daemon.kill();
    open(&device.0).unwrap();
}

/// A table with one partition, from 1 MiB to the end of `path`.
fn partition(path: &Path) {
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    entry[12..].copy_from_slice(&6144_u32.to_le_bytes());
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&entry, 446).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

#[test]
fn a_disk_and_its_partitions_are_the_same_storage() {
    let _alone = alone();
    let world = World::new();
    partition(&world.path("disk.img"));
    let Some(device) = Loop::with(&["-P"], &world.path("disk.img")) else {
        return;
    };
    let part = format!("{}p1", device.name());
    if !Path::new(&part).exists() {
        return eprintln!("skipped: no partitions of loop devices here");
    }
    // QEMU does not claim a device: its locks are looked at.
    for (theirs, ours) in [
        (part.as_str(), device.name()),
        (device.name(), part.as_str()),
    ] {
        let qemu = world.qemu_io(theirs);
        let named = format!("qemu-io (pid {}), which has a lock for writing", qemu.id());
        assert_we_refuse(&world, ours, &[ours, theirs, &named]);
    }
    // The kernel keeps this program from a part of what it has claimed.
    let disk = open(&device.0).unwrap();
    assert!(matches!(
        open(Path::new(&part)),
        Err(OpenError::DeviceBusy { .. })
    ));
    drop(disk);

    world.succeed("mkfs.ext4", &["-q", "-F", &part]);
    fs::create_dir(world.path("mnt")).unwrap();
    let mut mount = Command::new("mount");
    if !mount
        .arg(&part)
        .arg(world.path("mnt"))
        .status()
        .unwrap()
        .success()
    {
        return eprintln!("skipped: mounting is not allowed here");
    }
    let mounted = format!("{part} is mounted at {}", world.path("mnt").display());
    for name in [device.name(), &part] {
        assert_we_refuse(&world, name, &["used by the kernel", &mounted]);
    }
    world.succeed("umount", &["mnt"]);
    open(Path::new(&part)).unwrap();
}
