//! A small file system of its own, which can be filled to the last block, and emptied.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of it. What is not taken away by [`Full`] is far more than the soak uses.
const SIZE: u64 = 160 << 20;

/// A mounted ext4, in memory where the system has a file system for that.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `None` if nothing may be mounted here.
    pub fn new() -> Option<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("snapback-");
        let folder = builder
            .tempdir_in("/dev/shm")
            .or_else(|_| builder.tempdir());
        let made = Self {
            folder: folder.unwrap(),
        };
        let (image, at) = (made.folder.path().join("image"), made.path());
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        fs::create_dir(&at).unwrap();
        let (image, at) = (image.to_str().unwrap(), at.to_str().unwrap());
        let done = run(&["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image])
            && run(&["mount", "-o", "loop", image, at]);
        if !done {
            println!("without a full file system: nothing can be mounted here");
        }
        done.then_some(made)
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Takes all the space that is left, until what is returned is dropped.
    pub fn fill(&self) -> Full {
        let path = self.path().join("filler");
        let file = File::create(&path).unwrap();
        let (mut end, mut step) = (0, SIZE);
        while step >= 1024 {
            match fallocate(&file, FallocateFlags::empty(), end, step) {
                Ok(()) => end += step,
                Err(_) => step /= 2,
            }
        }
        Full { path }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        run(&["umount", "-l", self.path().to_str().unwrap()]);
    }
}

/// The file system has no space.
pub struct Full {
    path: PathBuf,
}

impl Drop for Full {
    fn drop(&mut self) {
        // It is away already if the whole file system is.
        let _ = fs::remove_file(&self.path);
        // Its blocks are free when the journal has its removal.
        let folder = File::open(self.path.parent().unwrap());
        let _ = folder.map(rustix::fs::syncfs);
    }
}

fn run(command: &[&str]) -> bool {
    let mut program = Command::new(command[0]);
    program
        .args(&command[1..])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    program.output().is_ok_and(|output| output.status.success())
}
