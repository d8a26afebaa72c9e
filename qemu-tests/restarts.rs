//! The daemon is stopped and killed again and again under a guest that verifies what
//! it reads: it sees pauses, and nothing else.
//!
//! `SNAPBACK_RESTARTS` is the number of restarts of each test (default 8), half of
//! them by SIGTERM and half by SIGKILL. With `SNAPBACK_COMPARE` set the guest's disk is
//! served by qemu-storage-daemon, which has no snapshots.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bench::Bench;
use crate::content;
use crate::daemon::{Daemon, PROGRAM};
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const SIZE: u64 = 32 * MIB;
const SEED: u64 = 23;
const BLOCKS: u64 = 2048;
const THREADS: u64 = 12;
/// A front end that comes back each second, and a machine with other work.
const STUCK_MS: u64 = 60_000;

/// Reproducible chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = content::random(self.0);
        self.0 % end
    }
}

/// A volume whose daemon is ended and started again under the guest.
struct Restarts {
    bench: Bench,
    daemon: Option<Daemon>,
    dice: Dice,
    terms: u64,
    kills: u64,
    wanted: u64,
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
    })
}

impl Restarts {
    fn new() -> Self {
        let bench = Bench::new();
        bench.filled_disk("origin.img", SIZE, SEED);
        let seed = number("SNAPBACK_SEED", u64::from(std::process::id()));
        println!("seed: SNAPBACK_SEED={seed}");
        Self {
            bench,
            daemon: None,
            dice: Dice(seed),
            terms: 0,
            kills: 0,
            wanted: number("SNAPBACK_RESTARTS", 8),
        }
    }

