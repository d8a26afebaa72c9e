//! Copied, moved and renamed folders.

use std::fs;

use crate::world::{Field, Vm, Where, first_content, later, run, text};

/// How a folder is copied, with its times kept or not.
const COPIES: [(&str, bool); 4] = [
    ("cp -a", true),
    ("cp -r", false),
    ("rsync -aX", true),
    ("tar", true),
];

fn copy(how: &str, from: &Vm, to: &str) {
    let from = text(from.folder());
    match how {
        "cp -a" => run("cp", &["-a", from, to]),
        "cp -r" => run("cp", &["-r", from, to]),
        "cp --reflink" => run("cp", &["-a", "--reflink=always", from, to]),
        "rsync -aX" => run("rsync", &["-aX", &format!("{from}/"), to]),
        "tar" => {
            let archive = format!("{to}.tar");
            run("tar", &["-C", from, "-cf", &archive, "."]);
            fs::create_dir(to).unwrap();
            run("tar", &["-C", to, "-xf", &archive]);
        }
        _ => panic!("{how}"),
    }
    later();
}

fn installed(how: &str) -> bool {
    let program = how.split(' ').next().unwrap();
    let found = std::process::Command::new(program)
        .arg("--version")
        .output();
    found.is_ok()
}

/// A copy and its original are two volumes: what is done to one, even a rollback,
/// shows in none of the other's views.
#[track_caller]
fn lead_lives_of_their_own(original: &mut Vm, copied: &mut Vm, shown: &[Vec<u8>; 2]) {
    copied.write("a.sock", 0..100, 0x77);
    assert_eq!(copied.shows("s1.sock"), shown[0]);
    assert_eq!(copied.shows("s2.sock"), shown[1]);
    // At the same time, at its own sockets.
    original.start_plain(&[]);
    original.write("a.sock", 100..120, 0x33);
    assert_eq!(original.shows("s1.sock"), shown[0]);
    assert_eq!(original.shows("s2.sock"), shown[1]);
    copied.verb(&["rollback", "s1", "--now", "--control", "c.sock"]);
    let merged = ["merge", "--wait", "--control", "c.sock"];
    let _ = copied.say(&merged);
    assert_eq!(copied.shows("a.sock"), shown[0]);
    assert_eq!(copied.shows("s2.sock"), shown[1]);
    assert_eq!(original.shows("s1.sock"), shown[0]);
    assert_eq!(original.shows("s2.sock"), shown[1]);
    original.stop();
    copied.stop();
    original.start_plain(&[]);
    assert_eq!(original.shows("s1.sock"), shown[0]);
    assert_eq!(original.shows("s2.sock"), shown[1]);
    original.stop();
}

#[test]
fn a_copied_folder_is_a_volume_of_its_own() {
    for place in [Where::Disk, Where::Memory] {
        for (how, with_times) in COPIES {
            if !installed(how) {
                println!("skipped: {how} is not installed");
                continue;
            }
            let field = Field::at(place);
            let mut original = field.vm("vm");
            let shown = original.with_two_snapshots();
            copy(how, &original, text(&field.path("copy")));
            let mut copied = field.brought("copy");
            let said = if with_times {
                copied.start_plain(&[])
            } else {
                // Nothing tells whether the content is the same; the operator knows.
                let said = copied.refused_plain(&[]);
                for words in ["is a copy", text(original.folder()), "--accept-changes"] {
                    assert!(said.contains(words), "{how}: {said}");
                }
                copied.start_plain(&["--accept-changes"])
            };
            assert!(said.contains("copy of"), "{how}: {said}");
            assert!(said.contains(text(original.folder())), "{how}: {said}");
            lead_lives_of_their_own(&mut original, &mut copied, &shown);
            // It is no copy for ever.
            let said = copied.start_plain(&[]);
            assert!(!said.contains("copy of"), "{how}: {said}");
            copied.stop();
        }
    }
}

#[test]
fn a_reflinked_folder_is_a_copy() {
    let field = Field::new();
    let mut original = field.vm("vm");
    let probe = std::process::Command::new("cp")
        .args(["--reflink=always", text(&original.path("disk.img"))])
        .arg(field.path("probe"))
        .output()
        .unwrap();
    if !probe.status.success() {
        println!("skipped: the file system of temporary files has no reflinks");
        return;
    }
    let shown = original.with_two_snapshots();
    copy("cp --reflink", &original, text(&field.path("copy")));
    let mut copied = field.brought("copy");
    let said = copied.start_plain(&[]);
    assert!(said.contains("copy of"), "{said}");
    lead_lives_of_their_own(&mut original, &mut copied, &shown);
}

