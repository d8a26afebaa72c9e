//! A snapshot that was given up, whatever it was killed in the middle of.

use std::fs;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::guest::Kind;
use crate::world::{CHUNK, World, store};
use crate::{request, valid_word};

/// The disk with snapshot `s`, of which only the state file says that it is invalid:
/// what a removal leaves that is killed after its first step, and an invalidation
/// whose header could not be written.
fn recorded_invalid() -> World {
    let mut world = World::new();
    world.write("s.cow", &store(5));
    world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
    world.kill();
    world.edit_state(|state| state["snapshots"][0]["valid"] = false.into());
    assert_eq!(valid_word(&world.read("s.cow")), 1);
    world
}

/// No verb shows anything of the snapshot, and no start makes it active.
fn shows_nothing(world: &World, why: &str) {
    let origin = ["--origin", "disk.img"];
    world.answered_no(&["check", "s.cow"], &["invalid", why]);
    world.answered_no(
        &[&["check", "s.cow"], &origin[..]].concat(),
        &["invalid", why],
    );
    world.answered_no(&["check", "s.cow", "--json"], &["\"verdict\": \"invalid\""]);
    world.answered_no(&["info", "s.cow"], &["invalid"]);
    for verb in [&["export", "out.img"][..], &["diff"], &["merge"]] {
        let command = [verb, &origin, &["--cow", "s.cow"]].concat();
        world.refused(&command, &["s.cow", "invalid"]);
    }
    world.start_refused(
        &[
            "--control",
            "d.sock",
            "--merge",
            "s",
            "--snapshot",
            "name=s,cow=s.cow",
        ],
        &["s", "invalid"],
    );
}

/// Nobody has a record any more; the store alone must say it.
fn taken_for_no_snapshot(world: &World) {
    fs::remove_file(world.path("disk.img.snapback")).unwrap();
    shows_nothing(world, "invalid");
    for name in ["s", "t"] {
        let snapshot = format!("name={name},cow=s.cow");
        world.start_refused(
            &["--control", "d.sock", "--snapshot", &snapshot],
            &["s.cow", "was invalidated"],
        );
    }
}

#[test]
fn a_removal_killed_after_its_first_step_is_seen_by_every_verb_and_ended_by_the_next_start() {
    let mut world = recorded_invalid();
    shows_nothing(&world, "disk.img.snapback");
    // A second snapshot on the same store does not get it either.
    world.start_refused(
        &["--control", "d.sock", "--snapshot", "name=t,cow=s.cow"],
        &["s.cow", "is used by snapshot s"],
    );
    world.serve("disk.img", &[]);
    assert_eq!(
        valid_word(&world.read("s.cow")),
        0,
        "before anything is served"
    );
    let status = world.done(&["status"]);
    assert!(status.contains("invalid"), "{status}");
    world.kill();
    world.serve("disk.img", &[]);
    world.done(&["remove", "s"]);
    world.stop();
    taken_for_no_snapshot(&world);
}

#[test]
fn a_removal_killed_between_header_and_record_is_a_removal() {
    let mut world = recorded_invalid();
    let mut bytes = world.read("s.cow");
    bytes[4] = 0;
    world.write("s.cow", &bytes);
    shows_nothing(&world, "invalid");
    world.serve("disk.img", &[]);
    world.done(&["remove", "s"]);
    world.stop();
    taken_for_no_snapshot(&world);
}

#[test]
fn a_forgetting_marks_what_only_the_state_file_says() {
    let mut world = recorded_invalid();
    world.serve("disk.img", &["--forget", "s"]);
    world.stop();
    assert_eq!(valid_word(&world.read("s.cow")), 0);
    taken_for_no_snapshot(&world);
}

/// Killed between the mark and the record: the record says valid, the header not.
#[test]
fn a_forgetting_killed_before_its_record_is_an_invalid_snapshot() {
    let mut world = recorded_invalid();
    world.edit_state(|state| state["snapshots"][0]["valid"] = true.into());
    let mut bytes = world.read("s.cow");
    bytes[4] = 0;
    world.write("s.cow", &bytes);
    shows_nothing(&world, "invalid");
    world.serve("disk.img", &[]);
    let status = world.done(&["status"]);
    assert!(status.contains("invalid"), "{status}");
    world.kill();
    world.serve("disk.img", &["--forget", "s"]);
    world.stop();
    taken_for_no_snapshot(&world);
}

#[test]
fn an_invalid_snapshot_whose_store_is_gone_or_broken_stops_no_start() {
    for harm in [None, Some(0), Some(100), Some(5000), Some(9 * CHUNK)] {
        let mut world = recorded_invalid();
        let path = world.path("s.cow");
        match harm {
            None => fs::remove_file(&path).unwrap(),
            Some(size) => {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(size as u64).unwrap();
            }
        }
        world.serve("disk.img", &[]);
        let status = world.done(&["status"]);
        assert_eq!(
            status.contains("invalid"),
            harm.is_some(),
            "{harm:?}: {status}"
        );
        if harm.is_some() {
            assert_eq!(valid_word(&world.read("s.cow")), 0, "{harm:?}");
            world.done(&["remove", "s", "--force"]);
        }
        world.stop();
        world.start_refused(&["--forget", "s"], &["no such snapshot"]);
    }
}

