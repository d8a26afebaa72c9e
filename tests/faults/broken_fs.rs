//! A file system in user space over a folder, whose calls can be made to fail, to wait, or to lie.
//!
//! It has what a daemon needs for disks, COWs and a state file: one folder of regular files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use fuser::{BackgroundSession, Config, Errno};

use super::files::Files;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    /// `fsync` and `fdatasync`.
    Sync,
    /// Space for a file, and zeroes in it.
    Allocate,
    /// Making, renaming and removing files, and setting their sizes.
    Change,
}

/// What becomes of the calls that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Fail(i32),
    /// It waits until [`BrokenFs::mend`], and is carried out then.
    Wait,
}

/// For these calls on files whose names end so.
#[derive(Clone, Debug)]
pub struct Rule {
    pub ops: &'static [Op],
    pub file: &'static str,
    pub fate: Fate,
}

#[derive(Default)]
struct Faults {
    rules: Vec<Rule>,
    /// Modes of fallocate that are accepted and do nothing.
    lies: i32,
    /// Calls that met a rule or a lie.
    met: u64,
    /// Changes with each mending, which ends every wait.
    mended: u64,
}

/// A mounted file system; unmounted when dropped. Who uses its files must have ended before.
pub struct BrokenFs {
    session: Option<BackgroundSession>,
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

/// What the file system asks before each call.
pub struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
}

impl BrokenFs {
    /// `None` if nothing may be mounted here.
    pub fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["files", "mount"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut this = Self {
            session: None,
            shared,
            folder,
        };
        this.mount_again().then_some(this)
    }

    /// After [`Self::vanish`].
    pub fn mount_again(&mut self) -> bool {
        let files = Files::new(self.backing(""), Arc::clone(&self.shared));
        match fuser::spawn_mount(files, self.path(""), &Config::default()) {
            Ok(session) => self.session = Some(session),
            Err(e) => println!("skipped: no file system can be mounted here ({e})"),
        }
        self.session.is_some()
    }

    /// A file as its users see it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("mount").join(name)
    }

    /// The same file below.
    pub fn backing(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    pub fn rule(&self, ops: &'static [Op], file: &'static str, fate: Fate) {
        let rule = Rule { ops, file, fate };
        self.shared.faults.lock().unwrap().rules.push(rule);
    }

    /// These modes of fallocate succeed and do nothing, and everything is said to be a hole.
    pub fn lie_about(&self, modes: i32) {
        self.shared.faults.lock().unwrap().lies = modes;
    }

    /// Calls that met a rule or a lie so far.
    pub fn met(&self) -> u64 {
        self.shared.faults.lock().unwrap().met
    }

    /// Everything works again, and what waits goes on.
    pub fn mend(&self) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.rules.clear();
        faults.mended += 1;
        self.shared.changed.notify_all();
    }

    /// The connection to the kernel breaks, as if the program behind it had died: every call
    /// fails from now on. False if this cannot be done here.
    pub fn vanish(&mut self) -> bool {
        let device = fs::metadata(self.path("")).unwrap().dev();
        let control = tempfile::tempdir().unwrap();
        let at = control.path().to_str().unwrap();
        if !run(&["mount", "-t", "fusectl", "none", at]) {
            return false;
        }
        let minor = rustix::fs::minor(device).to_string();
        let aborted = fs::write(control.path().join(minor).join("abort"), "1");
        assert!(run(&["umount", at]));
        aborted.unwrap();
        self.unmount();
        true
    }

    fn unmount(&mut self) {
        if let Some(session) = self.session.take() {
            // Its files may still be open.
            run(&["umount", "-l", self.path("").to_str().unwrap()]);
            drop(session);
        }
    }
}

impl Drop for BrokenFs {
    fn drop(&mut self) {
        self.mend();
        self.unmount();
    }
}

/// Runs a program of the system; whether it succeeded.
pub fn run(words: &[&str]) -> bool {
    let done = std::process::Command::new(words[0])
        .args(&words[1..])
        .output();
    let done = done.unwrap();
    if !done.status.success() {
        println!("{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    done.status.success()
}

impl Shared {
    /// Carries `act` out, with the error that it is to end with. If it waits, this returns at
    /// once, and nothing else waits for it.
    pub fn call(
        self: &Arc<Self>,
        op: Op,
        name: &str,
        act: impl FnOnce(Option<Errno>) + Send + 'static,
    ) {
        let mut faults = self.faults.lock().unwrap();
        let mut rules = faults.rules.iter();
        let rule = rules.find(|r| r.ops.contains(&op) && name.ends_with(r.file));
        let fate = rule.map(|rule| rule.fate);
        faults.met += u64::from(fate.is_some());
        let now = faults.mended;
        drop(faults);
        match fate {
            None => act(None),
            Some(Fate::Fail(errno)) => act(Some(Errno::from_i32(errno))),
            Some(Fate::Wait) => {
                let this = Arc::clone(self);
                std::thread::spawn(move || {
                    let faults = this.faults.lock().unwrap();
                    let until = this.changed.wait_while(faults, |f| f.mended == now);
                    drop(until.unwrap());
                    act(None);
                });
            }
        }
    }

    /// The error with which a call ends that cannot wait.
    pub fn refusal(&self, op: Op, name: &str) -> Option<Errno> {
        let mut faults = self.faults.lock().unwrap();
        let mut rules = faults.rules.iter();
        let refused = rules.find_map(|rule| match rule.fate {
            Fate::Fail(errno) if rule.ops.contains(&op) && name.ends_with(rule.file) => Some(errno),
            Fate::Fail(_) | Fate::Wait => None,
        });
        faults.met += u64::from(refused.is_some());
        refused.map(Errno::from_i32)
    }

    pub fn lies(&self) -> bool {
        self.faults.lock().unwrap().lies != 0
    }

    pub fn lies_about(&self, mode: i32) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let lies = faults.lies & mode != 0;
        faults.met += u64::from(lies);
        lies
    }
}
