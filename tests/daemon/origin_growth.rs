//! Origins that grew while no daemon ran (O06 of `docs/checklist.md`).

use std::io::Write;

use super::*;

const MORE: usize = 4 << 20;

/// Appends what is stamped with `seed`, behind the daemon's back.
fn append(world: &World, seed: u8) -> Vec<u8> {
    let mut disk = fs::OpenOptions::new()
        .append(true)
        .open(world.path("disk.img"))
        .unwrap();
    let more: Vec<u8> = (0..MORE).map(|i| (i / 512) as u8 ^ seed).collect();
    disk.write_all(&more).unwrap();
    more
}

/// A snapshot of a disk that has grown since, its first part overwritten, and
/// what the origin shows now. The snapshot ends within its last chunk of 64 KiB.
fn grown() -> (World, Vec<u8>, Vec<u8>) {
    let mut world = World::new();
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(world.path("disk.img"))
        .unwrap();
    disk.set_len(BYTES as u64 - 512 * 3).unwrap();
    let before = world.origin();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        "name=s1,cow=s1.cow,size=32M,chunk-size=64K,socket=s1.sock",
    ]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    drop(guest);
    world.terminate();
    append(&world, 0x55);
    let refused = world.refuse(&[]);
    for part in ["only enlarged", "--accept-changes", "keeps its length"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    world.start(&["--accept-changes"]);
    let mut origin = world.origin();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.bytes(), origin.len());
    // Over its end, behind it in its last chunk, and in the new part.
    for (at, len) in [
        (before.len() - 512, 1024),
        (before.len() + 1024, 512),
        (before.len() + (1 << 20), 1 << 20),
    ] {
        let data = vec![0xdd; len];
        assert_eq!(guest.write(at as u64 / 512, &data), 0);
        origin[at..at + len].copy_from_slice(&data);
    }
    assert_eq!(guest.flush(), 0);
    (world, before, origin)
}

fn used(world: &World) -> u64 {
    let status = world.client().status().unwrap();
    status.snapshots[0].allocated_sectors
}

fn whole(guest: &mut Guest) -> Vec<u8> {
    let len = guest.bytes();
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let part = (len - data.len()).min(1 << 20);
        data.extend(guest.read(data.len() as u64 / 512, part).unwrap());
    }
    data
}

#[test]
fn a_snapshot_keeps_the_length_that_its_origin_had() {
    let (mut world, before, origin) = grown();
    let sectors = before.len() as u64 / 512;
    for _ in 0..2 {
        let mut guest = Guest::connect(&world.path("s1.sock"));
        assert_same(&whole(&mut guest), &before, "the snapshot");
        assert!(guest.read(sectors, 512).is_err());
        drop(guest);
        let mut guest = Guest::connect(&world.path("a.sock"));
        assert_same(&whole(&mut guest), &origin, "the origin");
        let room = used(&world);
        // What is written behind its end takes none of its room.
        let at = before.len() as u64 / 512 + 100;
        assert_eq!(guest.write(at, &origin[at as usize * 512..][..65536]), 0);
        assert_eq!(used(&world), room);
        let status = world.client().status().unwrap();
        assert_eq!(status.snapshots[0].sectors, sectors);
        assert_eq!(status.origin.sectors, origin.len() as u64 / 512);
        let table = world.client().table().unwrap();
        let line = format!("s1: 0 {sectors} snapshot 0:0 0:0 P 128\n");
        assert!(table.contains(&line), "{table}");
        assert_eq!(world.state()["snapshots"][0]["length"], before.len());
        drop(guest);
        // And so at the next start, which has nothing to accept.
        world.kill();
        world.start(&[]);
    }
}

#[test]
fn a_rollback_leaves_the_origins_new_part_alone() {
    let (mut world, before, mut origin) = grown();
    world.rollback("s1", RollbackWhen::Now);
    origin[..before.len()].copy_from_slice(&before);
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_same(&whole(&mut guest), &origin, "while it is merged");
    world.merged();
    assert_same(&whole(&mut guest), &origin, "after the merge");
    drop(guest);
    world.terminate();
    assert_same(&world.origin(), &origin, "the origin itself");
}

/// A guest that followed keeps the size that it was told; the next start offers
/// the whole origin.
#[test]
fn what_followed_its_merge_shows_the_snapshots_part_and_later_all() {
    let (mut world, before, mut origin) = grown();
    origin[..before.len()].copy_from_slice(&before);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    let request = MergeRequest {
        snapshot: "s1".into(),
        follow: true,
        rate: None,
        now: true,
    };
    world.client().merge(&request).unwrap();
    world.merged();
    assert_same(&whole(&mut guest), &before, "its part");
    assert!(guest.read(before.len() as u64 / 512, 512).is_err());
    drop(guest);
    world.terminate();
    world.start(&[]);
    let mut guest = Guest::connect(&world.path("s1.sock"));
    assert_same(&whole(&mut guest), &origin, "all of it");
}

/// An offline verb on the disk and the snapshot's store.
fn offline(world: &World, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(arguments)
        .args(["--origin", "disk.img", "--cow", "s1.cow"])
        .output()
        .unwrap()
}

#[test]
fn offline_verbs_know_the_length() {
    let (mut world, before, mut origin) = grown();
    world.terminate();
    let verb = |arguments: &[&str]| {
        let output = offline(&world, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    verb(&["export", "s1.img"]);
    let exported = fs::read(world.path("s1.img")).unwrap();
    assert_same(&exported, &before, "the export");
    let changes: serde_json::Value =
        serde_json::from_str(&verb(&["diff", "--json", "--entries-only"])).unwrap();
    let last = changes.as_array().unwrap().last().unwrap();
    let end = last["start"].as_u64().unwrap() + last["length"].as_u64().unwrap();
    assert_eq!(end, before.len() as u64);
    verb(&["merge"]);
    origin[..before.len()].copy_from_slice(&before);
    assert_same(&world.origin(), &origin, "the offline merge");
}

#[test]
fn a_disk_that_lost_a_part_of_its_snapshot_is_exported_by_nobody() {
    let (mut world, before, _) = grown();
    world.terminate();
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(world.path("disk.img"))
        .unwrap();
    disk.set_len(before.len() as u64 - 512).unwrap();
    for verb in [&["export", "s1.img"][..], &["diff"], &["merge"]] {
        let output = offline(&world, verb);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{verb:?}");
        let long = snapback::size::in_words(before.len());
        // Or, where the volume remembers how large the disk was:
        let told = error.contains(&long) || error.contains("its size was");
        assert!(told, "{verb:?}: {error}");
    }
    assert!(!world.path("s1.img").exists());
}

#[test]
fn a_state_file_from_before_lengths_means_the_size_that_it_knows() {
    let (mut world, before, _) = grown();
    world.terminate();
    let mut state = world.state();
    state["snapshots"][0]
        .as_object_mut()
        .unwrap()
        .remove("length");
    // As it was when nothing but this size told.
    state["origin"]["size"] = before.len().into();
    fs::write(
        world.path("disk.img.snapback"),
        serde_json::to_vec(&state).unwrap(),
    )
    .unwrap();
    world.start(&["--accept-changes"]);
    assert_same(
        &whole(&mut Guest::connect(&world.path("s1.sock"))),
        &before,
        "the snapshot",
    );
    assert_eq!(world.state()["snapshots"][0]["length"], before.len());
}
