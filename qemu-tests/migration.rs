//! QEMU migrates a guest, whose writers verify what they read, to another QEMU, whose disk is
//! served by another daemon on the same files.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use snapback::control::api::State;

use crate::bench::Bench;
use crate::daemon::{Daemon, offline};
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const SIZE: u64 = 32 * MIB;
const SEED: u64 = 31;
const BLOCKS: u64 = 2048;
const THREADS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(150);

/// Where the guest comes from and goes to.
struct Places {
    bench: Bench,
}

impl Places {
    fn path(&self) -> PathBuf {
        self.bench.path("")
    }

    /// A daemon that waits for the guest.
    fn destination(&self) -> Daemon {
        let (origin, view) = (self.bench.text("origin.img"), self.bench.text("new.sock"));
        let (from, control) = (
            self.bench.text("control.sock"),
            self.bench.path("new-c.sock"),
        );
        let args = [
            "--origin",
            &origin,
            "--socket-path",
            &view,
            "--incoming",
            &from,
        ];
        Daemon::incoming(&self.path(), &args, control, &self.bench.path("new.sock"))
    }

    /// A QEMU that waits for the guest.
    fn arriving(&self, name: &str) -> Guest {
        let disks = [Attach::TwoQueues(self.bench.path("new.sock"))];
        let mut arriving = Guest::incoming(&self.path(), name, &disks);
        let uri = self.uri(name);
        arriving
            .qmp
            .command_with("migrate-incoming", json!({ "uri": uri }));
        arriving
    }

    fn uri(&self, name: &str) -> String {
        format!("unix:{}", self.bench.text(&format!("{name}.migration")))
    }

    /// Begins a migration with at most this many bytes per second.
    fn migrate(&self, guest: &mut Guest, name: &str, bandwidth: u64) {
        let limits = json!({ "max-bandwidth": bandwidth, "downtime-limit": 2000 });
        guest.qmp.command_with("migrate-set-parameters", limits);
        guest
            .qmp
            .command_with("migrate", json!({ "uri": self.uri(name) }));
    }
}

/// Waits until the migration has this status.
fn wait_for(guest: &mut Guest, wanted: &str) {
    let begin = Instant::now();
    loop {
        let status = guest.qmp.command("query-migrate");
        let now = status["status"].as_str().unwrap_or("none");
        if now == wanted {
            println!(
                "migration {wanted} after {:.1} s",
                begin.elapsed().as_secs_f64()
            );
            return;
        }
        let over = ["completed", "failed", "cancelled"].contains(&now);
        assert!(
            !over && begin.elapsed() < PATIENCE,
            "not {wanted}: {status}"
        );
        sleep(Duration::from_millis(50));
    }
}

/// Waits until a part of the memory was sent.
fn wait_for_traffic(guest: &mut Guest) {
    let begin = Instant::now();
    loop {
        let status = guest.qmp.command("query-migrate");
        if status["ram"]["transferred"].as_u64().unwrap_or(0) > MIB {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "no traffic: {status}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_moves_under_load_after_a_failed_and_a_cancelled_migration() {
    let places = Places {
        bench: Bench::new(),
    };
    places.bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&places.bench.path("origin.img"));
    let source = places
        .bench
        .serve(&["--snapshot", &places.bench.snapshot("s1", "4K")]);
    let disks = [Attach::TwoQueues(places.bench.path("origin.sock"))];
    let mut guest = places.bench.boot("g", &disks);
    guest.start_storm("vda", SEED, BLOCKS, THREADS);
    let destination = places.destination();

    let arriving = places.arriving("lost");
    places.migrate(&mut guest, "lost", 2 * MIB);
    wait_for_traffic(&mut guest);
    guest.storm_on("vda", 50);
    arriving.kill();
    wait_for(&mut guest, "failed");
    guest.storm_on("vda", 50);

    let arriving = places.arriving("cancelled");
    places.migrate(&mut guest, "cancelled", 2 * MIB);
    wait_for_traffic(&mut guest);
    guest.storm_on("vda", 50);
    guest.qmp.command("migrate_cancel");
    wait_for(&mut guest, "cancelled");
    guest.storm_on("vda", 50);
    arriving.kill();
    guest.assert_no_io_error();
    assert!(
        source.status().views[0].attached,
        "it goes on at the source"
    );

    let arriving = places.arriving("there");
    places.migrate(&mut guest, "there", 1 << 30);
    wait_for(&mut guest, "completed");
    let left = guest.moved_to(arriving);
    guest.storm_on("vda", 200);
    source.ends();
    left.quit();
    guest.storm_on("vda", 50);
    println!("the longest pause was {} ms", guest.stop_storm("vda"));
    guest.assert_no_io_error();
    let seen = guest.sums("/dev/vda");
    assert_eq!(destination.snapshot("s1").state, State::Active);
    guest.quit();
    destination.terminate();

    Sums::of_file(&places.bench.path("origin.img"))
        .assert_same(&seen, "the origin file with the guest's view");
    let (origin, cow) = (places.bench.text("origin.img"), places.bench.text("s1.cow"));
    let out = places.bench.text("s1.img");
    offline(&["export", "--origin", &origin, "--cow", &cow, &out]);
    Sums::of_file(&places.bench.path("s1.img"))
        .assert_same(&first, "the snapshot with the first origin");
}
