//! A daemon that may have no more memory than `docs/architecture.md` says: the kernel kills it
//! if it takes more.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::alone;
use super::bench::mix;
use super::busy::{Guest, IN, OUT, READS, SEGMENT, SEGMENTS};
use super::idle::{Daemon, answers};
use snapback::control::Client;
use snapback::control::api::SnapshotSpec;

const MIB: u64 = 1 << 20;
/// A daemon without queues.
const BASE: u64 = (32 + 120) * MIB;
const QUEUE: u64 = (20 + 9 + 32) * MIB;

/// A control group whose processes have at most so much memory.
struct Group {
    folder: PathBuf,
    /// The kernel's first interface of groups.
    first: bool,
}

impl Group {
    fn new(limit: u64) -> Option<Self> {
        let ours = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = |prefix: &str| {
            let mut lines = ours.lines().filter_map(|line| line.split_once(':'));
            lines.find_map(|(_, rest)| rest.strip_prefix(prefix))
        };
        let (parent, first) = match path("memory:") {
            Some(path) => (format!("/sys/fs/cgroup/memory{path}"), true),
            None => (format!("/sys/fs/cgroup{}", path(":")?), false),
        };
        let name = format!("snapback-{}", std::process::id());
        let folder = Path::new(&parent).join(name);
        let group = Self { folder, first };
        let made = fs::create_dir(&group.folder).and_then(|()| {
            let file = if first {
                "memory.limit_in_bytes"
            } else {
                "memory.max"
            };
            fs::write(group.folder.join(file), limit.to_string())
        });
        match made {
            Ok(()) => Some(group),
            Err(error) => {
                eprintln!("skipped: no group with a limit can be made here: {error}");
                None
            }
        }
    }

    /// A daemon inside.
    fn serve(&self, folder: &Path, arguments: &[&str]) -> Daemon {
        let script = "echo $$ >\"$0\" && exec \"$@\"";
        let mut command = Command::new("sh");
        command
            .current_dir(folder)
            .env("XDG_RUNTIME_DIR", folder)
            .args(["-c", script])
            .arg(self.folder.join("cgroup.procs"))
            .arg(assert_cmd::cargo::cargo_bin!("snapback"))
            .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(arguments)
            .stdout(Stdio::null());
        let daemon = Daemon(command.spawn().unwrap());
        answers(folder);
        daemon
    }

