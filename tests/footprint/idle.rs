//! A daemon that nobody uses.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::alone;
use snapback::control::Client;

const SNAPSHOTS: usize = 15;
/// For the start, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    pub fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).unwrap()
    }

    /// A field of a `status` file.
    pub fn field(text: &str, name: &str) -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How often its threads were given a processor.
    fn switches(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        // One that has ended meanwhile has run: the sum is another one.
        tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
            .map(|text| {
                Self::field(&text, "voluntary_ctxt_switches")
                    + Self::field(&text, "nonvoluntary_ctxt_switches")
            })
            .sum()
    }
}

/// Waits until the daemon in this folder answers.
pub fn answers(folder: &Path) {
    let client = Client::new(&folder.join("c.sock")).unwrap();
    let start = Instant::now();
    while client.status().is_err() {
        assert!(start.elapsed() < PATIENCE, "the daemon does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn serve(folder: &Path) -> Daemon {
    File::create_new(folder.join("disk.img"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(folder)
        .env("XDG_RUNTIME_DIR", folder)
        .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
        .args(["--socket-path", "disk.sock"])
        .stdout(Stdio::null());
    for n in 0..SNAPSHOTS {
        let snapshot = format!("name=s{n},cow=s{n}.cow,size=1M,socket=s{n}.sock");
        command.args(["--snapshot", &snapshot]);
    }
    let daemon = Daemon(command.spawn().unwrap());
    answers(folder);
    daemon
}

#[test]
fn an_idle_daemon_with_16_views_never_runs_and_has_at_most_32_mib_resident() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = serve(folder.path());
    // What the start and the last status began has ended, also on a busy machine.
    let start = Instant::now();
    let mut before = daemon.switches();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = daemon.switches();
        if now == before {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "some thread runs all the time");
        before = now;
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.switches(), before, "some thread ran");
    let resident = Daemon::field(&daemon.proc("status"), "VmRSS:");
    println!("resident: {resident} KiB");
    assert!(resident <= 32 << 10, "{resident} KiB");
}
