//! A guest that boots from a disk which has just been rolled back, while the merge runs.

use std::fs;
use std::time::{Duration, Instant};

use crate::bench::{Bench, guest_images};
use crate::disk::{MIB, Sums};
use crate::guest::Guest;

/// The root file system comes first; a merge has all the rest to do.
const SIZE: u64 = 320 * MIB;
const ROOT: u64 = 64;

/// Resets the guest; returns how long it takes until it is up.
fn timed_reset(guest: &mut Guest) -> Duration {
    let start = Instant::now();
    guest.reset();
    start.elapsed()
}

/// Both times are printed; whether they are close is for a quiet machine to say
/// (docs/performance.md).
#[test]
fn a_guest_boots_from_a_rolled_back_disk_while_the_merge_runs() {
    let bench = Bench::new();
    let origin = bench.path("origin.img");
    fs::copy(guest_images().join("root.img"), &origin).unwrap();
    let disk = fs::OpenOptions::new().write(true).open(&origin).unwrap();
    disk.set_len(SIZE).unwrap();
    let daemon = bench.serve(&[]);
    let mut guest = bench.boot_from_disk("g", &[bench.view("origin")]);
    let alone = timed_reset(&mut guest).min(timed_reset(&mut guest));
    guest.run("echo old > /state && sync");
    let cow = bench.text("before.cow");
    daemon.run(&["snapshot", "before", "--cow", &cow, "--size", "360M"]);
    guest.run("echo new > /state && sync");
    let count = SIZE / MIB - ROOT;
    guest.run(&format!(
        "tr '\\0' x < /dev/zero | dd of=/dev/vda bs=1M seek={ROOT} count={count} \
         iflag=fullblock oflag=direct 2>/dev/null"
    ));

    daemon.run(&["rollback", "before", "--at-reset"]);
    let merging = timed_reset(&mut guest);
    let runs_on = daemon.is_merging();
    println!(
        "from reset to a shell: {:.2} s without a merge, {:.2} s with one ({}): {:.2} times",
        alone.as_secs_f64(),
        merging.as_secs_f64(),
        if runs_on {
            "which runs on"
        } else {
            "which has ended"
        },
        merging.as_secs_f64() / alone.as_secs_f64()
    );
    assert_eq!(guest.run("cat /state").trim(), "old");
    guest.run("echo later > /state && sync");
    daemon.wait_merged();
    assert_eq!(guest.run("cat /state").trim(), "later");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    let blank = bench.blank_disk("blank.img", SIZE - ROOT * MIB);
    let behind = bench.path("behind.img");
    let all = fs::read(&origin).unwrap();
    fs::write(&behind, &all[usize::try_from(ROOT * MIB).unwrap()..]).unwrap();
    Sums::of_file(&behind).assert_same(&Sums::of_file(&blank), "what was overwritten");
}