    /// How often the kernel has killed somebody inside.
    fn kills(&self) -> u64 {
        let file = if self.first {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap();
        Daemon::field(&text, "oom_kill ")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        // Until the last of its processes is gone.
        while fs::remove_dir(&self.folder).is_err() && start.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// On a disk: pages of a file in memory would count for the daemon that writes them.
fn folder_with_disk(bytes: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let disk = File::create_new(folder.path().join("disk.img")).unwrap();
    disk.set_len(bytes).unwrap();
    folder
}

/// Clients that ask for nothing, for half of something, or for more than they read.
fn bad_clients(socket: &Path) -> Vec<UnixStream> {
    let long = format!(
        "GET /v1/status HTTP/1.1\r\nX-Long: {}",
        "x".repeat(15 << 10)
    );
    let slow =
        "POST /v1/snapshots HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{\"name\": \"";
    let huge = format!(
        "GET /v1/status HTTP/1.1\r\nX-Long: {}",
        "x".repeat(100 << 10)
    );
    let follows = "GET /v1/events?follow=true&since=0 HTTP/1.1\r\nHost: a\r\n\r\n";
    let unread = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let all = ["", "GET /v1", &long, slow, &huge, follows, unread];
    let clients = all.iter().cycle().take(15 * all.len()).map(|text| {
        let mut client = UnixStream::connect(socket).unwrap();
        client.set_nonblocking(true).unwrap();
        // Refused as soon as it is too much.
        let _ = client.write_all(text.as_bytes());
        client
    });
    clients.collect()
}

/// A file that says it is a store with chunks of 1 GiB.
fn boastful(folder: &Path) -> SnapshotSpec {
    let path = folder.join("boastful.cow");
    let file = File::create_new(&path).unwrap();
    file.set_len(MIB).unwrap();
    file.write_all_at(&header(1 << 21), 0).unwrap();
    SnapshotSpec {
        name: "boastful".into(),
        cow: path.to_str().unwrap().into(),
        ..serde_json::from_str(r#"{"name": "", "cow": "", "type": "P"}"#).unwrap()
    }
}

/// Of a valid store.
fn header(chunk_sectors: u32) -> [u8; 16] {
    let words = [0x7041_6e53_u32, 1, 1, chunk_sectors];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn bad_guests_and_clients_do_not_take_a_daemon_beyond_its_memory_nor_from_others() {
    let _alone = alone();
    let Some(group) = Group::new(BASE + 3 * QUEUE) else {
        return;
    };
    let folder = folder_with_disk(2 << 30);
    let path = |name: &str| folder.path().join(name);
    let snapshot = "name=s,cow=s.cow,size=64M,socket=s.sock";
    let arguments = ["--socket-path", "disk.sock", "--snapshot", snapshot];
    let daemon = group.serve(folder.path(), &arguments);
    let mut guest = Guest::connect(&path("s.sock"), 2);
    let mut witness = Guest::connect(&path("disk.sock"), 1);
    let mut asked = 0;
    let mut served = || {
        witness.ask(0, OUT, 1, 4096, &[(1 << 21) + 8 * u64::from(asked)]);
        asked += 1;
        witness.wait(0, asked);
    };
    served();
    let resident = || Daemon::field(&daemon.proc("status"), "VmHWM:") << 10;
    let before = resident();
    // Every second chunk has an exception, so that a read is made of many.
    for part in 0..8 {
        let chunks = (0..128).map(|n| 2 * (n + part * 128) + 1);
        let sectors: Vec<u64> = chunks.map(|chunk| 8 * chunk).collect();
        guest.ask(0, OUT, 1, 4096, &sectors);
        guest.wait(0, 128 * (part as u16 + 1));
    }
    for queue in 0..2 {
        guest.ask(queue, IN, SEGMENTS, SEGMENT, &[0; READS as usize]);
    }
    let clients = bad_clients(&path("c.sock"));
    for _ in 0..20 {
        served();
    }
    guest.wait(0, 128 * 8 + 20);
    guest.wait(1, 20);
    let grown = resident() - before;
    println!("{} KiB more at most", grown >> 10);
    assert!(grown > 8 * MIB, "the guest asks for too little");
    drop(clients);
    answers(folder.path());
    let client = Client::new(&path("c.sock")).unwrap();
    let refused = client.add_snapshot(&boastful(folder.path())).unwrap_err();
    println!("{refused}");
    served();
    assert_eq!(client.status().unwrap().snapshots.len(), 1);
    assert_eq!(group.kills(), 0);
    drop(daemon);
}

/// The metadata of a store of this many exceptions, in no order, with chunks of 64 KiB.
fn large_store(path: &Path, entries: u64) {
    const CHUNK: u64 = 64 << 10;
    const AREA: u64 = CHUNK / 16;
    let file = File::create_new(path).unwrap();
    file.set_len((entries / AREA + 1) * (AREA + 1) * CHUNK + CHUNK)
        .unwrap();
    file.write_all_at(&header(128), 0).unwrap();
    for area in 0..entries / AREA {
        let at = 1 + area * (AREA + 1);
        let pairs = (0..AREA).map(|n| (mix(area * AREA + n, entries.ilog2()), at + 1 + n));
        let bytes: Vec<u8> = pairs
            .flat_map(|(old, new)| [old.to_le_bytes(), new.to_le_bytes()])
            .flatten()
            .collect();
        file.write_all_at(&bytes, at * CHUNK).unwrap();
    }
}

#[test]
fn a_store_of_16_million_exceptions_takes_what_the_formula_says() {
    const ENTRIES: u64 = 1 << 24;
    let _alone = alone();
    // The log at random and the table of a dense store, and what loading takes beside them.
    let store = ENTRIES * (5 + 4 + 2) + 64 * MIB;
    let Some(group) = Group::new(BASE + store) else {
        return;
    };
    let folder = folder_with_disk(ENTRIES << 16);
    large_store(&folder.path().join("s.cow"), ENTRIES);
    let daemon = group.serve(
        folder.path(),
        &["--snapshot", "name=s,cow=s.cow,socket=s.sock"],
    );
    let resident = Daemon::field(&daemon.proc("status"), "VmHWM:") << 10;
    println!(
        "{} MiB at most, of {}",
        resident / MIB,
        (BASE + store) / MIB
    );
    let client = Client::new(&folder.path().join("c.sock")).unwrap();
    let status = client.status().unwrap();
    assert!(status.snapshots[0].allocated_sectors > ENTRIES * 128);
    assert_eq!(group.kills(), 0);
    drop(daemon);
}
