//! Places for files: loop devices, and small file systems.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// A loop device, detached at the end.
pub struct Loop(pub String);

impl Loop {
    /// `None` if the system does not let us have one.
    pub fn attach(file: &Path) -> Option<Self> {
        let asked = ["-f", "--show", file.to_str().unwrap()];
        let done = Command::new("losetup").args(asked).output().ok()?;
        if !done.status.success() {
            let why = String::from_utf8_lossy(&done.stderr);
            println!("skipped: no loop devices here ({why})");
            return None;
        }
        let name = String::from_utf8(done.stdout).unwrap();
        Some(Self(name.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(&["losetup", "-d", &self.0]);
    }
}

/// A file system of its own, unmounted at the end.
pub struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    /// `None` if nothing may be mounted here.
    pub fn mount(kind: &str, options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("mount");
        fs::create_dir(&at).unwrap();
        let at = at.to_str().unwrap();
        if !run(&["mount", "-t", kind, "-o", options, "small", at]) {
            println!("skipped: nothing can be mounted here");
            return None;
        }
        Some(Self { folder })
    }

    /// An ext4 of so many bytes, without space that is reserved for root.
    pub fn ext4(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("mount"));
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(&at).unwrap();
        let (image, at) = (image.to_str().unwrap(), at.to_str().unwrap());
        let made = run(&["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image]);
        if !made || !run(&["mount", "-t", "ext4", "-o", "loop", image, at]) {
            println!("skipped: no ext4 can be mounted here");
            return None;
        }
        Some(Self { folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("mount").join(name)
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.path("filler")).unwrap();
        // What was put by for data on its way is free when the data have arrived.
        for _ in 0..4 {
            for len in [65536, 4096, 512, 1] {
                while file.write_all(&vec![1; len]).is_ok() {}
            }
            file.sync_all().unwrap();
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(&["umount", "-l", self.path("").to_str().unwrap()]);
    }
}
