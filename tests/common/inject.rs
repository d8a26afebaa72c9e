//! Makes chosen system calls of a daemon fail, switched on and off while it runs.
//!
//! The kernel hands `preadv`, `pwritev2` and `fdatasync` of the daemon to this
//! process (a seccomp filter with a listener), which lets them pass or answers
//! them with an error. So it is the real program that meets the fault, on files
//! that are whole again afterwards. There is no io_uring for it, so that it has to
//! use these calls.
#![allow(unsafe_code)]

use std::fs;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Where the daemon's side of the listener is kept for this process to fetch.
const LISTENER: i32 = 900;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Flush,
}

/// Calls of one kind on one file, that begin within `bytes`, fail with `errno`.
#[derive(Clone, Debug)]
pub struct Rule {
    pub call: Call,
    /// The end of the file's path.
    pub file: &'static str,
    /// Offsets; a flush has none and always matches.
    pub bytes: Range<u64>,
    pub errno: i32,
}

/// The faults of one daemon.
pub struct Injector {
    rules: Arc<Mutex<Vec<Rule>>>,
    /// Calls that were made to fail.
    hits: Arc<Mutex<u64>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Puts the daemon that `command` starts under a filter.
pub fn filtered(command: &mut Command) -> &mut Command {
    // SAFETY: `install` makes system calls only, which is allowed after a fork.
    unsafe { command.pre_exec(install) }
}

fn install() -> std::io::Result<()> {
    let last_error = || Err(std::io::Error::last_os_error());
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(load, 0, 0, 0), // the system call's number
        step(equal, 4, 0, libc::SYS_preadv as u32),
        step(equal, 3, 0, libc::SYS_pwritev2 as u32),
        step(equal, 2, 0, libc::SYS_fdatasync as u32),
        step(equal, 2, 0, libc::SYS_io_uring_setup as u32),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(end, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(end, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain system calls; `program` outlives the one that reads it.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return last_error();
        }
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        // Outlives the exec, unlike the one that the kernel gave.
        if listener < 0 || libc::dup2(listener as i32, LISTENER) < 0 {
            return last_error();
        }
    }
    Ok(())
}

impl Injector {
    /// Answers for a daemon that was started [`filtered`], with `rules` from its first call on.
    pub fn attach(daemon: &Child, rules: &[Rule]) -> Self {
        let pidfd = pidfd_open(Pid::from_child(daemon), PidfdFlags::empty()).unwrap();
        let listener = pidfd_getfd(pidfd, LISTENER, PidfdGetfdFlags::empty()).unwrap();
        let (rules, hits) = (Arc::new(Mutex::new(rules.to_vec())), Arc::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (rules, hits, stop) = (Arc::clone(&rules), Arc::clone(&hits), Arc::clone(&stop));
            std::thread::spawn(move || answer(&listener, &rules, &hits, &stop))
        };
        Self {
            rules,
            hits,
            stop,
            thread: Some(thread),
        }
    }

    pub fn fail(&self, rule: Rule) {
        self.rules.lock().unwrap().push(rule);
    }

    /// From here on everything works again; some call must have failed before.
    pub fn mend(&self) {
        let start = Instant::now();
        while *self.hits.lock().unwrap() == 0 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no call met a rule"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.rules.lock().unwrap().clear();
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn answer(listener: &OwnedFd, rules: &Mutex<Vec<Rule>>, hits: &Mutex<u64>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        if poll(&mut fds, Some(&tick)) != Ok(1) {
            continue;
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            return; // the daemon is gone
        }
        // SAFETY: all zeroes is a value of this plain structure, as the kernel wants it.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills the structure that it is given.
        let got = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut asked,
            )
        };
        if got != 0 {
            continue; // its thread was killed meanwhile
        }
        let errno = matching(&asked, &rules.lock().unwrap());
        *hits.lock().unwrap() += u64::from(errno.is_some());
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: errno.map_or(0, |errno| -errno),
            flags: match errno {
                Some(_) => 0,
                None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            },
        };
        // SAFETY: the kernel reads the structure that it is given. That the thread
        // may be gone by now does not matter.
        unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
    }
}

fn matching(asked: &libc::seccomp_notif, rules: &[Rule]) -> Option<i32> {
    let (call, offset) = match i64::from(asked.data.nr) {
        libc::SYS_preadv => (Call::Read, asked.data.args[3]),
        libc::SYS_pwritev2 => (Call::Write, asked.data.args[3]),
        _ => (Call::Flush, 0),
    };
    let link = format!("/proc/{}/fd/{}", asked.pid, asked.data.args[0]);
    let path = fs::read_link(link).ok()?;
    let path = path.to_str()?;
    let hit = rules.iter().find(|rule| {
        let place = call == Call::Flush || rule.bytes.contains(&offset);
        rule.call == call && path.ends_with(rule.file) && place
    });
    hit.map(|rule| rule.errno)
}
