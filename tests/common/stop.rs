//! A stop within a second, without the time in which the machine kept a thread waiting for a
//! processor. That of an idle daemon at the same moment is reported with a failure.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use yardstick::Yardstick;

#[path = "yardstick.rs"]
mod yardstick;

/// After this a daemon ignores the signal.
const HANGS: Duration = Duration::from_secs(60);
/// The limit of a stop.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A daemon with a snapshot and without a guest.
struct Idle {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Idle {
    fn start(program: &OsStr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = File::create(folder.path().join("idle.img")).unwrap();
        image.set_len(1 << 20).unwrap();
        let mut child = Command::new(program)
            .current_dir(folder.path())
            .args(["serve", "--origin", "idle.img", "--control", "c.sock"])
            .args(["--snapshot", "name=s,cow=s.cow,size=1M"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while UnixStream::connect(folder.path().join("c.sock")).is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "ended at its start");
            assert!(start.elapsed() < HANGS, "no control socket");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self {
            child,
            _folder: folder,
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the daemon `child` of `program` by SIGTERM; panics if that takes a second or more.
#[track_caller]
pub fn at_once(program: &OsStr, child: &mut Child) -> (ExitStatus, Duration) {
    let mut idle = Idle::start(program);
    let yardstick = Yardstick::start();
    let start = Instant::now();
    for child in [&idle.child, &*child] {
        kill_process(Pid::from_child(child), Signal::TERM).unwrap();
    }
    let (mut ended, mut idle_took) = (None, None);
    while ended.is_none() || idle_took.is_none() {
        if ended.is_none() {
            let status = child.try_wait().unwrap();
            ended = status.map(|status| (status, start.elapsed()));
        }
        if idle_took.is_none() && idle.child.try_wait().unwrap().is_some() {
            idle_took = Some(start.elapsed());
        }
        assert!(start.elapsed() < HANGS, "the daemon ignores SIGTERM");
        std::thread::sleep(Duration::from_millis(2));
    }
    let ((status, took), idle_took) = ended.zip(idle_took).unwrap();
    let busy = yardstick.end().between(start, start + took);
    assert!(
        took < AT_ONCE + busy,
        "the daemon took {took:?} to end, an idle one {idle_took:?}; the machine was busy for {busy:?}"
    );
    (status, took)
}
