//! `strace` on all threads of a daemon.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Completed calls by name.
#[derive(Clone, Debug, Default)]
pub struct Calls(BTreeMap<String, usize>);

impl Calls {
    pub fn all(&self) -> usize {
        self.0.values().sum()
    }

    pub fn of(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn since(&self, before: &Self) -> Self {
        let new = |(name, count): (&String, &usize)| (name.clone(), count - before.of(name));
        let all = self.0.iter().map(new);
        Self(all.filter(|(_, count)| *count > 0).collect())
    }
}

/// Whether a process of one's own can be traced here.
pub fn is_possible() -> bool {
    let run = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    run.is_ok_and(|status| status.success())
}

pub struct Trace {
    strace: Child,
    file: tempfile::NamedTempFile,
}

fn is_traced(process: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status"));
        // A thread that has ended meanwhile counts for nothing.
        status.map_or(true, |s| !s.contains("TracerPid:\t0\n"))
    })
}

impl Trace {
    /// Returns when all threads are traced.
    pub fn attach(process: u32) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-s", "0", "-p", &process.to_string(), "-o"])
            .arg(file.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !is_traced(process) {
            assert!(start.elapsed() < Duration::from_secs(60), "strace hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        let trace = Self { strace, file };
        trace.settle();
        trace
    }

    /// Waits until the daemon makes no calls.
    pub fn settle(&self) {
        let start = Instant::now();
        let mut last = None;
        loop {
            let len = self.file.as_file().metadata().unwrap().len();
            if last == Some(len) {
                return;
            }
            last = Some(len);
            assert!(start.elapsed() < Duration::from_secs(60), "it never sleeps");
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    /// The calls that have been completed, once the daemon makes no more.
    pub fn calls(&self) -> Calls {
        self.settle();
        let mut calls = BTreeMap::new();
        for line in fs::read_to_string(self.file.path()).unwrap().lines() {
            // "123 write(...) = 8", "123 write(... <unfinished ...>" and later
            // "123 <... write resumed>...) = 8".
            let text = line
                .split_once(' ')
                .map_or("", |(_, text)| text.trim_start());
            if text.ends_with("<unfinished ...>") {
                continue;
            }
            let name = match text.strip_prefix("<... ") {
                Some(resumed) => resumed.split_once(' ').map(|(name, _)| name),
                None => text.split_once('(').map(|(name, _)| name),
            };
            if let Some(name) = name {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        Calls(calls)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // On SIGTERM it lets the daemon go on.
        let pid = rustix::process::Pid::from_child(&self.strace);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.strace.wait();
    }
}