/// `--forget` is what the refusal of a truncated store advises: no part of the file
/// may pass for a snapshot afterwards, also when it is made longer again.
#[test]
fn a_forgotten_store_is_invalid_wherever_it_was_cut() {
    // Inside the magic and the words behind it, the header's sector and chunk, the
    // entries, the copies; sizes that are no size of a disk, too.
    for size in [
        3,
        8,
        12,
        100,
        512,
        1000,
        4096,
        4096 + 40,
        2 * CHUNK,
        3 * CHUNK + 7,
        6 * CHUNK,
    ] {
        let mut world = World::new();
        world.write("s.cow", &store(5));
        let whole = world.read("s.cow").len() as u64;
        world.serve("disk.img", &["--snapshot", "name=s,cow=s.cow"]);
        world.stop();
        let file = fs::File::options()
            .write(true)
            .open(world.path("s.cow"))
            .unwrap();
        file.set_len(size as u64).unwrap();
        world.start_refused(
            &["--control", "c.sock"],
            &["snapshot s is known", "s.cow", "--forget s"],
        );
        world.serve("disk.img", &["--forget", "s"]);
        world.stop();
        assert_eq!(world.read("s.cow").len(), size, "never longer by itself");
        assert_eq!(valid_word(&world.read("s.cow")), 0, "{size}");
        file.set_len(whole).unwrap();
        let bytes = world.read("s.cow");
        assert!(bytes[0] == 0 || valid_word(&bytes) == 0, "{size}");
        world.start_refused(
            &["--control", "c.sock", "--snapshot", "name=t,cow=s.cow"],
            &["s.cow"],
        );
    }
}

#[test]
fn a_store_that_another_snapshot_has_by_now_is_not_marked() {
    let mut world = World::new();
    for name in ["a.cow", "b.cow"] {
        world.write(name, &store(5));
    }
    world.serve(
        "disk.img",
        &[
            "--snapshot",
            "name=a,cow=a.cow",
            "--snapshot",
            "name=b,cow=b.cow",
        ],
    );
    world.stop();
    // The path of `b` leads to the store of `a`.
    fs::remove_file(world.path("b.cow")).unwrap();
    fs::hard_link(world.path("a.cow"), world.path("b.cow")).unwrap();
    world.serve("disk.img", &["--forget", "b"]);
    let status = world.done(&["status"]);
    assert!(!status.contains("invalid"), "{status}");
    assert_eq!(valid_word(&world.read("a.cow")), 1);
}

/// A store on which no write succeeds any more from some moment on: a file in memory
/// that is sealed.
struct Sealable(fs::File);

impl Sealable {
    fn new(content: &[u8]) -> Self {
        use std::os::unix::fs::FileExt;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = fs::File::from(rustix::fs::memfd_create("cow", flags).unwrap());
        file.write_all_at(content, 0).unwrap();
        Self(file)
    }

    /// For other processes, while this one lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn seal(&self) {
        rustix::fs::fcntl_add_seals(&self.0, SealFlags::WRITE).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

/// The whole way: a copy-out fails, the header cannot be written, the daemon is killed;
/// and the same for a removal, whose second try must not drop the record.
#[test]
fn a_header_that_cannot_be_written_keeps_the_record_until_it_is_insisted_on() {
    for by_removal in [false, true] {
        let mut world = World::new();
        let cow = Sealable::new(&store(5));
        let snapshot = format!("name=s,cow={}", cow.path());
        let options = ["--socket-path", "o.sock", "--snapshot", &snapshot];
        world.serve("disk.img", &options);
        cow.seal();
        if by_removal {
            let said = world.run(&["remove", "s"]);
            assert_eq!(said.status, Some(2), "{said:?}");
            for words in ["snapshot s could not be removed", "stays listed", "--force"] {
                assert!(said.stderr.contains(words), "{said:?}");
            }
        }
        // The origin lives on.
        let mut data = vec![7; CHUNK];
        let behind = (100 * CHUNK / 512) as u64;
        assert!(request(&world, "o.sock", Kind::Write, behind, &mut data));
        assert_eq!(world.read("disk.img")[100 * CHUNK..101 * CHUNK], data);
        let status = world.done(&["status"]);
        assert!(status.contains("invalid"), "{status}");
        assert_eq!(valid_word(&cow.bytes()), 1);
        world.kill();

        let why = "disk.img.snapback";
        let (path, origin) = (cow.path(), ["--origin", "disk.img"]);
        world.answered_no(
            &[&["check", &path], &origin[..]].concat(),
            &["invalid", why],
        );
        let export = ["export", "--cow", &path, "--origin", "disk.img", "out.img"];
        world.refused(&export, &["invalid", why]);

        world.serve("disk.img", &[]);
        let status = world.done(&["status"]);
        assert!(status.contains("invalid"), "{status}");
        for _ in 0..2 {
            let said = world.run(&["remove", "s"]);
            assert_eq!(said.status, Some(2), "{said:?}");
            assert!(said.stderr.contains("could not be removed"), "{said:?}");
            assert!(world.done(&["status"]).contains("invalid"));
        }
        world.stop();
        let forget = ["--control", "c.sock", "--forget", "s"];
        world.start_refused(
            &forget,
            &["cannot be forgotten", "remove the COW", "--force"],
        );
        if by_removal {
            world.serve("disk.img", &["--forget", "s", "--force"]);
        } else {
            world.serve("disk.img", &[]);
            world.done(&["remove", "s", "--force"]);
        }
        assert!(!world.done(&["status"]).contains("invalid"));
        world.stop();
    }
}
