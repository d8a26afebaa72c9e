//! What a chunk size costs, as `docs/operations.md` says it: counted, so that it does not
//! depend on the machine.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use libtest_mimic::{Failed, Trial};
use snapback::control::Client;

use super::common_guest::Guest;
use super::guest::write;
use super::random::Random;

const MIB: u64 = 1 << 20;
const DISK: u64 = 256 * MIB;
const WRITTEN: u64 = 4 * MIB;
const CHUNKS: [u64; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, MIB, 4 * MIB];
const DOCUMENT: &str = "docs/operations.md";

/// The bytes of a guest's writes, each somewhere else (`None`: in a row).
const LOADS: [Option<u64>; 3] = [Some(4 << 10), Some(64 << 10), None];

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The bytes of the COW in use after a guest wrote 4 MiB to the disk.
fn used(chunk: u64, load: Option<u64>) -> u64 {
    let folder = tempfile::Builder::new()
        .prefix("snapback-")
        .tempdir_in(if Path::new("/dev/shm").exists() {
            "/dev/shm"
        } else {
            "/tmp"
        })
        .unwrap();
    let image = File::create(folder.path().join("disk.img")).unwrap();
    image.set_len(DISK).unwrap();
    let snapshot = format!("name=s,cow=s.cow,size=300M,chunk-size={chunk}");
    let _daemon = Daemon(
        Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(["--socket-path", "disk.sock", "--snapshot", &snapshot])
            .current_dir(folder.path())
            .env("XDG_RUNTIME_DIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let client = Client::new(&folder.path().join("c.sock")).unwrap();
    while client.status().is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut guest = Guest::connect(&folder.path().join("disk.sock"), 1, 1);
    match load {
        None => write(&mut guest, DISK / 2, WRITTEN, b'a'),
        Some(size) => {
            let mut random = Random::new(1);
            for _ in 0..WRITTEN / size {
                write(&mut guest, random.below(DISK / size) * size, size, b'a');
            }
        }
    }
    let status = client.status().unwrap();
    let snapshot = status.snapshots.first().unwrap();
    assert!(snapshot.allocated_sectors > 0);
    snapshot.allocated_sectors * 512
}

fn size(bytes: u64) -> String {
    if bytes < MIB {
        format!("{}K", bytes >> 10)
    } else {
        format!("{}M", bytes / MIB)
    }
}

/// The entries of a disk of 1 TiB, all of whose chunks are copied, and what they take on disk.
fn of_one_tib(chunk: u64) -> (u64, u64) {
    let entries = (1 << 40) / chunk;
    (entries, entries * 16 / MIB)
}

fn table() -> String {
    let mut table = String::new();
    for chunk in CHUNKS {
        let mut row = format!("| {} |", size(chunk));
        for load in LOADS {
            #[allow(clippy::cast_precision_loss)]
            let times = used(chunk, load) as f64 / WRITTEN as f64;
            row += &format!(" {times:.1} |");
        }
        let (entries, log) = of_one_tib(chunk);
        row += &format!(" {entries} | {log} MiB |\n");
        table += &row;
    }
    table
}

pub fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "what_a_chunk_size_costs_is_as_documented",
        || {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let table = table();
            if fs::read_to_string(root.join(DOCUMENT))
                .unwrap()
                .contains(&table)
            {
                return Ok(());
            }
            Err(Failed::from(format!("{DOCUMENT} must say\n{table}")))
        },
    )]
}
