//! Limits of arguments, and the lists in the documentation.
#![allow(unsafe_code)] // Test code: makes mappings of memory, which nobody uses.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::*;

/// On a thread with the filters of the process, and that of `kind`.
fn limited<T: Send + 'static>(kind: Kind, act: fn() -> T) -> T {
    let thread = std::thread::spawn(move || {
        put_on(&of_process().unwrap()).unwrap();
        put_on(&[allow(kind).unwrap()]).unwrap();
        act()
    });
    thread.join().unwrap()
}

/// What comes of it to map memory that can be executed.
fn map(protection: ProtFlags) -> Result<(), Errno> {
    // SAFETY: the kernel chooses a free place, and nothing is done with it.
    let mapped =
        unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, MapFlags::PRIVATE) };
    // SAFETY: it is the place that was mapped above.
    mapped.map(|place| unsafe { munmap(place, 4096) }.unwrap())
}

#[test]
fn memory_cannot_be_executed_and_limits_and_sockets_are_as_at_the_start() {
    let found = limited(Kind::Process, || {
        let limit = Rlimit {
            current: Some(16),
            maximum: Some(16),
        };
        let told = rustix::process::getrlimit(Resource::Nofile);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
        let unix = UnixStream::pair().map(drop);
        (
            map(ProtFlags::READ | ProtFlags::WRITE),
            map(ProtFlags::READ | ProtFlags::EXEC),
            rustix::process::setrlimit(Resource::Nofile, limit),
            told.current.is_some(),
            tcp.map_err(|e| e.raw_os_error()),
            unix.map_err(|e| e.raw_os_error()),
        )
    });
    let refused = Err(Errno::PERM);
    let tcp = Err(Some(libc::EPERM));
    assert_eq!(found, (Ok(()), refused, refused, true, tcp, Ok(())));
}

#[test]
fn threads_are_started_and_processes_are_not() {
    for (kind, may) in [
        (Kind::Process, true),
        (Kind::Queue, true),
        (Kind::Metrics, true),
        (Kind::Disk, false),
        (Kind::Idler, false),
        (Kind::Events, false),
        (Kind::Monitor, false),
    ] {
        let started = limited(kind, || std::thread::Builder::new().spawn(|| 1).is_ok());
        assert_eq!(started, may, "{kind:?}");
        let ran = limited(kind, || {
            std::process::Command::new("/bin/true").spawn().map(drop)
        });
        let errno = ran.map_err(|e| e.raw_os_error());
        assert_eq!(errno.unwrap_err(), Some(libc::EPERM), "{kind:?}");
    }
}

#[test]
fn signals_go_nowhere() {
    let sent = limited(Kind::Process, || {
        rustix::process::kill_process(Pid::INIT, Signal::CONT)
    });
    assert_eq!(sent, Err(Errno::PERM));
}

/// The constants of `calls.rs` with the names that follow `prefix` in them.
fn names<'a>(source: &'a str, prefix: &str) -> BTreeMap<&'a str, Vec<&'a str>> {
    let constants = source.split("pub const ").skip(1);
    let read = |text: &'a str| {
        let (name, body) = text.split_once(':').unwrap();
        let body = body.split_once("];").unwrap().0;
        let found = body.split(prefix).skip(1);
        let word = |text: &'a str| text.split(',').next().unwrap();
        (name, found.map(word).collect())
    };
    constants.map(read).collect()
}

#[test]
fn the_documentation_has_the_lists() {
    let document = include_str!("../../docs/sandbox.md");
    let (_, document) = document.split_once("The lists, whose source").unwrap();
    let lists = names(include_str!("calls.rs"), "libc::SYS_");
    assert!(lists.len() > 12, "{lists:?}");
    for (list, calls) in lists {
        if calls.is_empty() {
            continue;
        }
        let row = document
            .lines()
            .find(|line| line.starts_with(&format!("| {} |", list.to_lowercase())));
        let row = row.unwrap_or_else(|| panic!("docs/sandbox.md has no row for {list}"));
        let told: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert_eq!(told, calls, "{list}");
    }
}
