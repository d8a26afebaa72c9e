//! The default place of the state file.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::file::SUFFIX;
use super::record::VolumeState;
use crate::daemon::identity::StorageKind;
use crate::daemon::identity::device_names::DeviceNames;

/// The folder of state files of devices.
const DEVICE_STATE_DIRECTORY: &str = "/var/lib/snapback";
/// Prefix of the names of mapped devices below `/dev`.
const MAPPED: &str = "mapper/";
/// Longest part of a device's name in a file name; file systems allow 255 bytes.
const NAME_MAX: usize = 200;

/// The state file of the volume on `origin`: `ORIGIN.snapback` beside a file, with
/// symbolic links resolved, so that every path of an origin leads to the same state. The
/// file of a device is found by the device names in it, because a kernel name may mean
/// another disk after the next boot; a new file gets a persistent name.
///
/// # Errors
/// The origin cannot be examined, or several files describe this device.
pub fn default_state_path(origin: &Path) -> io::Result<PathBuf> {
    let real = fs::canonicalize(origin)?;
    let meta = fs::metadata(&real)?;
    if meta.file_type().is_block_device() {
        let names = DeviceNames::read(&real, meta.rdev());
        let sysfs = Path::new("/sys/class/block");
        let given = std::path::absolute(origin)?;
        return device_state(
            Path::new(DEVICE_STATE_DIRECTORY),
            &names,
            &given.to_string_lossy(),
            &kernel_name(&real, sysfs),
        );
    }
    let mut name = real.into_os_string();
    name.push(SUFFIX);
    Ok(PathBuf::from(name))
}

/// The state file in `directory` of the device with these names. `given`: the path that
/// the user gave.
fn device_state(
    directory: &Path,
    names: &DeviceNames,
    given: &str,
    kernel_name: &str,
) -> io::Result<PathBuf> {
    let place = |name: &str| directory.join(format!("{}.json", file_name(name)));
    let about = state_files(directory, "json")
        .filter(|(_, state)| match &state.origin.kind {
            StorageKind::Device(recorded) => recorded.is(names).unwrap_or_else(|| {
                state.origin.path == given && DeviceNames::is_lasting_path(given)
            }),
            StorageKind::File(_) => false,
        })
        .map(|(path, _)| path);
    let mut about: Vec<PathBuf> = about.collect();
    about.sort();
    match about.as_slice() {
        [] => {}
        [one] => return Ok(one.clone()),
        several => {
            let several: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            return Err(io::Error::other(format!(
                "several files describe this device ({}): choose the right one with --state FILE, and remove the others",
                several.join(", ")
            )));
        }
    }
    // A file belongs to this device unless it names another one. If it has no names that
    // can be compared, the start decides.
    let is_others = |path: &Path| match VolumeState::peek(path).map(|state| state.origin.kind) {
        Some(StorageKind::Device(recorded)) => recorded.is(names) == Some(false),
        Some(StorageKind::File(_)) | None => false,
    };
    let strongest = place(names.hardware.as_deref().unwrap_or(kernel_name));
    // The place that older versions used; a mapped name was chosen by the operator and is
    // persistent.
    let older = place(kernel_name);
    let own = match kernel_name.starts_with(MAPPED) {
        true => &older,
        false => &strongest,
    };
    let here = [own, &older]
        .into_iter()
        .find(|path| path.exists() && !is_others(path));
    let free = [own, &strongest].into_iter().find(|path| !path.exists());
    Ok(here.or(free).unwrap_or(own).clone())
}

/// State files of devices without a persistent name, which may or may not describe this
/// device.
pub fn nameless_like(names: &DeviceNames) -> impl Iterator<Item = (PathBuf, VolumeState)> + use<> {
    let names = names.clone();
    state_files(Path::new(DEVICE_STATE_DIRECTORY), "json").filter(move |(_, state)| {
        matches!(&state.origin.kind, StorageKind::Device(recorded) if recorded.is(&names).is_none())
    })
}

/// The state files in a folder that have this extension and can be decoded.
pub fn state_files(
    directory: &Path,
    extension: &'static str,
) -> impl Iterator<Item = (PathBuf, VolumeState)> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(move |path| path.extension().is_some_and(|e| e == extension))
        .filter_map(|path| {
            let state = VolumeState::peek(&path)?;
            Some((path, state))
        })
}

/// All state files that may refer to a file or device at `path`: those in its folder, and
/// those of devices.
pub fn state_files_near(path: &Path) -> impl Iterator<Item = (PathBuf, VolumeState)> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let beside = real.parent().unwrap_or(Path::new("/")).to_path_buf();
    state_files(&beside, "snapback").chain(state_files(Path::new(DEVICE_STATE_DIRECTORY), "json"))
}

/// A device's name below `/dev`; for device-mapper, its mapped name.
fn kernel_name(real: &Path, class: &Path) -> String {
    let below = real
        .strip_prefix("/dev")
        .unwrap_or(real)
        .to_string_lossy()
        .into_owned();
    match fs::read_to_string(class.join(&below).join("dm/name")) {
        Ok(mapped) => format!("{MAPPED}{}", mapped.trim()),
        Err(_) => below,
    }
}

