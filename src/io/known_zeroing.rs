//! Whether a file or device is known to hold zeroes after it was told to zero a range.
//!
//! A successful fallocate proves nothing: file systems in user space were seen that accept
//! PUNCH_HOLE and go on to return the old data. Only what is in the kernel, and whose rule is to
//! return zeroes, is trusted here; anywhere else zeroes are written like data. It cannot be tried
//! out instead: a test on the user's data would be a risk, and a file system may consist of the
//! disk alone, so that there is no other place in it.

use std::fs;
use std::path::Path;

use super::{BlockFile, Identity};

/// Types of `fstatfs` (from `linux/magic.h` and the file systems' own headers). Each of these
/// implements PUNCH_HOLE and ZERO_RANGE, as far as it has them, itself. Absent for a reason: FUSE,
/// NFS, SMB, Ceph, 9p and virtiofs pass the call on to a server, and overlayfs to any of these.
const KNOWN: [u64; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0x0102_1994, // tmpfs
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
    0x0116_1970, // GFS2
    0x7461_636F, // OCFS2
];
/// Devices that are stacked on one another: more than anybody builds.
const DEPTH_MAX: u32 = 16;

impl BlockFile {
    /// See the module documentation. False if it cannot be found out.
    pub(super) fn zeroing_is_known(identity: Identity, file: &fs::File) -> bool {
        match identity {
            Identity::File { .. } => {
                let facts = rustix::fs::fstatfs(file);
                facts.is_ok_and(|f| u64::try_from(f.f_type).is_ok_and(|t| KNOWN.contains(&t)))
            }
            Identity::Device { number } => {
                let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
                let name = format!("{major}:{minor}");
                zeroes_itself(&Path::new("/sys/dev/block").join(name), DEPTH_MAX)
            }
        }
    }
}

/// Whether the kernel zeroes this device with a command of the device that has to zero. A loop
/// device passes the call on to its file, which may be anywhere; so does what is stacked on one.
fn zeroes_itself(device: &Path, depth: u32) -> bool {
    let (Ok(device), Some(depth)) = (fs::canonicalize(device), depth.checked_sub(1)) else {
        return false;
    };
    // A partition has the driver of its disk.
    let disk = match device.parent() {
        Some(disk) if device.join("partition").exists() => disk,
        _ => &device,
    };
    if disk.join("loop").exists() {
        return false;
    }
    match fs::read_dir(disk.join("slaves")) {
        Ok(entries) => entries
            .into_iter()
            .all(|entry| entry.is_ok_and(|entry| zeroes_itself(&entry.path(), depth))),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose folder is there, on what it is stacked.
    fn device(sysfs: &Path, name: &str, below: &[&str]) -> std::path::PathBuf {
        let folder = sysfs.join(name);
        fs::create_dir_all(folder.join("slaves")).unwrap();
        for slave in below {
            let name = slave.rsplit('/').next().unwrap();
            std::os::unix::fs::symlink(sysfs.join(slave), folder.join("slaves").join(name))
                .unwrap();
        }
        folder
    }

    #[test]
    fn a_loop_device_is_not_trusted_and_neither_is_what_is_stacked_on_one() {
        let sysfs = tempfile::tempdir().unwrap();
        let sysfs = sysfs.path();
        let disk = device(sysfs, "sda", &[]);
        let loop0 = device(sysfs, "loop0", &[]);
        fs::create_dir(loop0.join("loop")).unwrap();
        for (part, of) in [("sda/sda1", &disk), ("loop0/loop0p1", &loop0)] {
            fs::create_dir(sysfs.join(part)).unwrap();
            fs::write(sysfs.join(part).join("partition"), "1\n").unwrap();
            assert_eq!(of, sysfs.join(part).parent().unwrap());
        }
        let on_disks = device(sysfs, "dm-0", &["sda/sda1"]);
        let on_loop = device(sysfs, "dm-1", &["sda", "loop0/loop0p1"]);
        let higher = device(sysfs, "dm-2", &["dm-1"]);
        for (device, known) in [
            (&disk, true),
            (&sysfs.join("sda/sda1"), true),
            (&on_disks, true),
            (&loop0, false),
            (&sysfs.join("loop0/loop0p1"), false),
            (&on_loop, false),
            (&higher, false),
            (&sysfs.join("absent"), false),
        ] {
            assert_eq!(zeroes_itself(device, DEPTH_MAX), known, "{device:?}");
        }
        assert!(!zeroes_itself(&higher, 1), "no end in sight");
    }
}
