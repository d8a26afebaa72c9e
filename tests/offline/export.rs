//! `export`: the snapshot's view as a file with holes.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn export_is_the_view_with_holes_and_overwrites_nothing() {
    let world = World::new(&[(7, 2), (8, 3), (39, 9), (30, 5), (0, 4)]);
    world.answer(0, &both(&["export", "out"]));
    let out = std::fs::read(world.path("out")).unwrap();
    assert!(out == decoder::view(&world.disk(), &world.cow()));
    // 20 chunks of data, the last in part, and two copies where the disk is zero.
    let blocks = std::fs::metadata(world.path("out")).unwrap().blocks() * 512;
    assert!(blocks <= 23 * CHUNK as u64, "{blocks} bytes on disk");
    world.refuse(&both(&["export", "out"]), "exists already");
    world.refuse(&both(&["export", "disk"]), "exists already");
    assert!(std::fs::read(world.path("out")).unwrap() == out);

    for (offset, len) in [
        (28672, 512),
        (29184, 4096),
        (512, 131_072),
        (DISK - 512, 512),
    ] {
        let range = format!("{offset}:{len}");
        let _ = std::fs::remove_file(world.path("part"));
        world.answer(0, &both(&["export", "part", "--range", &range]));
        let part = std::fs::read(world.path("part")).unwrap();
        assert!(part == out[offset..offset + len], "{range}");
    }
    for range in ["0:256K", "100:512", "1T:512"] {
        world.refuse(&both(&["export", "more", "--range", range]), "range");
    }
    world.refuse(&both(&["export", "more", "--range", "5"]), "OFFSET:LENGTH");
    assert!(!world.path("more").exists());
}

/// Holes are zeroes there, and nothing else goes to the pipe.
#[test]
fn a_pipe_gets_every_byte_and_a_terminal_none() {
    let world = World::new(&[(7, 2), (8, 3), (39, 9), (30, 5), (0, 4)]);
    let view = decoder::view(&world.disk(), &world.cow());
    let piped = |more: &[&str]| {
        let output = world.run(&[&both(&["export", "-"])[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stderr, b"");
        output.stdout
    };
    assert!(piped(&[]) == view);
    let (start, len) = (29 * CHUNK + 512, 3 * CHUNK);
    let range = format!("{start}:{len}");
    assert!(piped(&["--range", &range]) == view[start..start + len]);
    assert!(!world.path("-").exists());

    // A reader that leaves early has not got the disk.
    let mut early = std::process::Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(world.path("."))
        .env("XDG_RUNTIME_DIR", world.path("."))
        .args(both(&["export", "-"]))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(early.stdout.take());
    let ended = early.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(told.contains("standard output: cannot write it"), "{told}");

    let mut terminal = std::fs::File::options();
    let terminal = terminal.read(true).write(true).open("/dev/ptmx").unwrap();
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(world.path("."))
        .env("XDG_RUNTIME_DIR", world.path("."))
        .args(both(&["export", "-"]))
        .stdout(terminal)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("not written to a terminal"), "{told}");
}

/// A file with data in these chunks and holes elsewhere.
fn sparse(path: &Path, len: usize, chunks: &[(usize, u8)]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(len as u64).unwrap();
    for (chunk, byte) in chunks {
        let data = vec![*byte; CHUNK.min(len - chunk * CHUNK)];
        file.write_all_at(&data, (chunk * CHUNK) as u64).unwrap();
    }
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!(
        blocks <= (chunks.len() * CHUNK) as u64,
        "no holes on this file system: {blocks} bytes"
    );
}

/// Holes of the origin say nothing about copies in the COW, nor the other way round.
#[test]
fn each_part_is_looked_up_in_the_holes_of_the_file_that_has_it() {
    let world = World::new(&[]);
    // Copies of chunks 3, 4, 20 and the last where the disk has holes, and of 6 and 21
    // where it has data. The copies of 4 and 21 are holes of the COW.
    let entries: [(u64, u64); 6] = [(3, 2), (4, 3), (6, 4), (20, 30), (21, 31), (39, 40)];
    sparse(
        &world.path("disk"),
        DISK,
        &[(0, 1), (4, 2), (6, 3), (10, 4), (21, 5), (30, 6)],
    );
    let head = World::new(&entries).cow()[..2 * CHUNK].to_vec();
    let copies = [(2, 0x82), (4, 0x84), (30, 0x9e), (40, 0xa8)];
    sparse(
        &world.path("cow"),
        64 * CHUNK,
        &[&[(0, 0), (1, 0)], &copies[..]].concat(),
    );
    {
        use std::os::unix::fs::FileExt;
        let cow = std::fs::File::options().write(true).open(world.path("cow"));
        cow.unwrap().write_all_at(&head, 0).unwrap();
    }
    let expected = decoder::view(&world.disk(), &world.cow());
    world.answer(0, &both(&["export", "out"]));
    let out = std::fs::read(world.path("out")).unwrap();
    let wrong = (0..CHUNKS).find(|n| {
        let chunk = n * CHUNK..DISK.min((n + 1) * CHUNK);
        out[chunk.clone()] != expected[chunk]
    });
    assert_eq!(wrong, None, "the first wrong chunk");
    assert_eq!(out.len(), expected.len());
    for (offset, len) in [
        (3 * CHUNK, CHUNK),
        (4 * CHUNK + 512, 3 * CHUNK),
        (19 * CHUNK, DISK - 19 * CHUNK),
    ] {
        let range = format!("{offset}:{len}");
        let _ = std::fs::remove_file(world.path("part"));
        world.answer(0, &both(&["export", "part", "--range", &range]));
        let part = std::fs::read(world.path("part")).unwrap();
        assert!(part == expected[offset..offset + len], "{range}");
    }
}
