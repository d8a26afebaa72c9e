//! Disks that grow while guests use them (O06 of `docs/checklist.md`).

use super::failing::Failing;
use super::inject::{Call, Rule};
use super::*;

const MORE: usize = 4 << 20;
const LARGER: u64 = (BYTES + MORE) as u64;

fn with_snapshot() -> (World, Guest, Vec<u8>) {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
    let guest = Guest::connect(&world.path("a.sock"));
    (world, guest, before)
}

fn whole(guest: &mut Guest) -> Vec<u8> {
    let len = guest.bytes();
    guest.read_all(len)
}

/// Writes across the old end, and in the last sector.
fn write_behind(guest: &mut Guest, disk: &mut Vec<u8>) {
    disk.resize(BYTES + MORE, 0);
    for (at, len) in [(BYTES - 512, 4096), (BYTES + MORE - 512, 512)] {
        assert_eq!(guest.write(at as u64 / 512, &vec![0xbb; len]), 0);
        disk[at..at + len].fill(0xbb);
    }
}

#[test]
fn a_larger_disk_is_there_at_once_and_snapshots_keep_their_lengths() {
    let (mut world, mut guest, before) = with_snapshot();
    wreck(&mut guest, 1);
    let reply = world.client().resize(Some(LARGER)).unwrap();
    assert_eq!((reply.before, reply.size), (BYTES as u64, LARGER));
    let socket = world.path("a.sock").to_str().unwrap().to_owned();
    assert_eq!((reply.told, reply.untold), (vec![], vec![Some(socket)]));
    assert_eq!(fs::metadata(world.path("disk.img")).unwrap().len(), LARGER);
    assert_eq!(
        world.client().status().unwrap().origin.sectors,
        LARGER / 512
    );
    assert_eq!(world.state()["origin"]["size"], LARGER);
    assert_eq!(guest.bytes(), LARGER as usize, "of a guest that asks again");
    let mut disk = whole(&mut guest);
    assert!(disk[BYTES..].iter().all(|byte| *byte == 0));
    write_behind(&mut guest, &mut disk);
    drop(guest);

    // Death does not make it smaller, and the next start has nothing to complain of.
    world.kill();
    world.start(&[]);
    for _ in 0..2 {
        let mut guest = Guest::connect(&world.path("a.sock"));
        assert_same(&whole(&mut guest), &disk, "the disk");
        drop(guest);
        let mut guest = Guest::connect(&world.path("s1.sock"));
        assert_same(&whole(&mut guest), &before, "the snapshot");
        drop(guest);
        world.terminate();
        world.start(&[]);
    }
    // A later snapshot has the new length.
    world.client().add_snapshot(&world.snapshot("s2")).unwrap();
    let mut guest = Guest::connect(&world.path("s2.sock"));
    assert_same(&whole(&mut guest), &disk, "the later snapshot");
    drop(guest);
    world.rollback("s1", RollbackWhen::Now);
    world.merged();
    disk[..BYTES].copy_from_slice(&before);
    world.terminate();
    assert_same(
        &world.origin(),
        &disk,
        "rolled back up to the snapshot's end",
    );
}

#[test]
fn a_disk_that_others_enlarged_is_used_when_it_is_asked_for() {
    let (mut world, guest, _) = with_snapshot();
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(world.path("disk.img"));
    disk.unwrap().set_len(LARGER).unwrap();
    assert_eq!(guest.bytes(), BYTES, "not by itself");
    let larger = |world: &World| {
        let page = world.client().events(0, None).unwrap();
        let events = page.events.iter();
        let larger = events.filter(|e| e["kind"] == "origin-larger" && e["size"] == LARGER);
        larger.count()
    };
    assert_eq!(larger(&world), 0);
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    world.boot();
    assert!(larger(&world) > 0, "it is noticed when a machine starts");
    let guest = Guest::connect(&world.path("a.sock"));
    let refused = world.client().resize(Some(LARGER - 4096)).unwrap_err();
    assert!(refused.to_string().contains("cannot shrink"), "{refused}");
    assert_eq!(world.client().resize(None).unwrap().size, LARGER);
    assert_eq!(guest.bytes(), LARGER as usize);
    drop(guest);
    world.kill();
    world.start(&[]);
    assert_eq!(
        world.client().status().unwrap().origin.sectors,
        LARGER / 512
    );
}

