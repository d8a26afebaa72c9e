//! A rollback that waits for the guest's reset, and everything that looks like one:
//! each row of the table in docs/rollback.md.

mod boots;
mod drivers;
#[expect(
    dead_code,
    reason = "neither the look nor qemu-tests/inside needs all of it"
)]
#[expect(unsafe_code, reason = "memory of its own for the device to read into")]
#[path = "../../tests/daemon/guest.rs"]
pub mod front_end;
mod looks;

use std::path::PathBuf;

use serde_json::Value;

use crate::bench::Bench;
use crate::daemon::Daemon;
use crate::disk::{MIB, Sums};
use crate::guest::{Attach, Guest};

const SIZE: u64 = 64 * MIB;
const SEED: u64 = 7;

/// An origin with the snapshot `before`, taken before any guest wrote.
struct Rig {
    bench: Bench,
    daemon: Daemon,
    origin: PathBuf,
    before: Sums,
}

impl Rig {
    /// On a disk in which every block has its own content.
    fn new() -> Self {
        let bench = Bench::new();
        bench.filled_disk("origin.img", SIZE, SEED);
        Self::on(bench, &[])
    }

    /// On the `origin.img` that is there, served with more options.
    fn on(bench: Bench, more: &[&str]) -> Self {
        let origin = bench.path("origin.img");
        let before = Sums::of_file(&origin);
        let snapshot = bench.snapshot("before", "4K");
        let daemon = bench.serve(&[&["--snapshot", &snapshot], more].concat());
        Self {
            bench,
            daemon,
            origin,
            before,
        }
    }

    /// As a service manager does it, or after SIGKILL.
    fn start_daemon_again(self, killed: bool) -> Self {
        if killed {
            self.daemon.kill();
        } else {
            self.daemon.terminate();
        }
        let daemon = self.bench.serve(&[]);
        Self { daemon, ..self }
    }

    fn view(&self) -> Attach {
        self.bench.view("origin")
    }

    /// A guest that has files on the disk, which the snapshot does not have.
    fn guest_with_files(&self) -> Guest {
        let mut guest = self.bench.boot("g", &[self.view()]);
        make_files(&mut guest);
        guest
    }

    /// With a guest attached; it waits for the guest's reset.
    fn ask_for_rollback(&self) {
        self.daemon.run(&["rollback", "before"]);
        self.assert_pending();
    }

    fn assert_pending(&self) {
        let status = self.daemon.status();
        assert_eq!(
            status.rollback_at_reset.as_deref(),
            Some("before"),
            "the rollback does not wait any more"
        );
        assert!(status.merge.is_none(), "a merge runs");
        assert_eq!(self.events("handover").len(), 0, "there was a handover");
    }

    /// Of this kind, oldest first.
    fn events(&self, kind: &str) -> Vec<Value> {
        let text = self.daemon.run(&["events", "--json"]);
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|event: &Value| event["kind"] == kind)
            .collect()
    }

    /// Runs what is no reset: the rollback waits, and events and status say that it
    /// does and whom they `seen`.
    fn still_waits(&self, seen: &str, what: impl FnOnce()) {
        let told = self.events("rollback-waits").len();
        what();
        self.assert_pending();
        let events = self.events("rollback-waits");
        assert_eq!(events.len(), told + 1, "{events:?}");
        let event = events.last().unwrap();
        println!("seen: {}: {}", event["seen"], event["reason"]);
        assert_eq!(event["seen"], seen);
        let status = self.daemon.run(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["rollback"]["seen"], seen);
        assert_eq!(status["rollback"]["note"], event["reason"]);
        let text = self.daemon.run(&["status"]);
        let reason = event["reason"].as_str().unwrap();
        assert!(text.contains(reason), "not in the status: {reason}\n{text}");
    }

    /// The rollback has happened, once, and the guest that is up now has the old disk.
    fn assert_rolled_back(&self, guest: &mut Guest) {
        let status = self.daemon.status();
        assert_eq!(status.rollback_at_reset, None, "it still waits");
        assert_eq!(self.events("handover").len(), 1);
        guest
            .sums("/dev/vda")
            .assert_same(&self.before, "the disk after the reset with the snapshot");
        self.daemon.wait_merged();
        guest.assert_no_io_error();
    }

    /// The last look: what the merge made of the file.
    fn end(self, mut guest: Guest) {
        guest
            .sums("/dev/vda")
            .assert_same(&self.before, "the disk after the merge with the snapshot");
        guest.assert_no_io_error();
        guest.quit();
        assert_eq!(self.events("handover").len(), 1);
        self.daemon.terminate();
        Sums::of_file(&self.origin).assert_same(&self.before, "the origin file with the snapshot");
    }

    /// The machine's reset makes the rollback happen.
    fn reset_and_end(self, mut guest: Guest) {
        guest.reset();
        self.assert_rolled_back(&mut guest);
        self.end(guest);
    }
}

/// Makes a file system and leaves it mounted.
fn make_files(guest: &mut Guest) {
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && mkdir /mnt/d");
    guest.run(
        "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/d/$i bs=64k count=$((i * 4)) \
         2>/dev/null || exit 1; done; cd /mnt && sha256sum d/* >list && sync",
    );
}

/// All files are as they were written, read from the disk; and it takes new ones.
fn check_files(guest: &mut Guest) {
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    let right = guest.run("cd /mnt && sha256sum -c list | grep -c ': OK'");
    println!("files that are right in the guest: {} of 8", right.trim());
    assert_eq!(right.trim(), "8");
    guest.run("date >/mnt/more && sync");
}

/// To RAM, with its disk mounted.
fn suspend(guest: &mut Guest) {
    guest.run("echo deep >/sys/power/mem_sleep");
    guest.send("echo mem >/sys/power/state");
    guest.qmp.wait_for("SUSPEND");
}

fn wake_up(guest: &mut Guest) {
    guest.qmp.command("system_wakeup");
    assert_eq!(guest.answer().0, 0, "the guest was not suspended");
}

fn unmount(guest: &mut Guest) {
    guest.run("cd / && umount /mnt && e2fsck -fn /dev/vda");
}
