//! COWs that were deleted, made anew, or mixed up.

use std::fs;

use crate::world::{CHUNK, Field, first_content, later, run, text};

/// The COW of a snapshot is deleted while it is served, and another snapshot
/// wants its path.
#[test]
fn a_path_of_a_living_cow_is_not_given_to_another_snapshot() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    vm.snapshot("s1");
    fs::remove_file(vm.path("s1.cow")).unwrap();
    let second = ["snapshot", "s2", "--cow", "s1.cow", "--size", "2M"];
    let (status, said) = vm.say(&[&second[..], &["--control", "c.sock"]].concat());
    assert_eq!(status, 2, "{said}");
    for words in ["s1.cow", "snapshot s1", "another COW"] {
        assert!(said.contains(words), "{said}");
    }
    // The advice.
    vm.snapshot("s2");
    vm.write("a.sock", 0..30, 0x55);
    assert_eq!(vm.shows("s2.sock"), first_content());
    vm.stop();
}

#[test]
fn swapped_cows_are_refused_until_they_are_swapped_back() {
    for killed in [false, true] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        let shown = vm.with_two_snapshots();
        if killed {
            vm.start_plain(&[]);
            vm.kill();
        }
        let swap = || {
            fs::rename(vm.path("s1.cow"), vm.path("x")).unwrap();
            fs::rename(vm.path("s2.cow"), vm.path("s1.cow")).unwrap();
            fs::rename(vm.path("x"), vm.path("s2.cow")).unwrap();
            later();
        };
        swap();
        let said = vm.refused_plain(&[]);
        for words in ["s1", "s1.cow", "is the COW of snapshot s2"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("--accept-changes"), "{said}");
        vm.refused_plain(&["--accept-changes"]);
        // One that is given up does not take the other's store with it.
        vm.refused_plain(&["--forget", "s1"]);
        swap();
        vm.start_plain(&[]);
        vm.write("a.sock", 0..100, 0x44);
        assert_eq!(vm.shows("s1.sock"), shown[0]);
        assert_eq!(vm.shows("s2.sock"), shown[1]);
        vm.stop();
    }
}

/// Deleted while its snapshot was served, and made anew by somebody. (The daemon
/// itself does not give the path away; older versions did.)
#[test]
fn a_cow_that_was_deleted_and_made_anew_is_refused() {
    for killed in [false, true] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        vm.start(&[]);
        vm.snapshot("s1");
        vm.snapshot("s2");
        let anew = vm.bytes("s2.cow");
        fs::remove_file(vm.path("s1.cow")).unwrap();
        fs::write(vm.path("s1.cow"), &anew).unwrap();
        vm.write("a.sock", 0..30, 0x55);
        if killed {
            vm.kill();
        } else {
            let said = vm.stop();
            assert!(
                said.contains("s1.cow") && said.contains("replaced"),
                "{said}"
            );
        }
        let said = vm.refused_plain(&[]);
        for words in ["s1.cow", "another file", "--forget s1"] {
            assert!(said.contains(words), "{said}");
        }
        // The advice: none, and the other is right.
        vm.start_plain(&["--forget", "s1"]);
        vm.write("a.sock", 30..60, 0x56);
        assert_eq!(vm.state("s1"), None);
        assert_eq!(vm.shows("s2.sock"), first_content());
        vm.stop();
    }
}

/// What older versions let happen: the path of a living COW was given to a second
/// snapshot. The advice must not make the first active on the second's store.
#[test]
fn of_two_snapshots_with_one_cow_the_first_is_given_up() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    let place = vm.path("disk.img.snapback");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    for (identities, version) in [(true, "present"), (false, "older")] {
        state["snapshots"][0]["spec"]["cow"] = "s2.cow".into();
        if !identities {
            for snapshot in state["snapshots"].as_array_mut().unwrap() {
                snapshot.as_object_mut().unwrap().remove("store");
            }
        }
        fs::write(&place, state.to_string()).unwrap();
        let said = vm.refused_plain(&[]);
        for words in ["s1", "the COW of snapshot s2", "--forget s1"] {
            assert!(said.contains(words), "{version}: {said}");
        }
        assert!(!said.contains("--forget s2"), "{version}: {said}");
    }
    vm.start_plain(&["--forget", "s1"]);
    vm.write("a.sock", 0..100, 0x44);
    assert_eq!(vm.state("s1"), None);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
    vm.stop();
}

/// Written, cut or overwritten with an older content while no daemon served it.
#[test]
fn a_cow_that_was_changed_after_a_clean_stop_is_refused() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 3] = [
        ("written", |bytes| bytes[20 * CHUNK] ^= 1),
        ("was 2 MiB and is 2 MiB (2101248 bytes)", |bytes| {
            bytes.resize(bytes.len() + CHUNK, 0);
        }),
        ("had 2 MiB", |bytes| bytes.truncate(bytes.len() - CHUNK)),
    ];
    for (word, change) in changes {
        let field = Field::new();
        let mut vm = field.vm("vm");
        let shown = vm.with_two_snapshots();
        run(
            "cp",
            &["-a", text(&vm.path("s1.cow")), text(&vm.path("kept"))],
        );
        let mut bytes = vm.bytes("s1.cow");
        change(&mut bytes);
        fs::write(vm.path("s1.cow"), bytes).unwrap();
        let said = vm.refused_plain(&[]);
        for words in ["snapshot s1", "s1.cow", word, "--forget s1"] {
            assert!(said.contains(words), "{word}: {said}");
        }
        // Brought back as the daemon left it, with its times.
        fs::rename(vm.path("kept"), vm.path("s1.cow")).unwrap();
        let said = vm.start_plain(&[]);
        assert!(said.contains("copy of the snapshot's COW"), "{said}");
        vm.write("a.sock", 0..100, 0x44);
        assert_eq!(vm.shows("s1.sock"), shown[0]);
        assert_eq!(vm.shows("s2.sock"), shown[1]);
        vm.stop();
    }
}

