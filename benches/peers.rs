//! Compares the daemon with the programs that somebody would use instead of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;

use common::backend::{Backend, Disks, Program, pinned};
use common::counters::{DeviceCounters, cpu_time};
use common::load::{self, Job, Kind, Place};
use common::options::Options;
use common::table::{self, CaseResult, Measurement, Series, job_name};
use common::{is_installed, plot, sync};

/// One load for several programs.
struct Case {
    group: &'static str,
    job: Job,
    /// Every chunk has been written before the measurement.
    copied: bool,
    /// Ours first.
    programs: Vec<Program>,
    counts_calls: bool,
}

impl Case {
    fn name(&self) -> String {
        format!("{}: {}", self.group, job_name(&self.job))
    }
}

const PASS: Program = Program::Origin {
    snapshots: 0,
    chunk: 4096,
};
const RAW: Program = Program::Raw { iothread: false };
const RAW_IOTHREAD: Program = Program::Raw { iothread: true };

fn overlay(cluster: u64) -> Program {
    Program::Overlay {
        cluster,
        subclusters: false,
    }
}

fn job(kind: Kind, block: u64, depth: usize, time: Duration) -> Job {
    Job {
        kind,
        place: Place::Random,
        block,
        depth,
        queues: 1,
        polls: true,
        time,
    }
}

/// Reads and writes of the raw file, without snapshots.
fn pass_through(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    let time = options.time();
    let mut add = |job: Job, fio: bool| {
        let mut programs = vec![PASS, RAW, RAW_IOTHREAD];
        if fio && job.kind != Kind::Mixed {
            programs.push(Program::Fio);
        }
        cases.push(Case {
            group: "pass-through",
            counts_calls: job.block == 4096 && job.kind != Kind::Mixed && !job.polls,
            job,
            copied: false,
            programs,
        });
    };
    for kind in [Kind::Read, Kind::Write] {
        for depth in [1, 32, 128] {
            add(job(kind, 4096, depth, time), true);
        }
        for depth in [1, 32] {
            add(
                Job {
                    polls: false,
                    ..job(kind, 4096, depth, time)
                },
                false,
            );
        }
        for depth in [1, 32] {
            add(job(kind, 64 << 10, depth, time), true);
        }
        add(job(kind, 1 << 20, 4, time), true);
    }
    add(job(Kind::Mixed, 4096, 32, time), false);
    for polls in [true, false] {
        let two = Job {
            queues: 2,
            polls,
            ..job(Kind::Read, 4096, 32, time)
        };
        add(two, false);
    }
    cases
}

/// Writes through views whose chunks have all been copied.
fn rewrite(options: &Options) -> Vec<Case> {
    let time = options.time();
    let mut cases = Vec::new();
    let views = [
        Program::Origin {
            snapshots: 1,
            chunk: 4096,
        },
        Program::Origin {
            snapshots: 8,
            chunk: 64 << 10,
        },
        Program::Snapshot { chunk: 4096 },
        Program::Snapshot { chunk: 64 << 10 },
    ];
    for view in views {
        for kind in [Kind::Read, Kind::Write] {
            let mut programs = vec![view, PASS, Program::Fio];
            if let Program::Snapshot { chunk } = view {
                programs.push(overlay(chunk));
            }
            cases.push(Case {
                group: "all copied",
                job: job(kind, 4096, 32, time),
                copied: true,
                programs,
                counts_calls: false,
            });
        }
    }
    cases
}

/// The overlays that copy as much.
fn overlays(chunk: u64) -> Vec<Program> {
    let mut overlays = vec![overlay(chunk)];
    if chunk == 4096 {
        overlays.push(Program::Overlay {
            cluster: 128 << 10,
            subclusters: true,
        });
    }
    overlays
}

