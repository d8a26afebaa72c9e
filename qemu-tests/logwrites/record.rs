//! One run in a guest, and what it leaves: the disk as it was, the log of all
//! writes, and the trace.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::plan::{CUT_AT, ORIGIN, ORIGIN_AT, Plan, TRACE_AT};
use super::{NAME, PILOT, stamps};
use crate::bench::{Bench, guest_images};
use crate::daemon::PROGRAM;
use crate::disk::MIB;
use crate::guest::{Attach, Guest};

/// What a store's device holds before it has a store, behind its first 4096 bytes.
const NOISE: u8 = 0xee;
/// The pilot takes ten seconds or so on an idle machine.
const PATIENCE: Duration = Duration::from_secs(400);
const TRACE: &str = "/sys/kernel/tracing";

pub struct Recording {
    pub seed: u64,
    pub plan: Plan,
    /// The logged disk before the run.
    pub before: Vec<u8>,
    /// What dm-log-writes wrote.
    pub log: Vec<u8>,
    pub trace: String,
    /// Major and minor number of the logged disk, as the trace writes them.
    pub disk: String,
    /// The stamps that `s2` showed when it was new.
    pub cut: Vec<u64>,
}

/// The guest's timing is its own: a recording that shows something is kept, and can
/// be judged again.
impl Recording {
    pub fn keep(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let about = format!("{} {}", self.seed, self.disk);
        let cut: Vec<u8> = self.cut.iter().flat_map(|s| s.to_le_bytes()).collect();
        let parts: [(&str, &[u8]); 4] = [
            ("about", about.as_bytes()),
            ("log", &self.log),
            ("trace", self.trace.as_bytes()),
            ("cut", &cut),
        ];
        for (name, bytes) in parts {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }

    pub fn kept(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let text = |name: &str| String::from_utf8(read(name)).unwrap();
        let about = text("about");
        let (seed, disk) = about.split_once(' ').unwrap();
        let plan = Plan::new(seed.parse().unwrap());
        Self {
            seed: seed.parse().unwrap(),
            before: disk_before(&plan),
            plan,
            log: read("log"),
            trace: text("trace"),
            disk: disk.to_owned(),
            cut: words(&read("cut")),
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(8);
    words
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        .collect()
}

pub fn record(bench: &Bench, seed: u64) -> Recording {
    let plan = Plan::new(seed);
    let before = disk_before(&plan);
    let disk = bench.path("logged.img");
    std::fs::write(&disk, &before).unwrap();
    let log = bench.blank_disk("log.img", 256 * MIB);
    let results = bench.blank_disk("results.img", 64 * MIB);
    let disks = [&disk, &log, &results].map(|path| Attach::Raw(path.clone()));
    let mut guest = Guest::boot_from(&initramfs(bench), &bench.path(""), NAME, &disks, "");

    let table = format!("0 {} log-writes /dev/vda /dev/vdb", plan.sectors());
    guest.run(&format!("dmsetup create logged --table '{table}'"));
    for (name, range) in plan.devices() {
        let (sectors, first) = (range.end - range.start, range.start);
        guest.run(&format!(
            "dmsetup create {name} --table '0 {sectors} linear /dev/mapper/logged {first}'"
        ));
    }
    let logged = number(&mut guest, "logged");
    start_trace(&mut guest, &logged);
    let command = format!(
        "cd /tmp && {PILOT}={seed} /bin/pilot --exact {} --nocapture 2>&1",
        super::TEST
    );
    let (status, output) = guest.run_within(&command, PATIENCE);
    if status != 0 || !output.contains("1 passed") {
        let (_, log) = guest.try_run("tail -n 30 /tmp/daemon.log");
        panic!("the pilot exits {status}:\n{output}\nthe daemon's last lines:\n{log}");
    }
    guest.run(&format!(
        "echo 0 >{TRACE}/tracing_on; \
         grep entries-in-buffer {TRACE}/trace | grep -q ' \\([0-9]*\\)/\\1 ' && \
         dd if={TRACE}/trace of=/dev/vdc bs=64k seek={} 2>/dev/null && sync",
        TRACE_AT >> 16
    ));
    for (name, _) in plan.devices() {
        guest.run(&format!("dmsetup remove {name}"));
    }
    // What was never flushed gets into the log with this.
    guest.run("dmsetup remove logged && sync");
    guest.assert_no_io_error();
    guest.quit();
    let results = std::fs::read(results).unwrap();
    let cut = words(&results[CUT_AT as usize..][..ORIGIN as usize * 8]);
    let trace = results[TRACE_AT as usize..].split(|byte| *byte == 0).next();
    Recording {
        before,
        log: written(&log),
        trace: String::from_utf8(trace.unwrap().to_vec()).unwrap(),
        disk: logged,
        seed,
        cut,
        plan,
    }
}

/// The guest's own initramfs with the daemon and this very test program.
fn initramfs(bench: &Bench) -> PathBuf {
    let (extra, made) = (bench.path("extra"), bench.path("initramfs"));
    if !made.exists() {
        let script = "mkdir -p \"$1/bin\" \"$1/lib\" && strip -o \"$1/bin/snapback\" \"$2\" && \
             strip -o \"$1/bin/pilot\" \"$3\" && \
             ldd \"$2\" \"$3\" | awk '/=> \\// { print $3 }' | sort -u | \
             xargs -I '{}' cp -L '{}' \"$1/lib/\" && cd \"$1\" && \
             find . | cpio --quiet -o -H newc -R 0:0 | cat \"$4/initramfs\" - >\"$5\"";
        let status = Command::new("sh")
            .args(["-ec", script, "sh"])
            .args([
                &extra,
                Path::new(PROGRAM),
                &std::env::current_exe().unwrap(),
            ])
            .args([guest_images(), &made])
            .status()
            .unwrap();
        assert!(status.success(), "the initramfs with the pilot: {status}");
    }
    made
}

fn disk_before(plan: &Plan) -> Vec<u8> {
    let mut disk = vec![NOISE; plan.sectors() as usize * 512];
    let origin = &mut disk[ORIGIN_AT as usize * 512..][..ORIGIN as usize * 512];
    stamps::fill(origin, 0);
    for store in plan.stores {
        disk[store.first as usize * 512..][..4096].fill(0);
    }
    disk
}

/// `MAJOR,MINOR` of a device-mapper device.
fn number(guest: &mut Guest, name: &str) -> String {
    let text = guest.run(&format!("dmsetup ls | grep '^{name}[[:space:]]'"));
    let digits = |c: char| c.is_ascii_digit();
    let numbers: Vec<&str> = text[name.len()..]
        .split(|c| !digits(c))
        .filter(|part| !part.is_empty())
        .collect();
    assert_eq!(numbers.len(), 2, "{text}");
    numbers.join(",")
}

/// Traces the I/O of the logged disk, as it begins and as it ends.
fn start_trace(guest: &mut Guest, logged: &str) {
    let (major, minor) = logged.split_once(',').unwrap();
    let device = (major.parse::<u64>().unwrap() << 20) + minor.parse::<u64>().unwrap();
    guest.run(&format!(
        "mount -t tracefs tracefs {TRACE} && cd {TRACE} && echo 65536 >buffer_size_kb && \
         echo 0 >options/overwrite"
    ));
    for event in ["block_bio_queue", "block_bio_complete"] {
        guest.run(&format!(
            "cd {TRACE}/events/block/{event} && \
             echo 'dev == {device}' >filter && echo 1 >enable"
        ));
    }
}

/// The part of the log that holds anything.
fn written(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap();
    let mut log = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut log, 0).unwrap();
    let end = log
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    log.truncate(end.next_multiple_of(512));
    log
}
