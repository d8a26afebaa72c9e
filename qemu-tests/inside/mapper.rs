//! Devices of device-mapper whose tables are exchanged while they are in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// A device of one target, removed at the end.
pub struct Mapped {
    name: &'static str,
    sectors: u64,
    /// What it is made of, and where that begins.
    below: (PathBuf, u64),
}

impl Mapped {
    /// `sectors` of `below` from `first` on.
    pub fn linear(name: &'static str, sectors: u64, below: &Path, first: u64) -> Self {
        let made = Self {
            name,
            sectors,
            below: (below.to_owned(), first),
        };
        run(
            "dmsetup",
            &["create", name, "--table", &made.line("linear", "")],
        );
        made
    }

    fn line(&self, target: &str, more: &str) -> String {
        let Self { sectors, below, .. } = self;
        format!(
            "0 {sectors} {target} {} {}{more}",
            below.0.display(),
            below.1
        )
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.name)
    }

    /// Requests that arrive wait until it is resumed; those on their way end first.
    pub fn suspend(&self) {
        run(
            "dmsetup",
            &["suspend", "--noflush", "--nolockfs", self.name],
        );
    }

    pub fn resume(&self) {
        run("dmsetup", &["resume", self.name]);
    }

    fn exchange(&self, table: &str) {
        self.suspend();
        run("dmsetup", &["load", self.name, "--table", table]);
        self.resume();
    }

    /// All requests fail.
    pub fn fail(&self) {
        self.exchange(&format!("0 {} error", self.sectors));
    }

    /// Writes fail, and so do flushes.
    pub fn fail_writes(&self) {
        self.exchange(&self.line("flakey", " 0 1 1 error_writes"));
    }

    /// Writes succeed, and bring nothing.
    pub fn drop_writes(&self) {
        self.exchange(&self.line("flakey", " 0 1 1 drop_writes"));
    }

    /// It is whole again.
    pub fn mend(&self) {
        self.exchange(&self.line("linear", ""));
    }

    /// Its content is this from the beginning on, and nothing of it is in a cache.
    pub fn fill(&self, data: &[u8]) {
        let mut file = fs::File::options().write(true).open(self.path()).unwrap();
        std::io::Write::write_all(&mut file, data).unwrap();
        file.sync_all().unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // By force, if a script failed with a daemon on it; nothing hangs on it then.
        let done = Command::new("dmsetup")
            .args(["remove", "--force", "--retry", self.name])
            .status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
