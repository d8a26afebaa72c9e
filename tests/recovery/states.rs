//! State files that are missing, or of another time than the disk.

use std::fs;

use crate::world::{Field, first_content, later, run, text};

/// A COW beside the disk says valid, and nobody would keep it so.
#[test]
fn a_lost_state_file_is_noticed_and_its_return_brings_everything_back() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    fs::rename(vm.path("disk.img.snapback"), vm.path("away")).unwrap();
    let said = vm.refused(&[]);
    for words in ["disk.img.snapback", "s1.cow", "s2.cow", "--forget"] {
        assert!(said.contains(words), "{said}");
    }
    fs::rename(vm.path("away"), vm.path("disk.img.snapback")).unwrap();
    vm.start_plain(&[]);
    vm.write("a.sock", 0..100, 0x44);
    assert_eq!(vm.shows("s1.sock"), shown[0]);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
}

#[test]
fn the_cow_of_a_volume_is_no_disk() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    let cow = vm.with_disk("s1.cow");
    let said = cow.refused(&[]);
    for words in ["s1.cow", "COW of snapshot s1", "disk.img"] {
        assert!(said.contains(words), "{said}");
    }
    let mut vm = cow.with_disk("disk.img");
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s1.sock"), shown[0]);
    vm.stop();
}

/// The disk of before the snapshots is copied back over the present one.
#[test]
fn an_old_disk_under_a_new_state_file_is_refused() {
    for killed in [false, true] {
        let field = Field::new();
        let mut vm = field.vm("vm");
        run(
            "cp",
            &["-a", text(&vm.path("disk.img")), text(&vm.path("old.img"))],
        );
        later();
        let shown = vm.with_two_snapshots();
        if killed {
            vm.start_plain(&[]);
            vm.kill();
        }
        let kept = vm.path("kept.img");
        fs::rename(vm.path("disk.img"), &kept).unwrap();
        fs::rename(vm.path("old.img"), vm.path("disk.img")).unwrap();
        let said = vm.refused_plain(&[]);
        for words in ["disk.img", "another file", "s1, s2", "--forget"] {
            assert!(said.contains(words), "{said}");
        }
        fs::rename(&kept, vm.path("disk.img")).unwrap();
        vm.start_plain(&[]);
        assert_eq!(vm.shows("s2.sock"), shown[1]);
        vm.stop();
    }
}

/// A state file from a backup does not have what came after it.
#[test]
fn an_old_state_file_under_a_new_disk_is_refused() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    vm.snapshot("s1");
    // As a backup program finds it, while the daemon runs.
    fs::copy(vm.path("disk.img.snapback"), vm.path("backup")).unwrap();
    vm.write("a.sock", 0..10, 0x11);
    vm.stop();
    vm.start_plain(&[]);
    vm.snapshot("s2");
    vm.write("a.sock", 0..20, 0x12);
    let shown = [vm.shows("s1.sock"), vm.shows("s2.sock")];
    vm.kill();
    fs::rename(vm.path("disk.img.snapback"), vm.path("right")).unwrap();
    fs::rename(vm.path("backup"), vm.path("disk.img.snapback")).unwrap();
    let said = vm.refused_plain(&[]);
    for words in ["older than the disk", "disk.img.snapback", "s1"] {
        assert!(said.contains(words), "{said}");
    }
    fs::rename(vm.path("right"), vm.path("disk.img.snapback")).unwrap();
    vm.start_plain(&[]);
    vm.write("a.sock", 0..100, 0x44);
    assert_eq!(vm.shows("s1.sock"), shown[0]);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
}

/// Following the advice: the snapshots are none, and nothing says otherwise.
#[test]
fn snapshots_whose_state_file_is_lost_can_be_given_up() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.with_two_snapshots();
    fs::remove_file(vm.path("disk.img.snapback")).unwrap();
    let said = vm.refused(&["--forget", "s1"]);
    assert!(
        said.contains("--forget s2") && !said.contains("s1.cow"),
        "{said}"
    );
    vm.start(&["--forget", "s1", "--forget", "s2"]);
    for cow in ["s1.cow", "s2.cow"] {
        assert_eq!(vm.bytes(cow)[4..8], [0; 4], "the header of {cow}");
    }
    vm.write("a.sock", 0..10, 0x66);
    vm.stop();
    // They are no reason to refuse any more, and do not come back.
    vm.start(&[]);
    assert_eq!(vm.state("s1"), None);
    vm.snapshot("s3");
    vm.stop();
    vm.refused_plain(&["--snapshot", "name=s1,cow=s1.cow"]);
}

