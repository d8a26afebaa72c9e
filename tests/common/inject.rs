//! Makes chosen system calls of a daemon fail or wait, switched on and off while it
//! runs.
//!
//! The kernel reports the calls named in [`TRAPPED`] to this process (a seccomp
//! filter with a listener), which lets them pass, answers them with an error, or
//! holds them until the test lets them go on. So the real program meets the fault,
//! and its files are whole again afterwards. io_uring is refused to the daemon, so
//! that it has to use these calls.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Where the daemon's side of the listener is kept for this process to fetch.
const LISTENER: i32 = 900;
/// Longest wait for a call that a test expects.
const PATIENCE: Duration = Duration::from_secs(60);

const TRAPPED: [u32; 6] = [
    libc::SYS_preadv as u32,
    libc::SYS_pwritev2 as u32,
    libc::SYS_fdatasync as u32,
    libc::SYS_fsync as u32,
    libc::SYS_rename as u32,
    libc::SYS_renameat2 as u32,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    /// `fdatasync`
    Flush,
    /// `fsync` of a file.
    Sync,
    /// `fsync` of a folder.
    SyncFolder,
    /// The file is the new name.
    Rename,
}

/// Calls of one kind on one file, that begin within `bytes`, fail with `errno`.
#[derive(Clone, Debug)]
pub struct Rule {
    pub call: Call,
    /// The end of the file's path.
    pub file: &'static str,
    /// Offsets; calls other than reads and writes have none and always match.
    pub bytes: Range<u64>,
    pub errno: i32,
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub call: Call,
    pub file: String,
    /// Of a read or write.
    pub offset: Option<u64>,
    /// A write with RWF_DSYNC.
    pub durable: bool,
}

/// Calls that are held until the test releases them.
struct Gate {
    call: Call,
    file: &'static str,
    bytes: Range<u64>,
    /// Of the calls that are held.
    waiting: Vec<u64>,
    open: bool,
}

#[derive(Default)]
struct Faults {
    rules: Vec<Rule>,
    /// Calls that were made to fail.
    hits: u64,
    gates: Vec<Gate>,
    /// All calls since [`Injector::record`].
    recorded: Option<Vec<Made>>,
}