#[test]
fn a_moved_folder_just_works() {
    for killed in [false, true] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        let shown = vm.with_two_snapshots();
        if killed {
            vm.start_plain(&[]);
            vm.kill();
        }
        fs::rename(vm.folder(), field.path("moved")).unwrap();
        let mut moved = field.brought("moved");
        let said = moved.start_plain(&[]);
        assert!(!said.contains("WARN"), "{said}");
        moved.write("a.sock", 0..100, 0x44);
        assert_eq!(moved.shows("s1.sock"), shown[0]);
        assert_eq!(moved.shows("s2.sock"), shown[1]);
        moved.stop();
        assert!(!field.path("vm").exists());
    }
}

/// Rewrites the state file of a volume as version 1 had it.
fn as_version_1(vm: &Vm) {
    let place = vm.path("disk.img.snapback");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    let at = |path: &mut serde_json::Value| {
        if let Some(below) = path.as_str() {
            *path = text(&vm.path(below)).into();
        }
    };
    state["version"] = 1.into();
    for field in ["volume", "generation", "marked", "home"] {
        state.as_object_mut().unwrap().remove(field);
    }
    at(&mut state["origin"]["path"]);
    let file = state["origin"]["kind"]["file"].as_object_mut().unwrap();
    file.remove("birth");
    file.remove("file_system");
    at(&mut state["socket"]);
    at(&mut state["control"]);
    for snapshot in state["snapshots"].as_array_mut().unwrap() {
        at(&mut snapshot["spec"]["cow"]);
        at(&mut snapshot["spec"]["socket"]);
        for field in ["id", "store"] {
            snapshot.as_object_mut().unwrap().remove(field);
        }
    }
    fs::write(place, state.to_string()).unwrap();
}

/// Files of older versions have all paths from the root, which lead to the
/// original.
#[test]
fn a_copy_made_with_an_older_version_uses_its_own_files() {
    let field = Field::new();
    let mut original = field.vm("vm");
    let shown = original.with_two_snapshots();
    as_version_1(&original);
    copy("cp -a", &original, text(&field.path("copy")));
    let mut copied = field.brought("copy");
    let said = copied.start_plain(&[]);
    assert!(said.contains("copy of"), "{said}");
    lead_lives_of_their_own(&mut original, &mut copied, &shown);
}

#[test]
fn a_folder_moved_with_an_older_version_just_works() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    as_version_1(&vm);
    fs::rename(vm.folder(), field.path("moved")).unwrap();
    let mut moved = field.brought("moved");
    moved.start_plain(&[]);
    moved.write("a.sock", 0..100, 0x44);
    assert_eq!(moved.shows("s1.sock"), shown[0]);
    assert_eq!(moved.shows("s2.sock"), shown[1]);
    moved.stop();
}

/// With what is beside it, to another file system, and back out of an archive:
/// other files with the same times.
#[test]
fn a_folder_moved_across_file_systems_or_restored_just_works() {
    for how in ["mv", "tar"] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        let shown = vm.with_two_snapshots();
        let mut there = match (how, field.elsewhere("vm")) {
            ("mv", Some(there)) => {
                run("mv", &[text(vm.folder()), text(&there)]);
                Vm::in_folder(there)
            }
            ("mv", None) => {
                println!("skipped: there is no second file system");
                continue;
            }
            _ => {
                let archive = field.path("a.tar");
                run(
                    "tar",
                    &["-C", text(vm.folder()), "-cf", text(&archive), "."],
                );
                fs::remove_dir_all(vm.folder()).unwrap();
                fs::create_dir(vm.folder()).unwrap();
                run("tar", &["-C", text(vm.folder()), "-xf", text(&archive)]);
                vm
            }
        };
        let said = there.start_plain(&[]);
        assert!(said.contains("moved or restored"), "{how}: {said}");
        there.write("a.sock", 0..100, 0x44);
        assert_eq!(there.shows("s1.sock"), shown[0]);
        assert_eq!(there.shows("s2.sock"), shown[1]);
        there.stop();
        let said = there.start_plain(&[]);
        assert!(!said.contains("WARN"), "{said}");
    }
}

/// The disk, its state file and what is beside it under other names.
#[test]
fn a_renamed_disk_keeps_its_snapshots() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    fs::rename(vm.path("disk.img"), vm.path("new.img")).unwrap();
    // Without its state file.
    let renamed = vm.with_disk("new.img");
    let said = renamed.refused(&[]);
    for words in ["disk.img.snapback", "new.img.snapback", "s1, s2"] {
        assert!(said.contains(words), "{said}");
    }
    // The advice.
    fs::rename(
        renamed.path("disk.img.snapback"),
        renamed.path("new.img.snapback"),
    )
    .unwrap();
    let mut renamed = renamed;
    renamed.start_plain(&[]);
    renamed.write("a.sock", 0..100, 0x44);
    assert_eq!(renamed.shows("s1.sock"), shown[0]);
    assert_eq!(renamed.shows("s2.sock"), shown[1]);
    renamed.stop();
}