/// A copy without times holds what it held; only the operator knows.
#[test]
fn a_cow_that_was_copied_back_without_its_times_can_be_accepted() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    vm.start_plain(&[]);
    vm.kill();
    fs::copy(vm.path("s1.cow"), vm.path("kept")).unwrap();
    fs::remove_file(vm.path("s1.cow")).unwrap();
    let said = vm.refused_plain(&[]);
    assert!(said.contains("s1.cow does not exist"), "{said}");
    fs::copy(vm.path("kept"), vm.path("s1.cow")).unwrap();
    let said = vm.refused_plain(&[]);
    assert!(said.contains("--accept-changes"), "{said}");
    vm.start_plain(&["--accept-changes"]);
    vm.write("a.sock", 0..100, 0x44);
    assert_eq!(vm.shows("s1.sock"), shown[0]);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
    vm.stop();
}

/// The COW of a snapshot of another disk, which is not served at the moment.
#[test]
fn a_cow_of_another_volume_is_not_taken() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    // Without an entry it looks like a store that was just created.
    vm.snapshot("s1");
    vm.stop();
    let mut other = field.vm("other");
    let cow = text(&vm.path("s1.cow")).to_owned();
    let said = other.refused(&["--snapshot", &format!("name=x,cow={cow}")]);
    for words in ["s1.cow", "is the COW of snapshot s1", "of its own"] {
        assert!(said.contains(words), "{said}");
    }
    other.start(&[]);
    let (status, said) = other.say(&["snapshot", "x", "--cow", &cow, "--control", "c.sock"]);
    assert_eq!(status, 2, "{said}");
    // The sandbox may keep it from the other state file.
    assert!(said.contains("the COW of snapshot s1"), "{said}");
    other.stop();
    vm.start_plain(&[]);
    vm.write("a.sock", 0..10, 0x44);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();
    // It is free when its snapshot is no more.
    vm.start_plain(&[]);
    vm.verb(&["remove", "s1", "--control", "c.sock"]);
    vm.stop();
    fs::File::create(vm.path("s1.cow"))
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    other.start(&["--snapshot", &format!("name=x,cow={cow}")]);
}

/// What needs no daemon honours the same: disk and COW are not looked at as if they
/// were of one time, unless the operator knows.
#[test]
fn without_a_daemon_doubts_are_told_too() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    let files = ["--origin", "disk.img", "--cow", "s1.cow"];
    let export = |out| [&["export"], &files[..], &[out]].concat();
    let diff = [&["diff"], &files[..]].concat();
    let merge = [&["merge"], &files[..]].concat();
    let check = ["check", "s1.cow", "--origin", "disk.img"];
    vm.verb(&export("right.img"));
    assert_eq!(vm.bytes("right.img"), shown[0]);
    vm.verb(&diff);
    vm.verb(&check);
    let swap = || {
        fs::rename(vm.path("s1.cow"), vm.path("x")).unwrap();
        fs::rename(vm.path("s2.cow"), vm.path("s1.cow")).unwrap();
        fs::rename(vm.path("x"), vm.path("s2.cow")).unwrap();
    };
    let disk = vm.bytes("disk.img");
    let write = || {
        let mut bytes = disk.clone();
        bytes[200 * CHUNK] ^= 1;
        later();
        fs::write(vm.path("disk.img"), bytes).unwrap();
    };
    for (change, word) in [
        (&swap as &dyn Fn(), "is the COW of snapshot s2"),
        (&write, "was written"),
    ] {
        change();
        for verb in [&export("wrong.img"), &diff, &merge] {
            let (status, said) = vm.say(verb);
            assert_eq!(status, 2, "{verb:?}: {said}");
            assert!(said.contains(word), "{verb:?}: {said}");
        }
        let (status, said) = vm.say(&check);
        assert_eq!(status, 1, "{said}");
        assert!(said.contains("doubt") && said.contains(word), "{said}");
        let (status, said) = vm.say(&[&check[..], &["--json"]].concat());
        assert!(status == 1 && said.contains(word), "{said}");
        assert!(!vm.path("wrong.img").exists());
        if word == "is the COW of snapshot s2" {
            swap();
        }
    }
    // The content is what it was, and the operator knows.
    fs::write(vm.path("disk.img"), &disk).unwrap();
    vm.verb(&[&export("known.img")[..], &["--accept-changes"]].concat());
    assert_eq!(vm.bytes("known.img"), shown[0]);
}
