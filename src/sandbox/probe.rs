//! For tests of debug builds: every thread tries what it must not be able to do, and says what came
//! of it. A release build has nothing of this.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `try`: each thread tries. `execute NAME`: the thread of that name executes a program in its place.
/// `panic NAME`: it panics.
const PROBE: &str = "SNAPBACK_PROBE";
/// It exists, and does nothing.
const PROGRAM: &str = "/bin/true";

/// Tries on this thread, if that is asked for.
pub fn probe() {
    let Some(order) = std::env::var_os(PROBE) else {
        return;
    };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    assert!(order != *format!("panic {name}"), "asked for");
    if order == *format!("execute {name}") {
        let error = Command::new(PROGRAM).exec();
        eprintln!("probe {name}: not killed: {error}");
        return;
    }
    // No list has this call.
    let unlisted = rustix::process::getpriority_process(None).map_err(io::Error::from);
    let file = File::open("/proc/self/status");
    let written = File::options().append(true).open("/dev/null");
    let ring = io_uring::IoUring::new(1);
    let connection = TcpStream::connect(("127.0.0.1", 1));
    let process = Command::new(PROGRAM).spawn();
    eprintln!(
        "probe {name}: unlisted={} read={} write={} ring={} tcp={} process={};",
        end(unlisted),
        end(file),
        end(written),
        end(ring),
        end(connection),
        end(process)
    );
}

fn end<T>(result: io::Result<T>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => "EPERM",
        Err(_) => "another-error",
    }
}