/// To another file system, where it is another file with the same content.
#[test]
fn a_disk_that_was_moved_without_its_state_file_is_refused() {
    for take_along in [true, false] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        let shown = vm.with_two_snapshots();
        fs::create_dir(field.path("other")).unwrap();
        let mut other = field.brought("other");
        let bring = |name: &str| {
            let (from, to) = (vm.path(name), other.path(name));
            run("cp", &["-a", text(&from), text(&to)]);
            fs::remove_file(from).unwrap();
        };
        bring("disk.img");
        let said = other.refused(&[]);
        let state = vm.path("disk.img.snapback");
        for words in ["was moved here", "s1, s2", "together", text(&state)] {
            assert!(said.contains(words), "{said}");
        }
        // Each advice.
        if take_along {
            for name in ["disk.img.snapback", "s1.cow", "s2.cow"] {
                bring(name);
            }
            other.start_plain(&["--control", "c.sock"]);
            other.write("a.sock", 0..100, 0x44);
            assert_eq!(other.shows("s1.sock"), shown[0]);
            assert_eq!(other.shows("s2.sock"), shown[1]);
        } else {
            fs::remove_file(state).unwrap();
            other.start(&[]);
        }
        other.stop();
    }
}

/// What is outside the copied folder is the original's, and stays so.
#[test]
fn a_copy_leaves_what_is_outside_its_folder_alone() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    for folder in ["cows", "run"] {
        fs::create_dir(field.path(folder)).unwrap();
    }
    let (cow, socket) = (field.path("cows/s1.cow"), field.path("run/a.sock"));
    // Also a link that looks like a file beside the disk.
    std::os::unix::fs::symlink(field.path("cows/s2.cow"), vm.path("s2.cow")).unwrap();
    fs::File::create(field.path("cows/s2.cow"))
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    vm.start_plain(&["--socket-path", text(&socket), "--control", "c.sock"]);
    vm.verb(&[
        "snapshot",
        "s1",
        "--cow",
        text(&cow),
        "--size",
        "2M",
        "--socket-path",
        "s1.sock",
        "--control",
        "c.sock",
    ]);
    vm.snapshot("s2");
    vm.write("../run/a.sock", 0..10, 0x11);
    vm.stop();
    copy("cp -a", &vm, text(&field.path("copy")));
    let mut copied = field.brought("copy");
    let said = copied.refused_plain(&[]);
    for words in ["s1", text(&cow), "outside the copied folder", "--forget s1"] {
        assert!(said.contains(words), "{said}");
    }
    let said = copied.refused_plain(&["--forget", "s1"]);
    assert!(said.contains("--forget s2"), "{said}");
    let said = copied.start_plain(&["--forget", "s1", "--forget", "s2"]);
    for words in ["belong to the original", text(&socket)] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(copied.state("s1"), None);
    // Both at a time, and the original is as it was.
    vm.start_plain(&[]);
    vm.write("../run/a.sock", 0..20, 0x12);
    assert_eq!(vm.shows("s1.sock"), first_content());
    assert_eq!(vm.shows("s2.sock"), first_content());
    vm.stop();
    copied.stop();
}

/// The copy is made while the daemon runs, so its files are of several moments.
#[test]
fn a_copy_of_a_served_folder_is_refused() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    vm.snapshot("s1");
    copy("cp -a", &vm, text(&field.path("copy")));
    vm.write("a.sock", 0..10, 0x11);
    let mut copied = field.brought("copy");
    let said = copied.refused_plain(&[]);
    for words in ["is a copy", "copied at one moment", "--forget NAME"] {
        assert!(said.contains(words), "{said}");
    }
    // The advice: none in the copy, and the original keeps its own.
    copied.start_plain(&["--forget", "s1"]);
    copied.write("a.sock", 0..20, 0x77);
    assert_eq!(copied.state("s1"), None);
    assert_eq!(vm.shows("s1.sock"), first_content());
    copied.stop();
    vm.stop();
}

/// What the daemon cannot record where the folder is not any more it does not do,
/// and it makes nothing new there.
#[test]
fn a_folder_moved_while_it_is_served_keeps_its_snapshots() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    vm.snapshot("s1");
    vm.write("a.sock", 0..10, 0x11);
    fs::rename(vm.folder(), field.path("moved")).unwrap();
    let mut moved = vm.renamed(field.path("moved"));
    let cow = text(&moved.path("s2.cow")).to_owned();
    let second = ["snapshot", "s2", "--cow", &cow, "--size", "2M"];
    let (status, said) = moved.say(&[&second[..], &["--control", "c.sock"]].concat());
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("was moved"), "{said}");
    moved.write("a.sock", 0..20, 0x12);
    moved.kill();
    assert!(!field.path("vm").exists());
    moved.start_plain(&[]);
    moved.write("a.sock", 0..100, 0x44);
    assert_eq!(moved.shows("s1.sock"), first_content());
    moved.stop();
}
