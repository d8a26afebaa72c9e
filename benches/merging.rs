//! A guest's reads and writes while a rollback is merged, against an idle disk, with the
//! speed of the merge beside them; and the speed of a merge that nobody disturbs, against a
//! plain copy of the same bytes.
//!
//! `cargo bench --bench merging -- [--short] [--folder FOLDER] [--policies wait,redirect]
//! [--alone]`.
//! The folder (default `target/tmp`) has to be on a real file system. The snapshot has
//! 4 KiB chunks, and all of them were overwritten in random order.
#![allow(
    unsafe_code,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

#[path = "../tests/common/guest.rs"]
mod guest;
#[path = "../tests/common/random.rs"]
mod random;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Ask, Guest, Kind};
use random::Random;
use snapback::control::Client;
use snapback::io::{
    BlockFile, Buffer, DeviceId, Devices, Disk, Done, Op, OpKind, OpenOptions, OwnedBuffer,
    UringDisk,
};

const BLOCK: usize = 4096;
const BLOCK_SECTORS: u64 = BLOCK as u64 / 512;

struct Settings {
    folder: PathBuf,
    mib: u64,
    /// Of one measurement.
    span: Duration,
    policies: Vec<String>,
    /// Only the merge that nobody disturbs.
    alone: bool,
}

impl Settings {
    fn from_args() -> Self {
        let mut s = Self {
            folder: Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
            mib: 896,
            span: Duration::from_secs(2),
            policies: ["wait", "redirect"].map(str::to_owned).to_vec(),
            alone: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--short" => (s.mib, s.span) = (192, Duration::from_millis(700)),
                "--folder" => s.folder = args.next().unwrap().into(),
                "--policies" => {
                    let names = args.next().unwrap();
                    s.policies = names.split(',').map(str::to_owned).collect();
                }
                "--alone" => s.alone = true,
                "--bench" => {} // of Cargo
                other => panic!("unknown argument {other}"),
            }
        }
        s
    }
}

/// A daemon that serves `disk.img`; both go away with it.
struct Volume {
    folder: tempfile::TempDir,
    daemon: Child,
    client: Client,
    blocks: u64,
    cows: u64,
}

impl Volume {
    fn new(settings: &Settings, policy: &str) -> Self {
        let folder = tempfile::tempdir_in(&settings.folder).unwrap();
        let disk = folder.path().join("disk.img");
        fill(&disk, settings.mib);
        let program = std::env::var("SNAPBACK_PROGRAM");
        let daemon = Command::new(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_snapback")))
            .current_dir(folder.path())
            .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(["--socket-path", "a.sock", "--merge-writes", policy])
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        let client = Client::new(&folder.path().join("c.sock")).unwrap();
        while client.status().is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            folder,
            daemon,
            client,
            blocks: settings.mib << 20 >> 12,
            cows: 0,
        }
    }

    fn guest(&self, depth: usize) -> Guest {
        Guest::connect(&self.folder.path().join("a.sock"), 1, depth)
    }

    fn verb(&self, args: &[&str]) {
        let status = Command::new(env!("CARGO_BIN_EXE_snapback"))
            .current_dir(self.folder.path())
            .args(args)
            .args(["--control", "c.sock"])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{args:?}");
    }

    fn is_merging(&self) -> bool {
        self.client.status().unwrap().merge.is_some()
    }

    fn chunks_merged(&self) -> u64 {
        let merge = self.client.status().unwrap().merge;
        merge.map_or(self.blocks, |m| m.chunks_done)
    }

