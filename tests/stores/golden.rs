//! Forks of a golden image, which no state file knows.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::guest::Kind;
use crate::request;
use crate::world::{CHUNK, World};

const FORK: &str = "name=vm,cow=vm.cow,size=1M,socket=vm.sock";

/// Whether the file system of `world` keeps what a fork notes.
fn keeps_attributes(world: &World) -> bool {
    world.write("try", b"");
    let set = rustix::fs::setxattr(
        world.path("try"),
        "user.try",
        b"x",
        rustix::fs::XattrFlags::empty(),
    );
    fs::remove_file(world.path("try")).unwrap();
    set.is_ok()
}

#[test]
fn a_golden_image_that_changed_is_refused_by_its_forks_until_it_is_back_or_accepted() {
    let mut world = World::new();
    if !keeps_attributes(&world) {
        println!("skipped: no attributes in this file system");
        return;
    }
    let start = ["--read-only", "--snapshot", FORK];
    world.serve("disk.img", &start);
    let mut data = vec![9; CHUNK];
    assert!(request(&world, "vm.sock", Kind::Write, 80, &mut data));
    world.stop();
    // Stopped and started, killed and started: nothing has changed.
    world.serve("disk.img", &start);
    world.kill();
    world.serve("disk.img", &start);
    world.stop();

    // With its times, as the advice says.
    let image = world.path("disk.img");
    let times = fs::metadata(&image).unwrap().modified().unwrap();
    let before = world.read("disk.img");
    std::thread::sleep(Duration::from_millis(20));
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[1; 512], 300 * 512).unwrap();
    drop(file);
    let refused = [&["--control", "c.sock"], &start[..]].concat();
    let words = [
        "snapshot vm",
        "disk.img",
        "was written",
        "cp -p",
        "--accept-changes",
    ];
    world.start_refused(&refused, &words);

    // Put back: right, byte by byte.
    fs::remove_file(&image).unwrap();
    world.write("disk.img", &before);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_modified(times).unwrap();
    drop(file);
    world.serve("disk.img", &start);
    let mut expected = before.clone();
    expected[80 * 512..][..CHUNK].copy_from_slice(&data);
    let mut seen = vec![0; expected.len()];
    assert!(request(&world, "vm.sock", Kind::Read, 0, &mut seen));
    assert!(seen == expected);
    world.stop();

    // Insisted on, once.
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[1; 512], 300 * 512).unwrap();
    drop(file);
    world.start_refused(&refused, &words);
    world.serve("disk.img", &[&start[..], &["--accept-changes"]].concat());
    world.stop();
    world.serve("disk.img", &start);
    // An empty fork depends on nothing, and may be made on a changed image.
    world.stop();
    let other = ["--read-only", "--snapshot", "name=b,cow=b.cow,size=1M"];
    world.serve("disk.img", &other);
    world.stop();
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[2; 512], 300 * 512).unwrap();
    drop(file);
    world.serve("disk.img", &other);
}
