//! A quota of the daemon's user on ext4, below a sparse disk, a sparse COW and the state file.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::field::{DISK, Field, assert_same, pattern};
use super::{inside, run};

const AT: &str = "/mnt";
const DEVICE: &str = "/dev/vda";
const USER: u32 = 1000;

/// Bytes that the files of the user may take.
#[allow(unsafe_code, reason = "no crate has this call")]
fn limit(bytes: u64) {
    let device = CString::new(DEVICE).unwrap();
    // SAFETY: plain numbers, for which zero is a value.
    let mut quota: libc::dqblk = unsafe { std::mem::zeroed() };
    (quota.dqb_bhardlimit, quota.dqb_bsoftlimit) = (bytes / 1024, bytes / 1024);
    quota.dqb_valid = 1; // The limits of blocks, QIF_BLIMITS.
    let command = libc::QCMD(libc::Q_SETQUOTA, libc::USRQUOTA);
    let id = i32::try_from(USER).unwrap();
    // SAFETY: the kernel reads one structure of this kind, and a string that ends.
    let done = unsafe { libc::quotactl(command, device.as_ptr(), id, (&raw mut quota).cast()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A file of the user that takes no space yet.
fn sparse(name: &str, bytes: u64) {
    let path = Path::new(AT).join(name);
    fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    chown(&path, Some(USER), Some(USER)).unwrap();
}

/// As the user; root has no quota.
fn start(field: &mut Field) {
    let mut command = field.command(&[]);
    command.uid(USER).gid(USER);
    field.start_by(command);
}

#[test]
fn a_quota_fails_writes_to_a_sparse_disk_and_ends_a_sparse_cow_as_a_full_file_system_does() {
    let name = "quota::a_quota_fails_writes_to_a_sparse_disk_and_ends_a_sparse_cow_as_a_full_file_system_does";
    inside(name, &[64], || {
        run(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-O",
                "quota",
                "-E",
                "quotatype=usrquota",
                DEVICE,
            ],
        );
        run("mount", &["-t", "ext4", "-o", "usrquota", DEVICE, AT]);
        chown(AT, Some(USER), Some(USER)).unwrap();
        sparse("disk.img", DISK as u64);
        limit(512 << 10);
        let mut field = Field::on(Path::new(AT).join("disk.img"));
        chown(field.here.path(), Some(USER), Some(USER)).unwrap();
        start(&mut field);
        below_the_disk(&field);
        below_a_cow(&field);
        below_the_state_file(&field);
        assert!(field.stop().success());
        start(&mut field);
        assert_eq!(field.shows("a.sock").len(), DISK);
        assert!(field.stop().success());
        run("umount", &[AT]);
    });
}

fn below_the_disk(field: &Field) {
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write(0, &pattern(1, 4096)), 0);
    let writes = (1..16).map(|n| guest.write(n * 128, &pattern(2, 65536)));
    let failed = writes.filter(|ret| *ret != 0).count();
    assert!((1..15).contains(&failed), "{failed} of 15");
    let event = field.event("io-failed");
    assert!(
        event["error"].as_str().unwrap().contains("quota"),
        "{event}"
    );
    assert_eq!(field.status().views[0].io.errors, failed as u64);
    assert_eq!(guest.write(0, &pattern(3, 4096)), 0);
    assert_eq!(guest.read(0, 4096).unwrap(), pattern(3, 4096));
    assert_eq!(guest.flush(), 0);
    limit(8 << 20);
    assert_eq!(guest.write(15 * 128, &pattern(2, 65536)), 0);
    assert_eq!(guest.read(15 * 128, 65536).unwrap(), pattern(2, 65536));
    assert_eq!(guest.flush(), 0);
}

/// The disk has its space now, and the COW shall have none.
fn below_a_cow(field: &Field) {
    let mut guest = field.guest("a.sock");
    for at in 0..DISK as u64 / 65536 {
        assert_eq!(guest.write(at * 128, &pattern(4, 65536)), 0);
    }
    assert_eq!(guest.flush(), 0);
    sparse("s.cow", 8 << 20);
    field.snapshot("s");
    limit(5 << 20);
    for at in 0..DISK as u64 / 65536 {
        assert_eq!(guest.write(at * 128, &pattern(5, 65536)), 0);
    }
    let lost = field.event("snapshot-invalid");
    assert!(lost["error"].as_str().unwrap().contains("quota"), "{lost}");
    assert_eq!(field.state("s"), "invalid");
    assert!(field.guest("s.sock").read(0, 512).is_err());
    limit(24 << 20);
    let (done, said) = field.verb(&["remove", "s"]);
    assert!(done, "{said}");
    sparse("t.cow", 8 << 20);
    field.snapshot("t");
    assert_eq!(guest.write(0, &pattern(7, 65536)), 0);
    let before: Vec<u8> = pattern(5, 65536).repeat(DISK / 65536);
    assert_same(&field.shows("t.sock"), &before, "a new snapshot");
}

fn below_the_state_file(field: &Field) {
    limit(1 << 20);
    let (done, said) = field.verb(&["remove", "t"]);
    assert!(!done && said.contains("quota"), "{said}");
    assert_eq!(field.state("t"), "active", "undone");
    limit(24 << 20);
    let (done, said) = field.verb(&["remove", "t"]);
    assert!(done, "{said}");
}