/// What was only noticed is not recorded at the stop, as if it had been resized.
#[test]
fn a_disk_that_others_enlarged_is_doubted_at_the_next_start_although_it_was_noticed() {
    let said = [false, true].map(|notice| {
        let (mut world, guest, _) = with_snapshot();
        drop(guest);
        world.until("the guest has left", |w| !w.attached());
        let disk = fs::OpenOptions::new()
            .write(true)
            .open(world.path("disk.img"));
        disk.unwrap().set_len(LARGER).unwrap();
        if notice {
            world.boot();
        }
        world.terminate();
        assert_eq!(world.state()["origin"]["size"], BYTES as u64);
        let folder = world.path("");
        world.refuse(&[]).replace(folder.to_str().unwrap(), "")
    });
    assert_eq!(said[0], said[1]);
    assert!(said[1].contains("--accept-changes"), "{}", said[1]);
}

#[test]
fn a_disk_grows_while_it_is_rolled_back() {
    for follow in [false, true] {
        let (mut world, mut guest, before) = with_snapshot();
        wreck(&mut guest, 1);
        assert_eq!(guest.flush(), 0);
        drop(guest);
        let request = MergeRequest {
            snapshot: "s1".into(),
            follow,
            rate: Some(4096),
            ..MergeRequest::default()
        };
        world.until("the guest has left", |w| !w.attached());
        world.client().merge(&request).unwrap();
        world.client().resize(Some(LARGER)).unwrap();
        let socket = if follow { "s1.sock" } else { "a.sock" };
        let mut guest = Guest::connect(&world.path(socket));
        let mut disk = whole(&mut guest);
        assert_same(&disk[..BYTES], &before, "during the merge");
        world.client().set_merge_rate(0).unwrap();
        write_behind(&mut guest, &mut disk);
        world.merged();
        assert_same(&whole(&mut guest), &disk, "after the merge");
        drop(guest);
        world.terminate();
        assert_same(&world.origin(), &disk, "the file");
    }
}

#[test]
fn a_resize_refuses_what_makes_no_sense() {
    let (world, guest, _) = with_snapshot();
    drop(guest);
    let refusal = |size| world.client().resize(size).unwrap_err().to_string();
    assert!(
        refusal(Some(BYTES as u64 - 512))
            .contains("cannot shrink from 16 MiB to 15.9 MiB (16776704 bytes)")
    );
    assert!(refusal(Some(LARGER + 1)).contains("not a multiple of its block size, 512 bytes"));
    refusal(Some(u64::MAX - 511));
    assert_eq!(world.origin().len(), BYTES);
    let same = world.client().resize(Some(BYTES as u64)).unwrap();
    assert_eq!((same.before, same.size), (BYTES as u64, BYTES as u64));

    // Cut behind the daemon's back: nobody calls that a new size.
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(world.path("disk.img"));
    disk.unwrap().set_len(BYTES as u64 - 4096).unwrap();
    for size in [None, Some(LARGER)] {
        assert!(refusal(size).contains("was cut to"), "{size:?}");
    }
    assert_eq!(world.origin().len(), BYTES - 4096);
}

#[test]
fn a_read_only_disk_keeps_its_size() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock", "--read-only"]);
    let refused = world.client().resize(Some(LARGER)).unwrap_err();
    assert!(refused.to_string().contains("read-only"), "{refused}");
    assert_eq!(world.origin().len(), BYTES);
}

/// The file is larger then, as the refusal says, and the disk is not.
#[test]
fn a_resize_that_cannot_be_recorded_takes_no_effect_until_it_is_asked_for_again() {
    let (world, guest, _) = with_snapshot();
    let obstacle = world.path("disk.img.snapback.new");
    fs::create_dir(&obstacle).unwrap();
    let refused = world.client().resize(Some(LARGER)).unwrap_err().to_string();
    for part in ["disk.img is larger now", "ask for the same size again"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(guest.bytes(), BYTES);
    assert_eq!(world.state()["origin"]["size"], BYTES);
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(world.client().resize(Some(LARGER)).unwrap().size, LARGER);
    assert_eq!(guest.bytes(), LARGER as usize);
}

/// The first attempt makes the file longer and fails to make that durable. A second one found
/// it long enough and recorded the size, which power loss could have taken away again.
#[test]
fn a_size_is_recorded_only_when_it_is_durable_whoever_made_the_file_longer() {
    let (mut world, guest, _) = with_snapshot();
    drop(guest);
    world.terminate();
    let Failing { mut world, faults } = Failing::start(world);
    faults.fail(Rule {
        call: Call::Sync,
        file: "disk.img",
        bytes: 0..u64::MAX,
        errno: libc::EIO,
    });
    for size in [Some(LARGER), Some(LARGER), None] {
        let refused = world.client().resize(size).unwrap_err().to_string();
        assert!(refused.contains("make its size durable"), "{refused}");
        assert_eq!(world.state()["origin"]["size"], BYTES);
        assert_eq!(world.origin().len(), LARGER as usize);
    }
    faults.mend();
    assert_eq!(world.client().resize(None).unwrap().size, LARGER);
    assert_eq!(world.state()["origin"]["size"], LARGER);
    world.terminate();
}
