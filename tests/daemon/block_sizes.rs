//! The block sizes and limits that guests see, and disks with blocks of 4096 bytes.

use std::os::unix::fs::symlink;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::*;
use raw::{PROTOCOL, Raw, VERSION_1};

const F_SIZE_MAX: u64 = 1 << 1;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// What a front end reads.
struct Config {
    features: u64,
    bytes: Vec<u8>,
}

impl Config {
    fn of(path: &Path) -> Self {
        let mut raw = Raw::connect_only(path, VERSION_1 | PROTOCOL);
        let features = vhost::VhostBackend::get_features(&raw.frontend).unwrap();
        let flags = VhostUserConfigFlags::empty();
        let config = raw.frontend.get_config(0, 60, flags, &[0; 60]);
        Self {
            features,
            bytes: config.unwrap().1,
        }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Logical block size, log2 of the physical one in those, alignment offset, least and
    /// best size of a request.
    fn topology(&self) -> (u32, u8, u8, u16, u32) {
        let least = u16::from_le_bytes(self.bytes[26..28].try_into().unwrap());
        (
            self.u32(20),
            self.bytes[24],
            self.bytes[25],
            least,
            self.u32(28),
        )
    }

    /// What is offered has limits, and what is not has none.
    fn check_limits(&self, what: &str) {
        assert_eq!(self.features & F_SIZE_MAX, 0, "{what}");
        assert_ne!(self.u32(12), 0, "{what}: seg_max");
        let limits = |fields: &[usize]| fields.iter().map(|at| self.u32(*at)).collect::<Vec<_>>();
        let (discards, zeroes) = (limits(&[36, 40, 44]), limits(&[48, 52]));
        for (feature, limits) in [(F_DISCARD, discards), (F_WRITE_ZEROES, zeroes)] {
            let is_offered = self.features & feature != 0;
            let all = limits.iter().all(|limit| (*limit != 0) == is_offered);
            assert!(all, "{what}: {feature:#x}: {limits:?}");
        }
    }
}

const SOCKETS: [&str; 4] = ["a.sock", "plain.sock", "on.sock", "ro.sock"];

fn views(world: &World, sockets: &[&str]) -> Vec<(u64, Vec<u8>)> {
    let see = |socket: &&str| {
        world.until("the view is free", |w| !w.attached());
        let config = Config::of(&world.path(socket));
        config.check_limits(socket);
        assert_eq!(config.topology(), (4096, 2, 0, 4, 256), "{socket}");
        if config.features & F_DISCARD != 0 {
            assert_eq!(config.u32(44), 65536 / 512, "{socket}");
        }
        (config.features, config.bytes)
    };
    sockets.iter().map(see).collect()
}

#[test]
fn block_sizes_and_limits_are_the_same_on_every_view_and_after_whatever_happens() {
    let mut world = World::new();
    world.start(&[
        "--socket-path",
        "a.sock",
        "--logical-block-size",
        "4K",
        "--physical-block-size",
        "16K",
        "--discard-granularity",
        "64K",
        "--opt-io",
        "1M",
    ]);
    for name in ["plain", "on", "ro"] {
        let mut spec = world.snapshot(name);
        spec.discard_zeroes_cow = Some(name == "on");
        spec.read_only = Some(name == "ro");
        world.client().add_snapshot(&spec).unwrap();
    }
    let before = views(&world, &SOCKETS);
    let offered = |i: usize| before[i].0 & (F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(offered(0), F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(offered(1), F_WRITE_ZEROES);
    assert_eq!(offered(2), F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(offered(3), 0);
    // They are recorded.
    world.terminate();
    world.start(&[]);
    assert_eq!(views(&world, &SOCKETS), before);
    // A rollback, and after its end.
    world.rollback("plain", RollbackWhen::Now);
    world.merged();
    assert_eq!(views(&world, &["a.sock"])[0], before[0]);
    // A live commit: the socket of the snapshot shows the origin.
    let follow = MergeRequest {
        snapshot: "on".into(),
        follow: true,
        rate: None,
        now: true,
    };
    world.client().merge(&follow).unwrap();
    world.merged();
    views(&world, &["a.sock", "on.sock", "ro.sock"]);
    world.terminate();
    world.start(&[]);
    let after = views(&world, &["a.sock", "on.sock", "ro.sock"]);
    assert_eq!((&after[0], &after[1]), (&before[0], &before[0]));
    // And can be given anew.
    world.terminate();
    world.start(&["--logical-block-size", "512", "--opt-io", "0"]);
    let config = Config::of(&world.path("a.sock"));
    assert_eq!(config.topology(), (512, 5, 0, 32, 0));
}

#[test]
fn a_read_only_disk_has_the_block_sizes_too() {
    let mut world = World::new();
    world.start(&[
        "--read-only",
        "--socket-path",
        "a.sock",
        "--logical-block-size",
        "1K",
        "--physical-block-size",
        "1K",
    ]);
    let config = Config::of(&world.path("a.sock"));
    config.check_limits("read-only");
    assert_eq!(config.topology(), (1024, 0, 0, 1, 0));
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.read(0, 512), Err(-libc::EIO));
    assert_eq!(guest.read(1, 1024), Err(-libc::EIO));
    let data = guest.read(2, 1024).unwrap();
    assert_same(&data, &world.origin()[1024..2048], "a block");
}

#[test]
fn block_sizes_that_do_not_fit_are_refused() {
    let world = World::new();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(world.path("disk.img"));
    file.unwrap().set_len(BYTES as u64 + 1024).unwrap();
    let refused = |arguments: &[&str], words: &[&str]| {
        let text = world.refuse(&[&["--control", "c.sock"], arguments].concat());
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!world.path("s.cow").exists());
    };
    refused(&["--logical-block-size", "4K"], &["truncate -s %4096"]);
    refused(&["--logical-block-size", "64K"], &["power of two"]);
    refused(
        &["--logical-block-size", "1K", "--physical-block-size", "512"],
        &["smaller than the logical block size", "give 1024 or more"],
    );
    let snapshot = "name=s,cow=s.cow,size=8M,chunk-size=512";
    refused(
        &["--logical-block-size", "1K", "--snapshot", snapshot],
        &["snapshot s", "512 bytes", "which have 1 KiB"],
    );
}

/// A loop device with blocks of 4096 bytes; `None` if the system does not let us have one.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", "4096"]);
        let done = output(command.arg(file));
        if !done.status.success() {
            println!(
                "skipped: losetup: {}",
                String::from_utf8_lossy(&done.stderr)
            );
            return None;
        }
        let name = String::from_utf8(done.stdout).unwrap();
        Some(Self(name.trim().to_owned()))
    }

