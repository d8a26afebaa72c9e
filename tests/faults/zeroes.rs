//! A file system that says that it has zeroed, and has not.

use std::fs;

use super::field::{DISK, assert_same};
use super::*;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ANY: i32 = PUNCH | libc::FALLOC_FL_ZERO_RANGE;

/// A daemon on a file system that lies about these modes of fallocate.
fn liar(modes: i32) -> Option<(BrokenFs, Field)> {
    let fs = BrokenFs::mount()?;
    fs.lie_about(modes);
    let field = Field::new(fs.path("disk.img"), &fs.backing("disk.img"));
    Some((fs, field))
}

/// A write of zeroes on every view is a write, on both engines, whatever the file system lies
/// about; also through a snapshot, in its COW, and back through a rollback.
#[test]
fn zeroes_that_guests_write_read_as_zeroes_on_a_file_system_that_only_says_so() {
    for (engine, lies) in [("io_uring", PUNCH), ("io_uring", ANY), ("threads", ANY)] {
        let Some((fs, mut field)) = liar(lies) else {
            return;
        };
        field.start(&["--io-engine", engine]);
        let mut now = pattern(0, DISK);
        let mut guest = field.guest("a.sock");
        // `write_zeroes` lets the daemon give the space back.
        assert_eq!(guest.write_zeroes(64, 512), 0);
        now[64 * 512..][..512 * 512].fill(0);
        assert_same(&guest.read_all(DISK), &now, "without a snapshot");

        let before = now.clone();
        let mut spec = field.spec("s", fs.path("").as_path());
        spec.discard_zeroes_cow = Some(true);
        field.client().add_snapshot(&spec).unwrap();
        assert_eq!(guest.write_zeroes(2048, 1024), 0);
        now[2048 * 512..][..1024 * 512].fill(0);
        assert_same(&guest.read_all(DISK), &now, "with a snapshot");
        let mut own = field.guest("s.sock");
        assert_same(&own.read_all(DISK), &before, "the snapshot");

        // In the COW: a new chunk, one that is there, and a discard, which zeroes it.
        let mut shown = before.clone();
        assert_eq!(own.write(4096, &pattern(7, 16384)), 0);
        shown[4096 * 512..][..16384].copy_from_slice(&pattern(7, 16384));
        for (sector, sectors) in [(4096, 8), (1000, 8)] {
            assert_eq!(own.write_zeroes(sector, sectors), 0);
            shown[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert_eq!(own.discard(4104, 8), 0);
        shown[4104 * 512..][..4096].fill(0);
        assert_same(&own.read_all(DISK), &shown, "the COW");
        assert_eq!(own.flush(), 0);
        assert_eq!(guest.flush(), 0);
        drop((guest, own));
        field.kill();

        // The files themselves have them, and a rollback brings them back.
        assert_same(&fs::read(fs.backing("disk.img")).unwrap(), &now, "below");
        field.start(&["--io-engine", engine]);
        assert_same(&field.shows("s.sock"), &shown, "after a kill");
        let (done, said) = field.verb(&["rollback", "s", "--now"]);
        assert!(done, "{said}");
        field.merged();
        assert_same(&field.shows("a.sock"), &shown, "after the rollback");
        assert!(field.stop().success());
    }
}

/// A discard may do nothing: what it may do is not believed by anybody.
#[test]
fn nothing_relies_on_a_discard_that_a_file_system_only_pretends_to_carry_out() {
    let Some((fs, mut field)) = liar(ANY) else {
        return;
    };
    field.start(&[]);
    let mut now = pattern(0, DISK);
    field.snapshot("first");
    let mut guest = field.guest("a.sock");
    // Settled in the snapshot, so that the discard reaches the disk.
    assert_eq!(guest.write(0, &pattern(5, 65536)), 0);
    now[..65536].copy_from_slice(&pattern(5, 65536));
    assert_eq!(guest.discard(0, 128), 0);
    assert!(fs.met() > 0, "the file system was asked");
    assert_same(&guest.read_all(DISK), &now, "the disk");
    assert_same(&field.shows("first.sock"), &pattern(0, DISK), "first");

    // A snapshot that is taken now shows what the disk shows, also after it was overwritten.
    field.snapshot("second");
    assert_eq!(guest.write(0, &pattern(6, 32768)), 0);
    assert_same(&field.shows("second.sock"), &now, "second");
    // Through a snapshot into the disk.
    let mut spec = field.spec("third", fs.path("").as_path());
    spec.discard_zeroes_cow = Some(true);
    spec.discard_passdown_origin = Some(true);
    field.client().add_snapshot(&spec).unwrap();
    let mut own = field.guest("third.sock");
    let with_six = guest.read_all(DISK);
    assert_eq!(own.discard(0, 64), 0);
    assert_same(&own.read_all(DISK), &with_six, "third");
    assert_same(&guest.read_all(DISK), &with_six, "the disk");
    drop((own, guest));

    // A merge copies what the snapshot shows over it.
    let (done, said) = field.verb(&["rollback", "second", "--now"]);
    assert!(done, "{said}");
    field.merged();
    assert_same(&field.shows("a.sock"), &now, "after the rollback");
    assert_same(&field.shows("first.sock"), &pattern(0, DISK), "first");
    assert_same(&field.shows("third.sock"), &with_six, "third");
    assert!(field.stop().success());

    // Nor on the holes that it reports.
    let (cow, out) = (fs.path("third.cow"), field.path("out"));
    let exported = std::process::Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .env("XDG_RUNTIME_DIR", field.disk.parent().unwrap())
        .args(["export", "--origin", field.disk.to_str().unwrap(), "--cow"])
        .args([&cow, &out])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&exported.stderr);
    assert!(exported.status.success(), "{said}");
    assert_same(&fs::read(out).unwrap(), &with_six, "exported");
}

/// What a loop device is told to zero, its file is told; and that lies.
#[test]
fn zeroes_that_a_guest_writes_to_a_loop_device_on_such_a_file_system_read_as_zeroes() {
    let Some(fs) = BrokenFs::mount() else { return };
    fs.lie_about(ANY);
    fs::write(fs.backing("disk.img"), pattern(0, DISK)).unwrap();
    let Some(device) = Loop::attach(&fs.path("disk.img")) else {
        return;
    };
    let mut field = Field::on(device.0.clone().into());
    let state = field.path("state");
    field.start(&["--state", state.to_str().unwrap()]);
    let mut guest = field.guest("a.sock");
    assert_eq!(guest.write_zeroes(64, 512), 0);
    let mut now = pattern(0, DISK);
    now[64 * 512..][..512 * 512].fill(0);
    assert_same(&guest.read_all(DISK), &now, "the device");
    assert_eq!(guest.flush(), 0);
    drop(guest);
    assert!(field.stop().success());
    drop(device);
    assert_same(&fs::read(fs.backing("disk.img")).unwrap(), &now, "its file");
}

/// Where the kernel zeroes by itself, the space of zeroes is still given back.
#[test]
fn zeroes_on_a_file_system_of_the_kernel_still_give_their_space_back() {
    use std::os::unix::fs::MetadataExt;
    const EXT4: i64 = 0xEF53;
    let small = Small::mount("tmpfs", "size=16m");
    let folder = tempfile::tempdir().unwrap();
    let mut places: Vec<_> = small.iter().map(|small| small.path("disk.img")).collect();
    match rustix::fs::statfs(folder.path()) {
        Ok(facts) if facts.f_type == EXT4 => places.push(folder.path().join("disk.img")),
        _ => println!("skipped for ext4: the folder for temporary files is not on one"),
    }
    for disk in places {
        let mut field = Field::new(disk.clone(), &disk);
        fs::File::open(&disk).unwrap().sync_all().unwrap();
        field.start(&[]);
        let blocks = || fs::metadata(&disk).unwrap().blocks();
        let before = blocks();
        assert_eq!(field.guest("a.sock").write_zeroes(1024, 1024), 0);
        assert_eq!(blocks(), before - 1024, "{disk:?}");
        assert!(field.stop().success());
        let zeroes = &fs::read(&disk).unwrap()[1024 * 512..2048 * 512];
        assert!(zeroes.iter().all(|byte| *byte == 0), "{disk:?}");
    }
}