/// `name` with percent escapes for characters that a file name cannot have, so that no two
/// names collide. A very long name is shortened to its beginning and a hash.
fn file_name(name: &str) -> String {
    let escaped: String = name
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'+' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02x}"),
        })
        .collect();
    if escaped.len() <= NAME_MAX {
        return escaped;
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let start: String = escaped.chars().take(NAME_MAX).collect();
    format!("{start}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::identity::OriginIdentity;
    use crate::daemon::identity::device_names::tests::System;
    use crate::daemon::state::OpenedState;

    #[test]
    fn every_name_of_a_file_leads_to_the_same_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        fs::write(&path, [0; 512]).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let state = default_state_path(&link).unwrap();
        assert_eq!(state, default_state_path(&path).unwrap());
        assert!(state.to_string_lossy().ends_with("disk.img.snapback"));
    }

    #[test]
    fn mapped_devices_have_their_mapped_names_and_no_two_names_collide() {
        let class = tempfile::tempdir().unwrap();
        fs::create_dir_all(class.path().join("dm-3/dm")).unwrap();
        fs::write(class.path().join("dm-3/dm/name"), "vg-lv\n").unwrap();
        assert_eq!(
            kernel_name(Path::new("/dev/dm-3"), class.path()),
            "mapper/vg-lv"
        );
        assert_eq!(kernel_name(Path::new("/dev/sdb"), class.path()), "sdb");
        assert_ne!(file_name("a/b"), file_name("a%2fb"));
        assert_eq!(file_name("mapper/vg-lv"), "mapper%2fvg-lv");
        let long = "/".repeat(300);
        assert!(file_name(&long).len() < 250);
        assert_ne!(file_name(&long), file_name(&format!("{long}x")));
    }

    fn remember(path: &Path, names: DeviceNames) {
        let mut state = VolumeState::new(OriginIdentity {
            path: "/dev/sdb".into(),
            size: 1 << 20,
            kind: StorageKind::Device(names),
        });
        state.followed_sockets.push("/kept.sock".into());
        OpenedState::open(Some(path)).unwrap().begin(state).unwrap();
    }

    #[test]
    fn a_disk_finds_its_state_under_every_kernel_name_and_no_other_does() {
        let system = System::new();
        let directory = system.path("states");
        let find = |name: &str, minor| {
            let found = device_state(&directory, &system.names(name, minor), "/dev/x", name)?;
            let name = found.file_name().unwrap().to_str().unwrap().to_owned();
            Ok::<_, io::Error>(name)
        };
        system.device("sdb", 16, &[("wwid", "naa.1")]);
        assert_eq!(find("sdb", 16).unwrap(), "wwid%20naa%2e1.json");
        // As an older version wrote it, under the name that the disk had.
        remember(&directory.join("sdb.json"), system.names("sdb", 16));
        assert_eq!(find("sdb", 16).unwrap(), "sdb.json");
        system.device("sdc", 32, &[("wwid", "naa.1")]);
        system.device("sdb", 16, &[("wwid", "naa.2")]);
        assert_eq!(find("sdc", 32).unwrap(), "sdb.json");
        assert_eq!(find("sdb", 16).unwrap(), "wwid%20naa%2e2.json");
        // Two files that describe one disk.
        remember(&directory.join("x.json"), system.names("sdc", 32));
        let error = find("sdc", 32).unwrap_err().to_string();
        for words in ["sdb.json", "x.json", "--state FILE"] {
            assert!(error.contains(words), "{error}");
        }
    }

    /// Two volume groups may have the same name; only the UUID identifies the device.
    #[test]
    fn a_mapped_device_is_filed_under_its_mapped_name_unless_another_has_it() {
        let system = System::new();
        let directory = system.path("states");
        let find = |minor| {
            let names = system.names("dm-3", minor);
            device_state(&directory, &names, "/dev/vg/lv", "mapper/vg-lv").unwrap()
        };
        system.device("dm-3", 16, &[("dm/uuid", "LVM-1"), ("dm/name", "vg-lv")]);
        let usual = directory.join("mapper%2fvg-lv.json");
        assert_eq!(find(16), usual);
        remember(&usual, system.names("dm-3", 16));
        assert_eq!(find(16), usual);
        system.device("dm-3", 32, &[("dm/uuid", "LVM-2"), ("dm/name", "vg-lv")]);
        assert_eq!(find(32), directory.join("dm%2fuuid%20LVM-2.json"));
        // Renamed.
        let names = system.names("dm-3", 16);
        let found = device_state(&directory, &names, "/dev/vg/new", "mapper/vg-new");
        assert_eq!(found.unwrap(), usual);
    }

    /// The start then decides whether it is the same disk.
    #[test]
    fn a_disk_without_names_is_looked_for_under_its_kernel_name() {
        let system = System::new();
        let directory = system.path("states");
        system.device("sdb", 16, &[]);
        remember(&directory.join("sdb.json"), system.names("sdb", 16));
        system.boot("second");
        let names = system.names("sdb", 16);
        let found = device_state(&directory, &names, "/dev/sdb", "sdb").unwrap();
        assert_eq!(found, directory.join("sdb.json"));
        system.device("sdc", 32, &[]);
        let names = system.names("sdc", 32);
        let found = device_state(&directory, &names, "/dev/sdc", "sdc").unwrap();
        assert_eq!(found, directory.join("sdc.json"));
    }
}