    /// Reads and writes that the device has had.
    fn transfers(&self) -> (u64, u64) {
        let name = self.0.rsplit('/').next().unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .split_whitespace()
            .map(|f| f.parse().unwrap())
            .collect();
        (fields[0], fields[4])
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

#[test]
fn a_disk_with_blocks_of_4096_bytes_is_served_in_those() {
    let mut world = World::new();
    let first = world.origin();
    fs::rename(world.path("disk.img"), world.path("content")).unwrap();
    let Some(device) = Loop::attach(&world.path("content")) else {
        return;
    };
    symlink(&device.0, world.path("disk.img")).unwrap();
    let serve = ["--socket-path", "a.sock", "--state", "state"];
    // Smaller blocks and chunks than the device's are refused.
    let refused = |world: &World, more: &[&str], words: &[&str]| {
        let text = world.refuse(&[&serve, more].concat());
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let small = ["--logical-block-size", "512"];
    refused(&world, &small, &["blocks of 4 KiB", "give 4096 or more"]);
    for chunk in ["512", "2K"] {
        let snapshot = format!("name=s,cow=s.cow,size=8M,chunk-size={chunk}");
        let words = ["snapshot s", "which have 4 KiB", "larger chunks"];
        refused(&world, &["--snapshot", &snapshot], &words);
        assert!(!world.path("s.cow").exists());
    }
    world.start(&serve);
    assert_eq!(
        Config::of(&world.path("a.sock")).topology(),
        (4096, 0, 0, 1, 0)
    );
    let mut guest = Guest::connect(&world.path("a.sock"));
    refuses_parts_of_blocks(&mut guest, Some(&device));
    // The default chunk, and a larger one.
    for (name, chunk) in [("s1", None), ("s2", Some(64 << 10))] {
        let mut spec = world.snapshot(name);
        spec.chunk_size = chunk;
        world.client().add_snapshot(&spec).unwrap();
    }
    let chunks = |world: &World| -> Vec<u64> {
        let snapshots = world.client().status().unwrap().snapshots;
        snapshots.iter().map(|s| s.chunk_sectors).collect()
    };
    assert_eq!(chunks(&world), [8, 128]);
    // Copy-outs, of chunks and of parts of the larger ones.
    for at in 0..40 {
        assert_eq!(guest.write(at * 200 / 8 * 8, &[at as u8; 8192]), 0);
    }
    assert_eq!(guest.write_zeroes(8192, 64), 0);
    assert_eq!(guest.flush(), 0);
    let written = guest.read_all(BYTES);
    for name in ["s1", "s2"] {
        let mut of_snapshot = Guest::connect(&world.path(&format!("{name}.sock")));
        refuses_parts_of_blocks(&mut of_snapshot, Some(&device));
        assert_same(&of_snapshot.read_all(BYTES), &first, name);
        assert_eq!(of_snapshot.write(16384, &[0xab; 4096]), 0);
        assert_eq!(of_snapshot.flush(), 0);
    }
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    // Roll back to one of them, while the other stays as it was.
    world.rollback("s2", RollbackWhen::Now);
    let mut guest = Guest::connect(&world.path("a.sock"));
    refuses_parts_of_blocks(&mut guest, None);
    let mut rolled_back = first.clone();
    rolled_back[16384 * 512..][..4096].fill(0xab);
    assert_same(&guest.read_all(BYTES), &rolled_back, "rolled back");
    world.merged();
    assert_same(&guest.read_all(BYTES), &rolled_back, "merged");
    let mut other = Guest::connect(&world.path("s1.sock"));
    assert_same(&other.read_all(BYTES), &rolled_back, "the other snapshot");
    drop((guest, other));
    world.terminate();
    let on_disk = fs::read(&device.0).unwrap();
    assert_same(&on_disk, &rolled_back, "the device");
    assert_ne!(written, rolled_back);
}

/// Requests that are no whole blocks fail, and none of them reaches the device. (`None`: a
/// merge may be using it.)
fn refuses_parts_of_blocks(guest: &mut Guest, device: Option<&Loop>) {
    let before = device.map(Loop::transfers);
    for (sector, len) in [
        (0, 512),
        (0, 2048),
        (8, 4608),
        (1, 4096),
        (7, 8192),
        (9, 512),
    ] {
        assert_eq!(guest.read(sector, len), Err(-libc::EIO), "{sector}+{len}");
        assert_eq!(guest.write(sector, &vec![0xee; len]), -libc::EIO);
        let sectors = len as u64 / 512;
        assert_eq!(guest.write_zeroes(sector, sectors), -libc::EIO);
        assert_ne!(guest.discard(sector, sectors), 0);
    }
    assert_eq!(device.map(Loop::transfers), before);
}
