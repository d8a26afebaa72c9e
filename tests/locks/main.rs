//! Images that other processes have open: QEMU, a loop device, any program.
//!
//! These tests start processes and expect locks to be free again, so they run one at a
//! time, and apart from all others: between fork and exec a child has all descriptors
//! of its parent, and with them the locks.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snapback::io::{BlockFile, OpenError, OpenOptions};

fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A file of `len` bytes.
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.0.path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

fn open(path: &Path) -> Result<BlockFile, OpenError> {
    BlockFile::open(path, OpenOptions::default())
}

fn reader(path: &Path) -> Result<BlockFile, OpenError> {
    BlockFile::open(path, OpenOptions::read_only())
}

#[test]
fn a_process_that_has_the_lock_is_named_and_a_lock_ends_with_its_process() {
    let _alone = alone();
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let held = open(&path).unwrap();
    let theirs = held.as_fd().try_clone_to_owned().unwrap();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600").stdin(Stdio::from(theirs));
    let mut child = sleeper.spawn().unwrap();
    drop((held, sleeper));
    let named = format!("sleep (pid {})", child.id());
    let start = Instant::now();
    let user = loop {
        match open(&path) {
            // The kernel gives the child its name a moment after its memory.
            Err(OpenError::InUse { user, .. })
                if user.as_ref() != Some(&named) && start.elapsed() < Duration::from_secs(20) => {}
            Err(OpenError::InUse { user, .. }) => break user,
            other => panic!("{other:?}"),
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(user, Some(named));
    open(&path).unwrap();
}

/// A loop device over a file, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(backing: &Path) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let output = losetup.args(["--find", "--show"]).arg(backing).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ))),
            _ => {
                eprintln!("skipped: loop devices are not allowed here");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn block_device_is_measured_named_and_claimed() {
    let _alone = alone();
    let dir = Dir::new();
    let backing = dir.file("backing", 1 << 20);
    let Some(device) = Loop::new(&backing) else {
        return;
    };
    let file = open(&device.0).unwrap();
    assert!(file.is_device());
    assert_eq!((file.size(), file.block_size()), (1 << 20, 512));
    let name = device.0.file_name().unwrap().to_str().unwrap().to_owned();
    let numbers = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap();
    assert_eq!(file.device_string(), numbers.trim());
    let path = device.0.clone();
    assert_eq!(
        file.grow(2 << 20),
        Err(OpenError::FixedSize {
            path: path.clone(),
            size: 1 << 20
        })
    );
    // The device's claim, or the lock: either way the second writer is kept out.
    let second = open(&path).unwrap_err();
    assert!(
        matches!(
            second,
            OpenError::DeviceBusy { .. } | OpenError::InUse { .. }
        ),
        "{second}"
    );
    let create = OpenOptions {
        create: Some(4096),
        ..OpenOptions::default()
    };
    assert_eq!(
        BlockFile::open(&path, create).unwrap_err(),
        OpenError::Exists { path }
    );
}

#[test]
fn qemu_respects_our_locks_and_we_respect_its() {
    let _alone = alone();
    let dir = Dir::new();
    let path = dir.file("image", 1 << 20);
    let qemu_opens = |mode: &[&str]| {
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "raw", "-c", "read 0 512"])
            .args(mode)
            .arg(&path);
        qemu.output().ok().map(|output| output.status.success())
    };
    let Some(free) = qemu_opens(&[]) else {
        eprintln!("skipped: no qemu-io here");
        return;
    };
    assert!(free);
    let writer = open(&path).unwrap();
    assert_eq!(
        (qemu_opens(&[]), qemu_opens(&["-r"])),
        (Some(false), Some(false))
    );
    drop(writer);
    let shared = reader(&path).unwrap();
    assert_eq!(
        (qemu_opens(&[]), qemu_opens(&["-r"])),
        (Some(false), Some(true))
    );
    drop(shared);

    for (mode, reader_fits) in [(&[][..], false), (&["-r"], true)] {
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "raw"]).args(mode).arg(&path);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = qemu.spawn().unwrap();
        let user = Some(format!("qemu-io (pid {})", child.id()));
        let refused = Err(OpenError::InUse {
            path: path.clone(),
            user,
        });
        // Its prompt says that it has the image open (or has failed to).
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
        let writer = open(&path).map(drop);
        let read = reader(&path).map(drop);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(writer, refused);
        assert_eq!(read, if reader_fits { Ok(()) } else { refused });
    }
}
