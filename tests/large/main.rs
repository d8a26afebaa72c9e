//! A disk of 1 TiB and a store of 64 GiB, both sparse: everything works, and
//! nothing takes the time of the size instead of the time of the content.
//!
//! `SNAPBACK_LARGE_CHUNKS=10000` scatters more chunks than the default, which is
//! small because the guest writes one after the other.
#![allow(
    unsafe_code, // The guest's memory.
    dead_code, // The guest can do more than this test needs.
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../daemon/guest.rs"]
mod guest;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::Guest;
use snapback::control::Client;

const ORIGIN: u64 = 1 << 40;
const CHUNK: u64 = 4096;
const CHUNKS: u64 = 3_000;
/// For any one step, on a busy machine; most take well below a second.
const LIMIT: Duration = Duration::from_secs(120);

/// Scattered over the whole disk, each once.
fn place(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (ORIGIN / CHUNK)
}

fn content(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(CHUNK as usize / 8)
}

struct World {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .args(arguments);
        command
    }

    /// Runs a verb to its end, prints how long that took, and returns what it said.
    fn run(&self, arguments: &[&str]) -> String {
        let start = Instant::now();
        let output = assert_cmd::Command::from_std(self.command(arguments))
            .timeout(LIMIT)
            .output()
            .unwrap();
        told(&arguments.join(" "), start);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && error.is_empty(),
            "{arguments:?}: {error}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn serve(&mut self) {
        let start = Instant::now();
        let child = self
            .command(&["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(["--socket-path", "disk.sock"])
            .args(["--snapshot", "name=s,cow=s.cow,socket=s.sock"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        let client = Client::new(&self.path("c.sock")).unwrap();
        while client.status().is_err() {
            assert!(start.elapsed() < LIMIT, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(2));
        }
        told("serve, until it answers", start);
    }

    fn stop(&mut self) {
        let start = Instant::now();
        let mut child = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        told("stop", start);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn told(what: &str, start: Instant) {
    let took = start.elapsed();
    println!("{:>9.3} s  {what}", took.as_secs_f64());
    assert!(took < LIMIT, "{what} took {took:?}");
}

fn read(file: &File, chunk: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK as usize];
    file.read_exact_at(&mut bytes, chunk * CHUNK).unwrap();
    bytes
}

#[test]
fn a_disk_of_1_tib_with_scattered_changes_takes_the_time_of_the_changes() {
    let count = std::env::var("SNAPBACK_LARGE_CHUNKS");
    let count = count.map_or(CHUNKS, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut world = World {
        folder,
        daemon: None,
    };
    let disk = File::create_new(world.path("disk.img")).unwrap();
    disk.set_len(ORIGIN).unwrap();
    // Every tenth chunk has data before the snapshot, and is changed beneath it.
    let changed_below = |n: u64| n.is_multiple_of(10);
    for n in (0..count).filter(|n| changed_below(*n)) {
        disk.write_all_at(&content(!n), place(n) * CHUNK).unwrap();
    }
    world.run(&["create", "s.cow", "--size", "64G", "--sparse"]);
    world.serve();

    let start = Instant::now();
    let mut below = Guest::connect(&world.path("disk.sock"));
    for n in (0..count).filter(|n| changed_below(*n)) {
        assert_eq!(below.write(place(n) * CHUNK / 512, &content(n)), 0);
    }
    assert_eq!(below.flush(), 0);
    told("write below the snapshot: a tenth of the chunks", start);
    let start = Instant::now();
    let mut above = Guest::connect(&world.path("s.sock"));
    for n in (0..count).filter(|n| !changed_below(*n)) {
        assert_eq!(above.write(place(n) * CHUNK / 512, &content(n)), 0);
    }
    assert_eq!(above.flush(), 0);
    told("write to the snapshot: the others", start);
    drop((below, above));
    world.stop();
    world.serve();
    world.stop();

    // What the snapshot must show, by chunk.
    let view: BTreeMap<u64, Vec<u8>> = (0..count)
        .map(|n| (place(n), content(if changed_below(n) { !n } else { n })))
        .collect();
    assert!(
        world
            .run(&["info", "s.cow"])
            .contains(&format!("exceptions  {count} of"))
    );
    let check = world.run(&["check", "s.cow", "--origin", "disk.img"]);
    assert!(check.contains("verdict   good\n"), "{check}");
    assert!(
        world
            .run(&["dump", "s.cow"])
            .ends_with(&format!("\n{count} entries\n"))
    );
    let both = ["--origin", "disk.img", "--cow", "s.cow"];
    for verb in [
        &["diff", "--json"][..],
        &["diff", "--json", "--entries-only"],
    ] {
        let text = world.run(&[verb, &both[..]].concat());
        let changes: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let bytes: u64 = changes.iter().map(|c| c["length"].as_u64().unwrap()).sum();
        assert_eq!(bytes, count * CHUNK, "{verb:?}");
    }
    let export = [&["export", "part.img", "--range", "256G:512G"], &both[..]].concat();
    world.run(&export);
    let part = File::open(world.path("part.img")).unwrap();
    assert_eq!(part.metadata().unwrap().len(), 512 << 30);
    let first = (256 << 30) / CHUNK;
    let range = first..first + (512 << 30) / CHUNK;
    for (chunk, bytes) in view.range(range.clone()) {
        assert_eq!(&read(&part, chunk - first), bytes, "chunk {chunk}");
    }
    let data = part.metadata().unwrap().blocks() * 512;
    let expected = view.range(range).count() as u64 * CHUNK;
    assert!(
        data >= expected && data < 2 * expected + (1 << 20),
        "{data}"
    );
    world.run(&[&["export", "all.img"], &both[..]].concat());

    world.run(&[&["merge"], &both[..]].concat());
    for (chunk, bytes) in &view {
        assert_eq!(&read(&disk, *chunk), bytes, "chunk {chunk}");
    }
    let check = world.run(&["check", "s.cow"]);
    assert!(check.contains("entries   0\n"), "{check}");
}
