//! What a fork costs that nobody uses: of 100 on one daemon, and of 100 daemons.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::alone;
use super::idle::{Daemon, PATIENCE, answers};
use snapback::control::Client;
use snapback::control::api::{SnapshotSpec, StoreType};

const FORKS: u64 = 100;
/// Forks before the first count, so that what is made once is there.
const BEFORE: u64 = 5;
/// Descriptors of the last calls of the API.
const SPARE: u64 = 8;

fn image(folder: &Path) {
    let image = File::create_new(folder.join("golden.img")).unwrap();
    image.set_len(20 << 30).unwrap();
}

/// A daemon in a folder of its own, below the image's or the same.
fn serve(image: &Path, folder: &Path, more: &[&str]) -> Daemon {
    let child = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(folder)
        .env("XDG_RUNTIME_DIR", folder)
        .args(["--log-level", "warn", "serve", "--read-only"])
        .args(["--control", "c.sock", "--allow-path", ".", "--origin"])
        .arg(image)
        .args(more)
        .stdout(Stdio::null())
        .spawn();
    Daemon(child.unwrap())
}

fn fork(folder: &Path, n: u64) -> SnapshotSpec {
    let at = |ending: &str| {
        let path = folder.join(format!("vm{n}.{ending}"));
        path.to_str().unwrap().to_owned()
    };
    File::create_new(at("cow"))
        .unwrap()
        .set_len(21 << 30)
        .unwrap();
    SnapshotSpec {
        name: format!("vm{n}"),
        cow: at("cow"),
        store_type: if n.is_multiple_of(2) {
            StoreType::P
        } else {
            StoreType::N
        },
        chunk_size: None,
        size: None,
        socket: Some(at("sock")),
        discard_zeroes_cow: None,
        defer_entries: None,
        discard_passdown_origin: None,
        read_only: None,
    }
}

/// Resident memory, threads that stay (those for calls of the API go), and descriptors.
#[derive(Clone, Copy, Debug)]
struct Cost {
    kib: u64,
    threads: u64,
    descriptors: u64,
}

impl Cost {
    fn of(daemon: &Daemon) -> Self {
        let status = daemon.proc("status");
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).unwrap();
        Self {
            kib: Daemon::field(&status, "VmRSS:"),
            threads: threads(daemon),
            descriptors: descriptors.count() as u64,
        }
    }

    /// When nothing has changed for a second: a new thread has the name of the one that began
    /// it until it runs.
    fn settled(daemon: &Daemon) -> Self {
        let start = Instant::now();
        let mut last = Self::of(daemon);
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            assert!(start.elapsed() < PATIENCE, "it does not come to rest");
            std::thread::sleep(Duration::from_millis(50));
            let now = Self::of(daemon);
            if (now.threads, now.descriptors) != (last.threads, last.descriptors) {
                since = Instant::now();
            }
            last = now;
        }
        last
    }
}

fn threads(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    // A thread that has ended meanwhile has no name.
    let names = names.flatten();
    names
        .filter(|name| !["tokio-rt-worker\n", "metrics call\n"].contains(&name.as_str()))
        .count() as u64
}

#[test]
fn an_idle_fork_of_100_takes_at_most_2_mib_one_thread_and_6_descriptors() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    image(folder.path());
    let daemon = serve(&folder.path().join("golden.img"), folder.path(), &[]);
    answers(folder.path());
    let client = Client::new(&folder.path().join("c.sock")).unwrap();
    let add = |n| client.add_snapshot(&fork(folder.path(), n)).unwrap();
    (0..BEFORE).for_each(add);
    let before = Cost::settled(&daemon);
    (BEFORE..BEFORE + FORKS).for_each(add);
    let after = Cost::settled(&daemon);
    println!("{before:?} with {BEFORE} forks, {after:?} with {FORKS} more");
    let kib = after.kib.saturating_sub(before.kib);
    assert!(kib <= FORKS * 2048, "{kib} KiB for {FORKS} forks");
    assert_eq!(after.threads - before.threads, FORKS, "threads");
    let descriptors = after.descriptors - before.descriptors;
    assert!(
        descriptors <= 6 * FORKS + SPARE,
        "{descriptors} descriptors"
    );
    // Nothing of a fork remains when it is dropped.
    for n in BEFORE..BEFORE + FORKS {
        client.remove_snapshot(&format!("vm{n}")).unwrap();
    }
    // The last of them may still be about to end.
    let start = Instant::now();
    loop {
        let dropped = Cost::of(&daemon);
        let few = dropped.threads <= before.threads + 2;
        if few && dropped.descriptors <= before.descriptors + SPARE {
            println!("{dropped:?} when these are dropped");
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{before:?} and {dropped:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Memory that a process has for itself, and its share of what others have as well.
fn proportional(daemon: &Daemon) -> u64 {
    Daemon::field(&daemon.proc("smaps_rollup"), "Pss:")
}

#[test]
fn a_hundred_daemons_serve_one_image_and_each_takes_at_most_2_mib() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    image(folder.path());
    let place = |n: u64| {
        let place = folder.path().join(n.to_string());
        std::fs::create_dir(&place).unwrap();
        place
    };
    let daemons: Vec<_> = (0..FORKS)
        .map(|n| {
            let place = place(n);
            let spec = fork(&place, n);
            let letters = spec.store_type.letters();
            let snapshot = format!("name=vm{n},cow=vm{n}.cow,type={letters},socket=vm{n}.sock");
            let more = ["--snapshot", snapshot.as_str()];
            let daemon = serve(Path::new("../golden.img"), &place, &more);
            (place, daemon)
        })
        .collect();
    daemons.iter().for_each(|(place, _)| answers(place));
    let kib: Vec<u64> = daemons
        .iter()
        .map(|(_, daemon)| proportional(daemon))
        .collect();
    let all: u64 = kib.iter().sum();
    println!(
        "{} KiB each; the last one: {:?}",
        all / FORKS,
        Cost::of(&daemons[99].1)
    );
    assert!(all <= FORKS * 2048, "{all} KiB for {FORKS} daemons");
}
