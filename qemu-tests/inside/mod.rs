//! The daemon inside a guest, on what only a kernel of one's own has: device-mapper, whose
//! devices fail, stall and lie when they are told to, quotas, and a clock that may be set.
//!
//! Each test starts a guest and runs itself there: this program and `snapback`, with their
//! libraries, are in the guest's initramfs, at the paths where they are here.

mod clock;
mod device;
#[path = "../../tests/faults/field.rs"]
#[allow(dead_code, reason = "not all of its functions are used here")]
mod field;
mod file_system;
mod mapper;
mod power;
mod quota;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bench::{Bench, guest_images};
use crate::daemon::PROGRAM;
use crate::disk::MIB;
use crate::guest::{Attach, Guest};
use crate::resets::front_end as guest;

/// Set for the program that runs in the guest.
const INSIDE: &str = "SNAPBACK_INSIDE";
/// Far more than a script takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// An initramfs with both programs, and what is linked with them.
fn initramfs(bench: &Bench) -> PathBuf {
    let whole = bench.path("initramfs-inside");
    let tests = env::current_exe().unwrap();
    let script = r#"
        for program in "$2" "$3"; do
            mkdir -p "$1${program%/*}"
            strip -o "$1$program" "$program"
        done
        mkdir -p "$1/bin" "$1/lib"
        ln -s "$3" "$1/bin/tests"
        ldd "$2" "$3" | awk '/=> \// { print $3 }' | sort -u | xargs cp -L -t "$1/lib"
        cd "$1" && find . | cpio --quiet -o -H newc -R 0:0 | cat "$4/initramfs" - >"$5""#;
    let status = Command::new("sh")
        .args(["-ec", script, "sh"])
        .args([&bench.path("inside"), Path::new(PROGRAM), &tests])
        .args([guest_images(), &whole])
        .status()
        .unwrap();
    assert!(status.success(), "the initramfs: {status}");
    whole
}

/// Runs `script` in a guest that has disks of so many MiB as /dev/vda, /dev/vdb, ...; `test` is
/// the name of the test that calls this, after `inside::`.
fn inside(test: &str, disks: &[u64], script: fn()) {
    if env::var_os(INSIDE).is_some() {
        return script();
    }
    let bench = Bench::new();
    let disks: Vec<Attach> = (disks.iter().enumerate())
        .map(|(n, size)| Attach::Raw(bench.blank_disk(&format!("{n}.img"), size * MIB)))
        .collect();
    let mut guest = Guest::boot_from(&initramfs(&bench), &bench.path(""), "inside", &disks, "");
    let command = format!("{INSIDE}=1 tests inside::{test} --exact --nocapture");
    let (status, output) = guest.run_within(&command, PATIENCE);
    println!("{output}");
    assert!(
        status == 0 && output.contains("1 passed"),
        "{test} in the guest: exit {status}"
    );
    guest.quit();
}

/// A program of the guest, which must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}