    /// Takes a snapshot, overwrites every chunk, in random order or not, and rolls back,
    /// unless a merge runs already.
    fn merge(&mut self, order: Order) {
        if self.is_merging() {
            return;
        }
        let _ = std::fs::remove_file(self.cow());
        self.cows += 1;
        let cow = self.cow();
        let cow = cow.to_str().unwrap();
        let mib = self.blocks >> 8;
        fill(Path::new(cow), mib + mib / 64 + 8);
        self.verb(&["snapshot", "m", "--cow", cow, "--chunk-size", "4K"]);
        let mut guest = self.guest(32);
        match order {
            Order::Random => {
                let mut chunks = shuffled(self.blocks);
                run(&mut guest, Kind::Write, 32, BLOCK, || chunks.pop());
            }
            Order::Contiguous => {
                // One after the other, so that the COW chunks have the same order.
                let mut next = (0..self.blocks).step_by(16);
                run(&mut guest, Kind::Write, 1, 16 * BLOCK, || next.next());
            }
        }
        drop(guest);
        rustix::fs::sync();
        self.verb(&["rollback", "m", "--now"]);
    }

    fn cow(&self) -> PathBuf {
        self.folder.path().join(format!("m{}.cow", self.cows))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Random,
    Contiguous,
}

fn shuffled(count: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (0..count).collect();
    let mut random = Random::new(count);
    for i in (1..all.len()).rev() {
        all.swap(i, random.below(i as u64 + 1) as usize);
    }
    all
}

/// What a merge cannot be faster than: the same bytes from one file to another, over the
/// same io_uring, with direct I/O and 32 pieces in flight, and one flush. Returns MiB/s.
/// Random: from anywhere, and to ascending places with gaps, as in a merge's batch.
fn plain_copy(settings: &Settings, order: Order) -> f64 {
    let folder = tempfile::tempdir_in(&settings.folder).unwrap();
    let devices = Devices::new();
    let device = |name: &str| {
        let path = folder.path().join(name);
        fill(&path, settings.mib);
        devices.add(BlockFile::open(path, OpenOptions::default()).unwrap())
    };
    let (from, to) = (device("from"), device("to"));
    let blocks = settings.mib << 8;
    let (step, places): (usize, Vec<u64>) = match order {
        Order::Contiguous => (256, (0..blocks).step_by(256).collect()),
        Order::Random => {
            let mut all = shuffled(blocks);
            for batch in all.chunks_mut(4096) {
                batch.sort_unstable();
            }
            (1, all)
        }
    };
    let sources = shuffled(blocks);
    let pairs: Vec<(u64, u64)> = (places.iter().zip(&sources))
        .map(|(to, from)| (if step == 1 { *from } else { *to }, *to))
        .collect();
    let mut disk = UringDisk::new(devices, 128).unwrap();
    let start = Instant::now();
    let read = |disk: &mut UringDisk, at: usize, buffer: Buffer| {
        let offset = pairs[at].0 * BLOCK as u64;
        submit(disk, at as u64, from, OpKind::Read { offset, buffer });
    };
    let mut next = pairs.len().min(32);
    for at in 0..next {
        let buffer = Buffer::Owned(OwnedBuffer::zeroed(step * BLOCK));
        read(&mut disk, at, buffer);
    }
    let (mut written, mut done) = (0, Vec::new());
    while written < pairs.len() {
        disk.reap(true, &mut done);
        for Done {
            tag,
            result,
            buffer,
        } in done.drain(..)
        {
            result.unwrap();
            let (at, buffer) = (tag as usize >> 1, buffer.unwrap());
            if tag & 1 == 0 {
                let (offset, durable) = (pairs[at].1 * BLOCK as u64, false);
                let write = OpKind::Write {
                    offset,
                    buffer,
                    durable,
                };
                disk.submit(Op {
                    tag: tag | 1,
                    device: to,
                    kind: write,
                });
            } else {
                written += 1;
                if next < pairs.len() {
                    read(&mut disk, next, buffer);
                    next += 1;
                }
            }
        }
    }
    submit(&mut disk, 0, to, OpKind::Flush);
    disk.reap(true, &mut done);
    settings.mib as f64 / start.elapsed().as_secs_f64()
}

/// Submits an operation with an even tag.
fn submit(disk: &mut UringDisk, number: u64, device: DeviceId, kind: OpKind) {
    let tag = number << 1;
    disk.submit(Op { tag, device, kind });
}

/// A file of that size whose blocks are written and durable.
fn fill(path: &Path, mib: u64) {
    let mut file = File::create(path).unwrap();
    for _ in 0..mib {
        file.write_all(&[0; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
}

/// Keeps `depth` requests in flight until `draw` has no more blocks; returns how long each
/// took, sorted.
fn run(
    guest: &mut Guest,
    kind: Kind,
    depth: usize,
    len: usize,
    mut draw: impl FnMut() -> Option<u64>,
) -> Vec<Duration> {
    let mut started = vec![None; depth];
    let (mut took, mut done) = (Vec::new(), Vec::new());
    loop {
        for (slot, start) in started.iter_mut().enumerate().filter(|s| s.1.is_none()) {
            let Some(block) = draw() else { break };
            let ask = Ask {
                kind,
                sector: block * BLOCK_SECTORS,
                len,
                offset: 0,
                cut: 0,
            };
            guest.submit(slot, &ask);
            *start = Some(Instant::now());
        }
        guest.kick();
        if started.iter().all(Option::is_none) {
            took.sort_unstable();
            return took;
        }
        guest.wait(&mut done);
        for (slot, ret) in done.drain(..) {
            assert_eq!(ret, 0);
            took.push(started[slot].take().unwrap().elapsed());
        }
    }
}

/// What a guest got in a span.
struct Cell {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let (p50, p99) = (ms(self.p50), ms(self.p99));
        write!(f, "{:>8.0}/s {p50:>8.2} {p99:>8.2}", self.rate)
    }
}

/// Random requests for `span`, or until the merge that runs has ended.
fn measure(volume: &Volume, kind: Kind, depth: usize, span: Duration, merging: bool) -> Cell {
    let mut guest = volume.guest(depth);
    let mut random = Random::new(7);
    let (start, mut looked) = (Instant::now(), Instant::now());
    let mut over = false;
    let took = run(&mut guest, kind, depth, BLOCK, || {
        if merging && looked.elapsed() > Duration::from_millis(50) {
            looked = Instant::now();
            over |= !volume.is_merging();
        }
        over |= start.elapsed() > span;
        (!over).then(|| random.below(volume.blocks))
    });
    Cell {
        rate: took.len() as f64 / start.elapsed().as_secs_f64(),
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
    }
}

fn main() {
    let settings = Settings::from_args();
    println!(
        "{} MiB of 4K chunks in {}, random 4K; p50 and p99 in ms",
        settings.mib,
        settings.folder.display()
    );
    for policy in &settings.policies {
        let mut volume = Volume::new(&settings, policy);
        let cells = [
            (Kind::Write, 1),
            (Kind::Write, 32),
            (Kind::Read, 1),
            (Kind::Read, 32),
        ];
        for (kind, depth) in cells.into_iter().filter(|_| !settings.alone) {
            // While no merge runs, the volume has no snapshot either.
            while volume.is_merging() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let idle = measure(&volume, kind, depth, settings.span / 2, false);
            volume.merge(Order::Random);
            let (start, before) = (Instant::now(), volume.chunks_merged());
            let merging = measure(&volume, kind, depth, settings.span, true);
            let merged = volume.chunks_merged().saturating_sub(before) / 256;
            let speed = merged as f64 / start.elapsed().as_secs_f64();
            let part = merging.rate / idle.rate;
            println!(
                "{policy:>8} {kind:?} QD {depth:<2} idle {idle} | merging {merging} | {part:.2} | {speed:.0} MiB/s"
            );
        }
        for order in [Order::Random, Order::Contiguous] {
            while volume.is_merging() {
                std::thread::sleep(Duration::from_millis(10));
            }
            volume.merge(order);
            let start = Instant::now();
            while volume.is_merging() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let merge = settings.mib as f64 / start.elapsed().as_secs_f64();
            let copy = plain_copy(&settings, order);
            let part = merge / copy;
            println!(
                "{policy:>8} merge alone, {order:?}: {merge:.0} MiB/s; a plain copy {copy:.0} | {part:.2}"
            );
        }
    }
}