/// The faults of one daemon.
pub struct Injector {
    faults: Arc<Mutex<Faults>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Puts the daemon that `command` starts under a filter.
pub fn filtered(command: &mut Command) -> &mut Command {
    // SAFETY: `install` makes system calls only, which is allowed after a fork.
    unsafe { command.pre_exec(install) }
}

/// Reports the calls in [`TRAPPED`], refuses io_uring, allows everything else.
fn program() -> [libc::sock_filter; TRAPPED.len() + 5] {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let trapped = TRAPPED.len();
    std::array::from_fn(|at| match at {
        0 => step(load, 0, 0), // the system call's number
        at if at <= trapped => {
            let to_report = (trapped + 3 - at - 1) as u8;
            step(equal, to_report, TRAPPED[at - 1])
        }
        at if at == trapped + 1 => step(equal, 2, libc::SYS_io_uring_setup as u32),
        at if at == trapped + 2 => step(end, 0, libc::SECCOMP_RET_ALLOW),
        at if at == trapped + 3 => step(end, 0, libc::SECCOMP_RET_USER_NOTIF),
        _ => step(end, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    })
}

fn install() -> std::io::Result<()> {
    let last_error = || Err(std::io::Error::last_os_error());
    let mut program = program();
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
        let faults = Arc::new(Mutex::new(Faults {
            rules: rules.to_vec(),
            ..Faults::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (faults, stop) = (Arc::clone(&faults), Arc::clone(&stop));
            std::thread::spawn(move || answer(&listener, &faults, &stop))
        };
        Self {
            faults,
            stop,
            thread: Some(thread),
        }
    }

    pub fn fail(&self, rule: Rule) {
        self.faults.lock().unwrap().rules.push(rule);
    }

    /// From here on everything works again; some call must have failed before.
    pub fn mend(&self) {
        until("a call meets a rule", || {
            self.faults.lock().unwrap().hits > 0
        });
        self.faults.lock().unwrap().rules.clear();
    }

    /// From here on these calls wait for [`Self::release`].
    pub fn hold(&self, call: Call, file: &'static str, bytes: Range<u64>) {
        self.faults.lock().unwrap().gates.push(Gate {
            call,
            file,
            bytes,
            waiting: Vec::new(),
            open: false,
        });
    }

    /// Returns when a call waits.
    pub fn until_held(&self) {
        until("a call is held", || {
            let faults = self.faults.lock().unwrap();
            faults.gates.iter().any(|gate| !gate.waiting.is_empty())
        });
    }

    /// Lets all go on that wait; nothing waits from here on.
    pub fn release(&self) {
        let mut faults = self.faults.lock().unwrap();
        faults.gates.iter_mut().for_each(|gate| gate.open = true);
    }

    /// From here on all calls are noted.
    pub fn record(&self) {
        self.faults.lock().unwrap().recorded = Some(Vec::new());
    }

    /// The calls since [`Self::record`].
    pub fn recorded(&self) -> Vec<Made> {
        self.faults.lock().unwrap().recorded.take().unwrap()
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn answer(listener: &OwnedFd, faults: &Mutex<Faults>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let released: Vec<u64> = {
            let mut faults = faults.lock().unwrap();
            let open = faults.gates.iter_mut().filter(|gate| gate.open);
            open.flat_map(|gate| std::mem::take(&mut gate.waiting))
                .collect()
        };
        for id in released {
            respond(listener, id, None);
        }
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
        if let Decision::Answer(errno) = decide(&asked, &mut faults.lock().unwrap()) {
            respond(listener, asked.id, errno);
        }
    }
}

/// Fails the call, or lets it pass.
fn respond(listener: &OwnedFd, id: u64, errno: Option<i32>) {
    let mut answer = libc::seccomp_notif_resp {
        id,
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

enum Decision {
    /// With this error, or none.
    Answer(Option<i32>),
    Hold,
}

fn decide(asked: &libc::seccomp_notif, faults: &mut Faults) -> Decision {
    let Some(made) = made(asked) else {
        return Decision::Answer(None); // its thread was killed meanwhile
    };
    if let Some(recorded) = &mut faults.recorded {
        recorded.push(made.clone());
    }
    let matches = |wanted: Call, file: &str, bytes: &Range<u64>| {
        let place = made.offset.is_none_or(|at| bytes.contains(&at));
        wanted == made.call && made.file.ends_with(file) && place
    };
    let gate = faults.gates.iter_mut();
    let mut gate = gate.filter(|g| !g.open && matches(g.call, g.file, &g.bytes));
    if let Some(gate) = gate.next() {
        gate.waiting.push(asked.id);
        return Decision::Hold;
    }
    let mut rules = faults.rules.iter();
    let hit = rules.find(|rule| matches(rule.call, rule.file, &rule.bytes));
    faults.hits += u64::from(hit.is_some());
    Decision::Answer(hit.map(|rule| rule.errno))
}

fn made(asked: &libc::seccomp_notif) -> Option<Made> {
    let arguments = &asked.data.args;
    let of_descriptor = |call, offset, durable| {
        let link = format!("/proc/{}/fd/{}", asked.pid, arguments[0]);
        let path = fs::read_link(link).ok()?;
        let call = match call {
            Call::Sync if path.is_dir() => Call::SyncFolder,
            call => call,
        };
        Some(Made {
            call,
            file: path.to_str()?.to_owned(),
            offset,
            durable,
        })
    };
    let renamed = |to| {
        Some(Made {
            call: Call::Rename,
            file: string(asked.pid, to)?,
            offset: None,
            durable: false,
        })
    };
    match i64::from(asked.data.nr) {
        libc::SYS_preadv => of_descriptor(Call::Read, Some(arguments[3]), false),
        libc::SYS_pwritev2 => {
            let durable = arguments[5] & libc::RWF_DSYNC as u64 != 0;
            of_descriptor(Call::Write, Some(arguments[3]), durable)
        }
        libc::SYS_fdatasync => of_descriptor(Call::Flush, None, false),
        libc::SYS_fsync => of_descriptor(Call::Sync, None, false),
        libc::SYS_rename => renamed(arguments[1]),
        libc::SYS_renameat2 => renamed(arguments[3]),
        _ => None,
    }
}

/// The string at an address of the daemon.
fn string(pid: u32, address: u64) -> Option<String> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        let at = address + bytes.len() as u64;
        memory.read_exact_at(&mut byte, at).ok()?;
        if byte == [0] {
            return String::from_utf8(bytes).ok();
        }
        bytes.push(byte[0]);
    }
}