/// The other advice, if nothing has written the disk since.
#[test]
fn snapshots_whose_state_file_is_lost_can_be_taken_in_again() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    fs::remove_file(vm.path("disk.img.snapback")).unwrap();
    let first = ["--snapshot", "name=s1,cow=s1.cow,socket=s1.sock"];
    let second = ["--snapshot", "name=s2,cow=s2.cow,socket=s2.sock"];
    let said = vm.refused(&first);
    assert!(
        said.contains("s2 in ") && !said.contains("s1 in "),
        "{said}"
    );
    vm.start(&[&first[..], &second].concat());
    vm.write("a.sock", 0..100, 0x44);
    assert_eq!(vm.shows("s1.sock"), shown[0]);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
    vm.stop();
    vm.start_plain(&[]);
    assert_eq!(vm.shows("s2.sock"), shown[1]);
}

/// The state file was never beside the disk, and the option is forgotten.
#[test]
fn a_state_file_elsewhere_is_found_by_the_disks_mark() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let place = field.path("states/volume");
    let state = ["--state", text(&place)];
    vm.start(&state);
    vm.snapshot("s1");
    vm.write("a.sock", 0..10, 0x11);
    vm.stop();
    let said = vm.refused(&[]);
    for words in [&format!("--state {}", text(&place)), "s1", "wrong for good"] {
        assert!(said.contains(words), "{said}");
    }
    vm.start_plain(&state);
    vm.write("a.sock", 0..20, 0x12);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();
    // A plain copy of the disk alone is another disk, and so is a full one.
    for (to, option) in [("plain", "-r"), ("full", "-a")] {
        let mut other = field.vm(to);
        run(
            "cp",
            &[option, text(&vm.path("disk.img")), text(other.folder())],
        );
        let said = other.start(&[]);
        assert_eq!(said.contains("copied from"), option == "-a", "{said}");
        other.stop();
    }
    vm.start_plain(&state);
    assert_eq!(vm.shows("s1.sock"), first_content());
}

/// Stores that nothing ties to the disk: a warning, and no refusal.
#[test]
fn unmarked_stores_beside_a_disk_without_a_state_file_are_told() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    let shown = vm.with_two_snapshots();
    for cow in ["s1.cow", "s2.cow"] {
        let unmarked = vm.path("x");
        fs::write(&unmarked, vm.bytes(cow)).unwrap();
        fs::rename(&unmarked, vm.path(cow)).unwrap();
    }
    fs::rename(vm.path("disk.img.snapback"), vm.path("away")).unwrap();
    let said = vm.start(&[]);
    for words in [
        "s1.cow",
        "s2.cow",
        "valid COW stores",
        "Restore the state file",
    ] {
        assert!(said.contains(words), "{said}");
    }
    vm.stop();
    // The disk was written meanwhile, as another volume, or may have been.
    fs::rename(vm.path("away"), vm.path("disk.img.snapback")).unwrap();
    let said = vm.refused_plain(&[]);
    assert!(said.contains("another volume"), "{said}");
    drop(shown);
}

/// The advice of the refusal: all of one time, or none.
#[test]
fn under_an_old_state_file_no_snapshot_is_left_by_halves() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    vm.start(&[]);
    vm.snapshot("s1");
    fs::copy(vm.path("disk.img.snapback"), vm.path("backup")).unwrap();
    vm.stop();
    vm.start_plain(&[]);
    vm.snapshot("s2");
    vm.kill();
    fs::rename(vm.path("backup"), vm.path("disk.img.snapback")).unwrap();
    for arguments in [&["--forget", "s1"][..], &["--accept-changes"]] {
        let said = vm.refused_plain(arguments);
        assert!(
            said.contains("s2") && said.contains("older than the disk"),
            "{said}"
        );
    }
    vm.start(&["--forget", "s1", "--forget", "s2"]);
    for cow in ["s1.cow", "s2.cow"] {
        assert_eq!(vm.bytes(cow)[4..8], [0; 4], "the header of {cow}");
    }
}
