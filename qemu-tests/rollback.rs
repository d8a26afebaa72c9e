//! Handover under a running guest: rollback now, rollback at the next reset, and
//! live commit.

use std::thread::sleep;
use std::time::Duration;

use crate::bench::Bench;
use crate::disk::{MIB, Sums};

const SIZE: u64 = 64 * MIB;
const SEED: u64 = 7;
/// Blocks of 4 KiB that the guest writes all the time; the rest it wrecks once.
const HAMMERED: u64 = 4096;

/// Overwrites everything beyond the hammered blocks, so that a merge has work.
const WRECK: &str = "dd if=/dev/zero of=/dev/vda bs=1M seek=16 oflag=direct 2>/dev/null; sync";

#[test]
fn rollback_now_under_a_writing_guest_is_a_clean_cut_with_writes_that_wait() {
    rollback_now("wait");
}

#[test]
fn rollback_now_under_a_writing_guest_is_a_clean_cut_with_writes_redirected() {
    rollback_now("redirect");
}

fn rollback_now(merge_writes: &str) {
    // More blocks than the writer gets through after the handover: some go back.
    const SIZE: u64 = 128 * MIB;
    const HAMMERED: u64 = 24_576;
    const WRECK: &str = "dd if=/dev/zero of=/dev/vda bs=1M seek=96 oflag=direct 2>/dev/null; sync";
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let daemon = bench.serve(&["--merge-writes", merge_writes]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.start_hammer("/dev/vda", SEED, 0, HAMMERED);
    guest.hammer_on(500);
    let cow = bench.text("before.cow");
    daemon.run(&["snapshot", "before", "--cow", &cow, "--size", "160M"]);
    guest.hammer_on(500);
    guest.run(WRECK);
    guest.hammer_on(500);

    daemon.run(&["rollback", "before", "--now", "--rate", "32M"]);
    assert!(
        daemon.is_merging(),
        "the merge ended before the guest could write into it"
    );
    guest.hammer_on(300);
    daemon.wait_merged();
    guest.hammer_on(100);
    let hammered = guest.stop_hammer();
    println!(
        "--merge-writes {merge_writes}: the longest guest write took {} ms",
        hammered.longest_ms
    );
    assert!(
        hammered.reverted > 0,
        "no block went back: nothing was shown"
    );
    assert!(hammered.kept > 0, "no write after the handover survived");
    assert!(
        hammered.longest_ms < 5000,
        "a write waited {} ms",
        hammered.longest_ms
    );

    let seen = guest.sums("/dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    let merged = Sums::of_file(&origin);
    seen.assert_same(&merged, "the view in the guest with the merged origin file");
    let expected = bench.filled_disk("expected.img", SIZE, SEED);
    let beyond = HAMMERED * 4096 / 262_144;
    let wrecked: Vec<usize> = merged
        .differences(&Sums::of_file(&expected))
        .into_iter()
        .filter(|block| *block as u64 >= beyond)
        .collect();
    println!(
        "wrecked blocks of 256 KiB that did not come back: {} of {}",
        wrecked.len(),
        SIZE / 262_144 - beyond
    );
    assert!(wrecked.is_empty(), "not rolled back: {wrecked:?}");
}

#[test]
fn a_deferred_rollback_waits_through_pause_and_resume_for_the_reset() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let before = Sums::of_file(&origin);
    let snapshot = bench.snapshot("before", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.run(WRECK);
    guest.start_hammer("/dev/vda", SEED, 0, HAMMERED);
    guest.hammer_on(100);

    // Without --now or --at-reset, the guest that is attached makes it a deferred one.
    daemon.run(&["rollback", "before"]);
    for _ in 0..3 {
        guest.qmp.command("stop");
        sleep(Duration::from_millis(300));
        guest.qmp.command("cont");
        guest.hammer_on(100);
        let status = daemon.status();
        assert_eq!(
            status.rollback_at_reset.as_deref(),
            Some("before"),
            "a resume counted as a reset"
        );
        assert!(status.merge.is_none(), "a merge runs before the reset");
    }
    println!("three times stop and cont: the rollback is still pending");
    let hammered = guest.stop_hammer();
    assert_eq!(
        hammered.reverted, 0,
        "the guest lost writes before the reset"
    );
    guest
        .sums("/dev/vda")
        .assert_differs(&before, "the disk before the reset with the snapshot");

    guest.reset();
    let status = daemon.status();
    assert_eq!(
        status.rollback_at_reset, None,
        "the reset did not start the rollback"
    );
    guest
        .sums("/dev/vda")
        .assert_same(&before, "the disk right after the reset with the snapshot");
    daemon.wait_merged();
    guest
        .sums("/dev/vda")
        .assert_same(&before, "the disk after the merge with the snapshot");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    Sums::of_file(&origin).assert_same(&before, "the merged origin file with the snapshot");
}

#[test]
fn a_live_commit_goes_unnoticed_by_the_guest_on_the_snapshot() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let before = Sums::of_file(&origin);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("s1")]);
    guest.run(WRECK);
    guest.start_hammer("/dev/vda", SEED, 0, HAMMERED);
    guest.hammer_on(500);
    Sums::of_file(&origin).assert_same(
        &before,
        "the origin before the commit with the untouched one",
    );

    daemon.run(&["merge", "s1", "--follow", "--rate", "16M"]);
    assert!(
        daemon.is_merging(),
        "the merge ended before the guest could write into it"
    );
    guest.hammer_on(300);
    daemon.wait_merged();
    guest.hammer_on(100);
    let hammered = guest.stop_hammer();
    assert_eq!(hammered.reverted, 0, "the guest lost writes");
    println!(
        "{} writes, none lost; the longest guest write took {} ms",
        hammered.writes, hammered.longest_ms
    );
    guest.assert_no_io_error();
    let seen = guest.sums("/dev/vda");
    guest.quit();
    daemon.terminate();
    let committed = Sums::of_file(&origin);
    committed.assert_differs(&before, "the origin after the commit with the one before");
    committed.assert_same(&seen, "the committed origin file with the guest's view");
}