/// The first write of every chunk.
fn first_write(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |group, ours, peers: &[Program], step: u64, depth| {
        let mut programs = vec![ours];
        programs.extend(peers);
        cases.push(Case {
            group,
            job: Job {
                place: Place::OnceEvery(step),
                ..job(Kind::Write, 4096, depth, options.time())
            },
            copied: false,
            programs,
            counts_calls: false,
        });
    };
    let depths: &[usize] = if options.short { &[32] } else { &[1, 32, 128] };
    for &depth in depths {
        for chunk in [4096, 64 << 10] {
            let name = if chunk == 4096 {
                "first write, snapshot 4K"
            } else {
                "first write, snapshot 64K"
            };
            let peers = overlays(chunk);
            add(name, Program::Snapshot { chunk }, &peers, chunk, depth);
            let origin = |snapshots| Program::Origin { snapshots, chunk };
            let limit = |snapshots| Program::Limit { snapshots, chunk };
            let name = if chunk == 4096 {
                "first write, origin 4K"
            } else {
                "first write, origin 64K"
            };
            let peers = [
                Program::CopyBeforeWrite,
                Program::OriginAllocated { chunk },
                limit(1),
                origin(8),
                limit(8),
            ];
            add(name, origin(1), &peers, chunk, depth);
        }
    }
    // What a record saves depends on the depth.
    let depths: &[usize] = if options.short { &[1, 32] } else { depths };
    for &depth in depths {
        for chunk in [4096, 64 << 10] {
            let name = if chunk == 4096 {
                "first write, deferred snapshot 4K"
            } else {
                "first write, deferred snapshot 64K"
            };
            let mut peers = overlays(chunk);
            peers.push(Program::Snapshot { chunk });
            add(name, Program::Deferred { chunk }, &peers, chunk, depth);
        }
    }
    cases
}

/// One measurement of a back end.
fn measure(disks: &Disks, case: &Case, program: Program) -> Measurement {
    match program {
        Program::Fio => return fio(disks, &case.job, &[]),
        Program::Limit { snapshots, chunk } => return limit(disks, &case.job, snapshots, chunk),
        _ => {}
    }
    let backend = if case.copied {
        disks.start_copied(program)
    } else {
        disks.start(program)
    };
    sync();
    let device = DeviceCounters::of(disks.folder());
    let cpu = cpu_time(backend.pid());
    let outcome = load::run(&backend.socket, &case.job);
    let cpu = cpu_time(backend.pid()).saturating_sub(cpu);
    let device = device.and_then(|before| Some(DeviceCounters::of(disks.folder())?.since(before)));
    Measurement::new(&outcome, cpu, device)
}

/// First writes to a disk that does one I/O after the other: a chunk is read once, written
/// to each snapshot, and the guest's data are written, each as fast as many of them at once;
/// a write of entries and its flush are shared by all requests in flight.
fn limit(disks: &Disks, job: &Job, snapshots: usize, chunk: u64) -> Measurement {
    let seconds = |kind, block, depth, options: &[&str]| {
        let job = Job {
            kind,
            block,
            depth,
            ..*job
        };
        1.0 / fio(disks, &job, options).per_second
    };
    let depth = job.depth;
    let entries = seconds(Kind::Write, 4096, 1, &["--fdatasync=1"]);
    let time = seconds(Kind::Read, chunk, depth, &[])
        + snapshots as f64 * seconds(Kind::Write, chunk, depth, &[])
        + seconds(Kind::Write, job.block, depth, &[])
        + entries / depth as f64;
    Measurement {
        per_second: 1.0 / time,
        ..Measurement::default()
    }
}

