//! Images that other processes have open: QEMU, a loop device, any program.
//!
//! These tests start processes and expect locks to be free again, so they run one at a
//! time, and apart from all others: between fork and exec a child has all descriptors
//! of its parent, and with them the locks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod children;
#[path = "../common/limited.rs"]
mod limited;
mod names;
mod qemu;
mod world;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snapback::io::{BlockFile, Claim, Lock, OpenError, OpenOptions};

use world::Loop;

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

/// Fails unless a lock that QEMU would take to write is refused at this moment.
fn assert_held(path: &Path) {
    let look = OpenOptions {
        lock: Lock::Look,
        ..OpenOptions::default()
    };
    let result = BlockFile::open(path, look);
    assert!(result.is_err(), "{} is free", path.display());
}

#[test]
fn a_claim_keeps_everybody_else_out_until_the_lock_is_taken() {
    let _alone = alone();
    let dir = Dir::new();
    let path = dir.file("image", 4096);
    let first = open(&path).unwrap();
    let claim = Claim::on([path.as_path()]);
    // It is no obstacle to who has the lock, nor to the next attempt of who claims.
    assert_held(&path);
    drop(first);
    assert_held(&path);
    let second = open(&path).unwrap();
    drop(claim);
    assert_held(&path);
    drop(second);
    open(&path).unwrap();
}
