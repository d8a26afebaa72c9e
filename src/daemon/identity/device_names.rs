//! Persistent names of block devices. Kernel names and device numbers are not persistent:
//! `sdb` may be another disk after the next boot.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Attributes below `/sys/dev/block/MAJOR:MINOR`, the strongest first.
const ATTRIBUTES: [&str; 7] = [
    "dm/uuid",
    "wwid",
    "device/wwid",
    "serial",
    "device/serial",
    "loop/backing_file",
    "dm/name",
];

/// Folders of links that udev maintains, the strongest first.
const LINKS: [&str; 2] = ["by-partuuid", "by-id"];

/// Where the system describes its devices; tests use folders of their own.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    /// `/sys/dev/block`
    pub sysfs: &'a Path,
    /// `/dev/disk`
    pub links: &'a Path,
    /// `/proc/sys/kernel/random/boot_id`
    pub boot: &'a Path,
}

impl Roots<'static> {
    pub fn system() -> Self {
        Self {
            sysfs: Path::new("/sys/dev/block"),
            links: Path::new("/dev/disk"),
            boot: Path::new("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// The names of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNames {
    /// The strongest name, as `KIND TEXT`.
    pub hardware: Option<String>,
    /// All names, the strongest first. Older state files have only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The boot, and the device's sequence number in it: identifies it until the next boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl DeviceNames {
    /// The names of the device `number` at `path`.
    pub fn read(path: &Path, number: u64) -> Self {
        Self::read_below(Roots::system(), path, number)
    }

    pub fn read_below(roots: Roots, path: &Path, number: u64) -> Self {
        let number = format!(
            "{}:{}",
            rustix::fs::major(number),
            rustix::fs::minor(number)
        );
        let sysfs = roots.sysfs.join(number);
        let sysfs = fs::canonicalize(&sysfs).unwrap_or(sysfs);
        // A partition has the names of its disk and a number.
        let partition = text(&sysfs.join("partition"));
        let (disk, part) = match (&partition, sysfs.parent()) {
            (Some(number), Some(disk)) => (disk.to_path_buf(), format!(" partition {number}")),
            _ => (sysfs.clone(), String::new()),
        };
        // A loop device may start in the middle of its file.
        let part = match text(&disk.join("loop/offset")) {
            Some(offset) if offset != "0" => format!(" from byte {offset}{part}"),
            _ => part,
        };
        let attributes = ATTRIBUTES
            .iter()
            .filter_map(|kind| Some(format!("{kind} {}{part}", text(&disk.join(kind))?)));
        let mut names: Vec<String> = attributes.collect();
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        for kind in LINKS {
            names.extend(links(&roots.links.join(kind), &real).map(|n| format!("{kind} {n}")));
        }
        let boot = text(roots.boot)
            .zip(text(&disk.join("diskseq")))
            .map(|(boot, sequence)| format!("{boot} {sequence}{part}"));
        Self {
            hardware: names.first().cloned(),
            names,
            boot,
        }
    }

    fn of_kind(&self, kind: &str) -> BTreeSet<&str> {
        self.hardware
            .iter()
            .chain(&self.names)
            .filter_map(|name| name.split_once(' '))
            .filter(|(k, _)| *k == kind)
            .map(|(_, text)| text)
            .collect()
    }

    /// Whether both are the same device: the strongest kind of name that both have decides.
    /// `None` if they have no kind in common.
    pub fn is(&self, other: &Self) -> Option<bool> {
        for kind in ATTRIBUTES.iter().chain(&LINKS) {
            let (ours, theirs) = (self.of_kind(kind), other.of_kind(kind));
            if !ours.is_empty() && !theirs.is_empty() {
                return Some(!ours.is_disjoint(&theirs));
            }
        }
        // The sequence number is unique within one boot, and says nothing about another.
        (self.boot.is_some() && self.boot == other.boot).then_some(true)
    }

    /// For messages.
    pub fn strongest(&self) -> &str {
        self.hardware
            .as_deref()
            .unwrap_or("without a persistent name")
    }

    /// Whether the path leads to the same device after the next boot.
    pub fn is_lasting_path(path: &str) -> bool {
        path.starts_with("/dev/disk/by-") || path.starts_with("/dev/mapper/")
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Names of the links in `directory` that lead to `real`, in order.
fn links(directory: &Path, real: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter(|entry| fs::canonicalize(entry.path()).is_ok_and(|p: PathBuf| p == real))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort();
    found.into_iter()
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A system with devices of its own.
    pub struct System(tempfile::TempDir);

    impl System {
        pub fn new() -> Self {
            let system = Self(tempfile::tempdir().unwrap());
            for directory in ["sys", "disk/by-id", "disk/by-partuuid", "dev"] {
                fs::create_dir_all(system.0.path().join(directory)).unwrap();
            }
            system.boot("first");
            system
        }

        pub fn boot(&self, id: &str) {
            fs::write(self.0.path().join("boot"), id).unwrap();
        }

        pub fn path(&self, name: &str) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap().join(name)
        }

        /// A device `8:minor` with these attributes.
        pub fn device(&self, name: &str, minor: u32, attributes: &[(&str, &str)]) {
            let sysfs = self.path("sys").join(format!("8:{minor}"));
            let _ = fs::remove_dir_all(&sysfs);
            fs::create_dir(&sysfs).unwrap();
            for (attribute, value) in attributes {
                let file = sysfs.join(attribute);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, format!("{value}\n")).unwrap();
            }
            fs::write(self.path("dev").join(name), []).unwrap();
        }

        pub fn names(&self, name: &str, minor: u32) -> DeviceNames {
            let roots = Roots {
                sysfs: &self.path("sys"),
                links: &self.path("disk"),
                boot: &self.path("boot"),
            };
            let number = rustix::fs::makedev(8, minor);
            DeviceNames::read_below(roots, &self.path("dev").join(name), number)
        }
    }

    #[test]
    fn a_disk_is_known_by_its_names_whatever_the_kernel_calls_it() {
        let system = System::new();
        system.device("sdb", 16, &[("wwid", "naa.1"), ("device/serial", "x")]);
        let was = system.names("sdb", 16);
        assert_eq!(was.strongest(), "wwid naa.1");
        system.boot("second");
        system.device("sdb", 16, &[("wwid", "naa.2"), ("device/serial", "x")]);
        system.device("sdc", 32, &[("wwid", "naa.1"), ("device/serial", "x")]);
        assert_eq!(was.is(&system.names("sdb", 16)), Some(false));
        assert_eq!(was.is(&system.names("sdc", 32)), Some(true));
        // Additional or missing names do not matter.
        system.device("sdc", 32, &[("device/serial", "x")]);
        assert_eq!(was.is(&system.names("sdc", 32)), Some(true));
        // Recorded by an older version.
        let older = DeviceNames {
            names: Vec::new(),
            boot: None,
            ..was
        };
        assert_eq!(older.is(&system.names("sdb", 16)), Some(false));
    }

    #[test]
    fn a_disk_without_names_is_known_until_the_next_boot_only() {
        let system = System::new();
        system.device("sdb", 16, &[("diskseq", "9"), ("wwid", "")]);
        let was = system.names("sdb", 16);
        assert_eq!(was.hardware, None);
        assert_eq!(was.is(&system.names("sdb", 16)), Some(true));
        system.device("sdb", 16, &[("diskseq", "10")]);
        assert_eq!(was.is(&system.names("sdb", 16)), None);
        system.boot("second");
        system.device("sdb", 16, &[("diskseq", "9")]);
        assert_eq!(was.is(&system.names("sdb", 16)), None);
    }

    #[test]
    fn partitions_of_one_disk_are_different_devices() {
        let system = System::new();
        system.device("sdb", 16, &[("wwid", "naa.1"), ("diskseq", "3")]);
        for (name, minor, number) in [("sdb1", 17, "1"), ("sdb2", 18, "2")] {
            let sysfs = system.path("sys/8:16").join(name);
            fs::create_dir(&sysfs).unwrap();
            fs::write(sysfs.join("partition"), number).unwrap();
            symlink(&sysfs, system.path("sys").join(format!("8:{minor}"))).unwrap();
            fs::write(system.path("dev").join(name), []).unwrap();
        }
        let (first, second) = (system.names("sdb1", 17), system.names("sdb2", 18));
        assert_eq!(first.strongest(), "wwid naa.1 partition 1");
        assert_eq!(first.is(&second), Some(false));
        assert_eq!(first.is(&system.names("sdb1", 17)), Some(true));
        assert_eq!(first.is(&system.names("sdb", 16)), Some(false));
    }

    #[test]
    fn links_name_what_the_kernel_has_no_name_for() {
        let system = System::new();
        system.device("vdb", 16, &[]);
        system.device("vdc", 32, &[]);
        let link = |kind: &str, name: &str, to: &str| {
            let link = system.path("disk").join(kind).join(name);
            let _ = fs::remove_file(&link);
            symlink(system.path("dev").join(to), link).unwrap();
        };
        link("by-partuuid", "0123-01", "vdb");
        link("by-id", "virtio-data", "vdb");
        let was = system.names("vdb", 16);
        assert_eq!(was.names, ["by-partuuid 0123-01", "by-id virtio-data"]);
        link("by-partuuid", "0123-01", "vdc");
        link("by-id", "virtio-data", "vdc");
        assert_eq!(was.is(&system.names("vdc", 32)), Some(true));
        assert_eq!(was.is(&system.names("vdb", 16)), None);
    }
}