    /// The first start, with these snapshots.
    fn first_start(&mut self, snapshots: &[&str]) {
        let all: Vec<String> = snapshots
            .iter()
            .map(|name| self.bench.snapshot(name, "4K"))
            .collect();
        let more: Vec<&str> = all
            .iter()
            .flat_map(|s| ["--snapshot", s.as_str()])
            .collect();
        self.daemon = Some(self.bench.serve(&more));
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    fn attach(&self, name: &str) -> Attach {
        Attach::TwoQueues(self.bench.path(&format!("{name}.sock")))
    }

    /// Ends the daemon, each time the other way, and starts it again.
    fn restart(&mut self) {
        let daemon = self.daemon.take().expect("it runs");
        if self.terms > self.kills {
            self.kills += 1;
            daemon.kill();
        } else {
            self.terms += 1;
            daemon.terminate();
        }
        // What a service manager may take.
        sleep(Duration::from_millis(self.dice.below(300)));
        self.daemon = Some(self.bench.serve(&[]));
    }

    /// Begins a verb, and ends the daemon in the middle of it, or somewhere near.
    fn restart_within(&mut self, verb: &[&str]) {
        println!("$ snapback {} &", verb.join(" "));
        let mut child = Command::new(PROGRAM)
            .args(verb)
            .env("SNAPBACK_CONTROL", self.bench.path("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(self.dice.below(60)));
        self.restart();
        child.wait().unwrap();
    }

    /// The guest goes on for a while: somewhere in it the next restart comes.
    fn a_while(&mut self, guest: &mut Guest, disks: &[&str]) {
        for disk in disks {
            guest.storm_on(disk, 50);
        }
        sleep(Duration::from_millis(self.dice.below(700)));
    }

    fn has_snapshot(&self, name: &str) -> bool {
        let snapshots = self.daemon().status().snapshots;
        snapshots.iter().any(|snapshot| snapshot.name == name)
    }

    fn rounds(&self, share: u64) -> u64 {
        (self.wanted / share).max(1)
    }

    /// Overwrites what the storm leaves alone, so that a merge has work.
    fn wreck(guest: &mut Guest) {
        guest.run("dd if=/dev/zero of=/dev/vda bs=1M seek=16 oflag=direct 2>/dev/null; sync");
    }

    /// Verifies what the storms wrote, and what the guest's kernel thinks.
    fn judge(&self, guest: &mut Guest, disks: &[&str]) {
        for disk in disks {
            let longest = guest.stop_storm(disk);
            println!(
                "{disk}: {} SIGTERM and {} SIGKILL so far; the guest's longest pause was {longest} ms, of which QEMU waits up to 1000 before it connects again",
                self.terms, self.kills
            );
            assert!(longest < STUCK_MS, "a request took {longest} ms");
        }
        guest.assert_no_io_error();
    }
}

#[test]
fn restarts_under_load_on_the_origin_and_a_snapshot_and_in_the_middle_of_verbs() {
    if std::env::var_os("SNAPBACK_COMPARE").is_some() {
        return compare();
    }
    let mut restarts = Restarts::new();
    let first = Sums::of_file(&restarts.bench.path("origin.img"));
    restarts.first_start(&["s1", "s2"]);
    let disks = [restarts.attach("origin"), restarts.attach("s1")];
    let mut guest = restarts.bench.boot("g", &disks);
    for disk in ["vda", "vdb"] {
        guest.start_storm(disk, SEED, BLOCKS, THREADS);
    }
    let both = ["vda", "vdb"];
    for round in 0..restarts.rounds(4) {
        restarts.a_while(&mut guest, &both);
        restarts.restart();
        restarts.a_while(&mut guest, &both);
        let (name, cow) = (
            format!("x{round}"),
            restarts.bench.text(&format!("x{round}.cow")),
        );
        restarts.restart_within(&["snapshot", &name, "--cow", &cow, "--size", "16M"]);
        restarts.a_while(&mut guest, &both);
        let size = format!("{}K", (96 << 10) + 64 * (round + 1));
        restarts.restart_within(&["grow", "s1", &size]);
        restarts.a_while(&mut guest, &both);
        if restarts.has_snapshot(&name) {
            restarts.restart_within(&["remove", &name]);
            if restarts.has_snapshot(&name) {
                restarts.daemon().run(&["remove", &name]);
            }
        } else {
            restarts.restart();
        }
        let _ = fs::remove_file(cow);
    }
    restarts.judge(&mut guest, &both);
    let seen = guest.sums("/dev/vda");
    guest.quit();
    let mut reader = restarts.bench.boot("reader", &[restarts.bench.view("s2")]);
    reader.sums("/dev/vda").assert_same(
        &first,
        "the snapshot that nobody wrote with the first origin",
    );
    reader.quit();
    restarts.daemon.take().unwrap().terminate();
    Sums::of_file(&restarts.bench.path("origin.img"))
        .assert_same(&seen, "the origin file with the guest's view");
}

#[test]
fn restarts_under_load_in_the_middle_of_a_live_commit() {
    let mut restarts = Restarts::new();
    restarts.first_start(&["s1", "s2"]);
    let first = Sums::of_file(&restarts.bench.path("origin.img"));
    let disks = [restarts.attach("s1")];
    let mut guest = restarts.bench.boot("g", &disks);
    Restarts::wreck(&mut guest);
    guest.start_storm("vda", SEED, BLOCKS, THREADS);
    for _ in 0..restarts.rounds(4) {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart();
    }
    while !restarts.daemon().is_merging() {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart_within(&["merge", "s1", "--follow", "--rate", "32K"]);
    }
    for _ in 0..restarts.rounds(2) {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart();
    }
    assert!(restarts.daemon().is_merging(), "no restart in its middle");
    restarts.daemon().run(&["merge", "--rate", "0"]);
    for _ in 0..restarts.rounds(4) {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart();
    }
    restarts.daemon().wait_merged();
    restarts.judge(&mut guest, &["vda"]);
    let seen = guest.sums("/dev/vda");
    guest.quit();
    let mut reader = restarts.bench.boot("reader", &[restarts.bench.view("s2")]);
    reader
        .sums("/dev/vda")
        .assert_same(&first, "the other snapshot with the first origin");
    reader.quit();
    restarts.daemon.take().unwrap().terminate();
    Sums::of_file(&restarts.bench.path("origin.img"))
        .assert_same(&seen, "the origin file with the guest's view");
}

#[test]
fn restarts_around_a_rollback_at_a_reset() {
    let mut restarts = Restarts::new();
    restarts.first_start(&["s1", "s2"]);
    let first = Sums::of_file(&restarts.bench.path("origin.img"));
    let disks = [restarts.attach("origin")];
    let mut guest = restarts.bench.boot("g", &disks);
    Restarts::wreck(&mut guest);
    guest.start_storm("vda", SEED, BLOCKS, THREADS);
    restarts.a_while(&mut guest, &["vda"]);
    restarts
        .daemon()
        .run(&["rollback", "s1", "--at-reset", "--rate", "32K"]);
    for _ in 0..restarts.rounds(4) {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart();
        let waits = restarts.daemon().status().rollback_at_reset;
        assert_eq!(waits.as_deref(), Some("s1"), "a restart is no reset");
    }
    guest.qmp.command("system_reset");
    // In the middle of the firmware, the handover, the kernel's start.
    for _ in 0..restarts.rounds(4) {
        sleep(Duration::from_millis(restarts.dice.below(4000)));
        restarts.restart();
    }
    // A boot takes some seconds, and more on a busy machine.
    if guest.is_silent_for(Duration::from_secs(60)) && guest.lost_a_start() {
        println!("QEMU could not start the disk over the restarts: once more");
        guest.qmp.command("system_reset");
    }
    guest.wait_boot();
    if restarts.daemon().status().rollback_at_reset.is_some() {
        println!(
            "the reset was not seen as one over the restarts: the rollback waits for the next"
        );
        guest.reset();
    }
    assert_eq!(restarts.daemon().status().rollback_at_reset, None);
    guest
        .sums("/dev/vda")
        .assert_same(&first, "the disk after the reset with the snapshot");
    guest.start_storm("vda", SEED, BLOCKS, THREADS);
    for _ in 0..restarts.rounds(2) {
        restarts.a_while(&mut guest, &["vda"]);
        restarts.restart();
    }
    assert!(restarts.daemon().is_merging(), "no restart in its middle");
    restarts.restart_within(&["merge", "--rate", "0"]);
    // Refused if it has ended by now.
    let _ = restarts.daemon().try_run(&["merge", "--rate", "0"]);
    restarts.daemon().wait_merged();
    restarts.judge(&mut guest, &["vda"]);
    let seen = guest.sums("/dev/vda");
    guest.quit();
    restarts.daemon.take().unwrap().terminate();
    Sums::of_file(&restarts.bench.path("origin.img"))
        .assert_same(&seen, "the origin file with the guest's view");
}

/// qemu-storage-daemon under the same load; what it did is printed.
fn compare() {
    let mut restarts = Restarts::new();
    let (image, socket) = (
        restarts.bench.path("origin.img"),
        restarts.bench.path("origin.sock"),
    );
    let mut other = serve_other(&image, &socket);
    let disks = [restarts.attach("origin")];
    let mut guest = restarts.bench.boot("g", &disks);
    guest.start_storm("vda", SEED, BLOCKS, THREADS);
    for _ in 0..restarts.wanted {
        restarts.a_while(&mut guest, &["vda"]);
        let signal = if restarts.terms > restarts.kills {
            restarts.kills += 1;
            Signal::KILL
        } else {
            restarts.terms += 1;
            Signal::TERM
        };
        let begin = Instant::now();
        kill_process(Pid::from_child(&other), signal).unwrap();
        let status = other.wait().unwrap();
        println!(
            "{signal:?}: {status} after {} ms",
            begin.elapsed().as_millis()
        );
        other = serve_other(&image, &socket);
    }
    restarts.judge(&mut guest, &["vda"]);
    guest.quit();
    other.kill().unwrap();
    other.wait().unwrap();
}

fn serve_other(image: &Path, socket: &Path) -> Child {
    // It does not replace its own socket's file.
    let _ = fs::remove_file(socket);
    let child = Command::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=f,filename={}",
            image.display()
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=2",
            socket.display()
        ))
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-storage-daemon starts (qemu-tests/install.sh installs it)");
    let begin = Instant::now();
    while !socket.exists() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it has no socket"
        );
        sleep(Duration::from_millis(10));
    }
    child
}
