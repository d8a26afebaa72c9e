//! Disks that are block devices: loop devices, as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::world::{CHUNKS, DISK, Field, first_content, text};

/// A loop device, detached at the end.
struct Loop(String);

impl Loop {
    /// Some device; `None` if the system does not let us have one.
    fn attach(file: &Path) -> Option<Self> {
        Self::losetup(&["-f", "--show", text(file)]).map(|said| Self(said.trim().to_owned()))
    }

    /// This one, if it is still free.
    fn attach_at(device: &str, file: &Path) -> Option<Self> {
        Self::losetup(&[device, text(file)]).map(|_| Self(device.to_owned()))
    }

    fn losetup(arguments: &[&str]) -> Option<String> {
        let done = Command::new("losetup").args(arguments).output().ok()?;
        if !done.status.success() {
            println!("losetup: {}", String::from_utf8_lossy(&done.stderr));
            return None;
        }
        String::from_utf8(done.stdout).ok()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

/// State files that the test made in the place for devices.
struct Remembered(PathBuf);

impl Remembered {
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir("/var/lib/snapback").into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        let about = |path: &PathBuf| {
            fs::read_to_string(path).is_ok_and(|state| state.contains(text(&self.0)))
        };
        paths.filter(about).collect()
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        for file in self.files() {
            let _ = fs::remove_file(file);
        }
    }
}

#[test]
fn a_device_is_found_by_its_lasting_name() {
    let field = Field::new();
    let folder = field.vm("vm");
    fs::write(folder.path("other.img"), vec![9; DISK]).unwrap();
    let Some(device) = Loop::attach(&folder.path("disk.img")) else {
        println!("skipped: no loop devices here (it takes root)");
        return;
    };
    let first = device.0.clone();
    let remembered = Remembered(folder.folder().to_path_buf());
    let mut vm = folder.with_disk(&first);
    vm.start(&[]);
    vm.snapshot("s1");
    vm.write("a.sock", 0..30, 0x11);
    vm.stop();
    let [place] = &remembered.files()[..] else {
        panic!("{:?}", remembered.files());
    };
    let place = place.clone();
    assert!(!text(&place).contains(&first[5..]), "{place:?}");

    // The disk has another kernel name, and another disk of the same size has its.
    let again = Loop::attach(&vm.path("disk.img")).unwrap();
    let second = again.0.clone();
    drop(device);
    let Some(other) = Loop::attach_at(&first, &vm.path("other.img")) else {
        println!("skipped: somebody else has taken {first}");
        return;
    };
    let mut vm = vm.with_disk(&second);
    vm.start_plain(&[]);
    vm.write("a.sock", 30..60, 0x12);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();
    let mut vm = vm.with_disk(&first);
    vm.start(&[]);
    assert_eq!(vm.state("s1"), None);
    assert_eq!(vm.shows("a.sock"), vec![9; DISK]);
    vm.write("a.sock", 0..CHUNKS, 0x99);
    vm.stop();

    // As older versions filed it: under the kernel name that the disk had then.
    let older = place.with_file_name(format!("{}.json", &first[5..]));
    fs::rename(&place, &older).unwrap();
    vm.start(&[]);
    assert_eq!(vm.state("s1"), None);
    vm.stop();
    let mut vm = vm.with_disk(&second);
    vm.start_plain(&[]);
    vm.write("a.sock", 60..90, 0x13);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();

    // The other disk under this one's state file.
    let vm = vm.with_disk(&first);
    let said = vm.refused_plain(&["--state", text(&older)]);
    for words in ["another device", "s1", "--forget NAME"] {
        assert!(said.contains(words), "{said}");
    }
    // The advice.
    let mut vm = vm.with_disk(&second);
    vm.start_plain(&["--state", text(&older)]);
    assert_eq!(vm.shows("s1.sock"), first_content());
    vm.stop();
    drop((other, again));
}

/// A COW on a device is no disk either, although it has no mark.
#[test]
fn a_cow_on_a_device_is_no_disk() {
    let field = Field::new();
    let mut vm = field.vm("vm");
    fs::write(vm.path("cow.img"), vec![0; 2 << 20]).unwrap();
    let Some(device) = Loop::attach(&vm.path("cow.img")) else {
        println!("skipped: no loop devices here (it takes root)");
        return;
    };
    let second = device.0.clone();
    vm.start(&[]);
    vm.verb(&["snapshot", "s1", "--cow", &second, "--control", "c.sock"]);
    vm.write("a.sock", 0..10, 0x11);
    vm.stop();
    // Its state file is beside the disk, which nothing leads to; the header warns.
    let mut cow = vm.with_disk(&second);
    let said = cow.start(&[]);
    assert!(
        said.contains("starts with the header of a COW store"),
        "{said}"
    );
    cow.stop();
}