fn fio(disks: &Disks, job: &Job, options: &[&str]) -> Measurement {
    let rw = match job.kind {
        Kind::Read => "randread",
        Kind::Write => "randwrite",
        Kind::Mixed => "randrw",
    };
    sync();
    let output = pinned("fio")
        .args([
            "--name=bench",
            "--ioengine=io_uring",
            "--direct=1",
            "--registerfiles=1",
        ])
        .args(["--time_based", "--norandommap", "--output-format=json"])
        .args(options)
        .arg(format!("--filename={}", disks.text("disk.img")))
        .arg(format!("--rw={rw}"))
        .arg(format!("--bs={}", job.block))
        .arg(format!("--iodepth={}", job.depth * job.queues))
        .arg(format!("--runtime={}ms", job.time.as_millis()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map(|at| &text[at..]).unwrap_or("");
    let all: serde_json::Value = serde_json::from_str(json).expect("the output of fio");
    let result = &all["jobs"][0];
    let side = match job.kind {
        Kind::Write => &result["write"],
        _ => &result["read"],
    };
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let percentile = |name: &str| number(&side["clat_ns"]["percentile"][name]) / 1000.0;
    let busy = number(&result["usr_cpu"]) + number(&result["sys_cpu"]);
    let per_second = number(&side["iops"]);
    Measurement {
        per_second,
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        p999: percentile("99.900000"),
        cpu: busy / 100.0 * 1e6 / per_second.max(1.0),
        flushes: None,
        written: None,
    }
}

/// System calls of the back end for each request, counted by strace in a run apart.
fn calls(disks: &Disks, case: &Case, program: Program) -> Option<f64> {
    if program == Program::Fio || !is_installed("strace") {
        return None;
    }
    let backend: Backend = disks.start(program);
    let log = disks.path("strace.log");
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-qq", "-o"])
        .arg(&log)
        .args(["-p", &backend.pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    std::thread::sleep(Duration::from_millis(500));
    let outcome = load::run(&backend.socket, &case.job);
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).ok()?;
    strace.wait().ok()?;
    let log = std::fs::read_to_string(log).ok()?;
    // The last line: "100.00 SECONDS USECS/CALL CALLS [ERRORS] total".
    let total = log.lines().find(|line| line.ends_with(" total"))?;
    let count: f64 = total.split_whitespace().nth(3)?.parse().ok()?;
    Some(count / outcome.requests.max(1) as f64)
}

fn run(disks: &Disks, case: &Case, options: &Options) -> CaseResult {
    let programs: Vec<Program> = case
        .programs
        .iter()
        .copied()
        .filter(|program| program.needs().iter().all(|name| is_installed(name)))
        .collect();
    let mut series: Vec<Series> = programs
        .iter()
        .map(|program| Series {
            program: program.name(),
            rounds: Vec::new(),
            calls: None,
        })
        .collect();
    for round in 0..options.rounds() {
        let mut order: Vec<usize> = (0..programs.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            series[i].rounds.push(measure(disks, case, programs[i]));
        }
    }
    if case.counts_calls {
        for (series, program) in series.iter_mut().zip(&programs) {
            series.calls = calls(disks, case, *program);
        }
    }
    CaseResult {
        name: case.name(),
        series,
    }
}

fn main() {
    let options = Options::parse();
    let mut cases = pass_through(&options);
    cases.extend(rewrite(&options));
    cases.extend(first_write(&options));
    cases.retain(|case| options.wants(&case.name()));
    for folder in options.folders() {
        println!("\n{}\n\n{}", folder.display(), table::HEADER);
        let disks = Disks::new(&folder, options.size());
        let mut groups: Vec<(&str, Vec<CaseResult>)> = Vec::new();
        for case in &cases {
            let result = run(&disks, case, &options);
            table::print(&result);
            let group = case.group.split([',', ':']).next().unwrap_or(case.group);
            match groups.last_mut() {
                Some((name, results)) if *name == group => results.push(result),
                _ => groups.push((group, vec![result])),
            }
        }
        for (name, results) in groups {
            if let Some(plots) = &options.plots {
                let place = folder.file_name().unwrap_or_default().to_string_lossy();
                let file = format!("{place}-{}.svg", name.replace(' ', "-"));
                plot::ratios(&plots.join(file), &format!("{name} ({place})"), &results);
            }
        }
    }
}
