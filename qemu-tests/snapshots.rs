//! Snapshots stay exact: beside a merge, and through the death of the daemon.

use std::fs;

use snapback::control::api::State;

use crate::bench::Bench;
use crate::disk::{MIB, Sums};

const SIZE: u64 = 64 * MIB;
const SEED: u64 = 11;
const WRECK: &str = "dd if=/dev/zero of=/dev/vda bs=1M seek=16 oflag=direct 2>/dev/null; sync";

#[test]
fn two_snapshots_stay_exact_while_a_third_is_merged_and_all_are_in_use() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let before = Sums::of_file(&origin);
    let (s1, s2, s3) = (
        bench.snapshot("s1", "4K"),
        bench.snapshot("s2", "64K"),
        bench.snapshot("s3", "16K"),
    );
    let daemon = bench.serve(&["--snapshot", &s1, "--snapshot", &s2, "--snapshot", &s3]);
    let mut writer = bench.boot("writer", &[bench.view("origin")]);
    let mut reader = bench.boot("reader", &[bench.view("s1"), bench.view("s2")]);
    writer.run(WRECK);
    let wrecked = writer.sums("/dev/vda").differences(&before);
    assert_eq!(wrecked, (64..256).collect::<Vec<_>>(), "the wreck");
    writer.start_hammer("/dev/vda", SEED, 0, 4096);
    writer.hammer_on(300);
    reader.start_hammer("/dev/vdb", SEED, 4096, 2048);

    daemon.run(&["merge", "s3", "--now", "--rate", "1M"]);
    reader.sums("/dev/vda").assert_same(
        &before,
        "snapshot s1 during the merge of s3 with the first origin",
    );
    assert!(
        daemon.is_merging(),
        "the merge ended before s1 was read: nothing was shown"
    );
    writer.hammer_on(200);
    reader.hammer_on(200);
    daemon.run(&["merge", "--rate", "0"]);
    daemon.wait_merged();

    // A fast guest has written all of its blocks again since the handover; what was
    // wrecked before it is what shows that the origin went back to s3.
    writer.stop_hammer();
    let on_s2 = reader.stop_hammer();
    assert_eq!(on_s2.reverted, 0, "the guest on s2 lost writes");
    reader.sums("/dev/vda").assert_same(
        &before,
        "snapshot s1 after the merge of s3 with the first origin",
    );
    let changed = reader.sums("/dev/vdb").differences(&before);
    println!(
        "snapshot s2 differs from the first origin in {} blocks of 256 KiB, all of them its own writes",
        changed.len()
    );
    assert!(
        !changed.is_empty() && changed.iter().all(|block| (64..96).contains(block)),
        "{changed:?}"
    );
    let seen = writer.sums("/dev/vda");
    let still_wrecked: Vec<usize> = seen
        .differences(&before)
        .into_iter()
        .filter(|block| wrecked.contains(block))
        .collect();
    println!(
        "wrecked blocks of 256 KiB that did not come back: {} of {}",
        still_wrecked.len(),
        wrecked.len()
    );
    assert!(still_wrecked.is_empty(), "not in s3: {still_wrecked:?}");
    for guest in [&mut writer, &mut reader] {
        guest.assert_no_io_error();
    }
    writer.quit();
    reader.quit();
    daemon.terminate();
    Sums::of_file(&origin).assert_same(&seen, "the origin file with the guest's view");
}

#[test]
fn a_killed_daemon_comes_back_from_its_state_file_with_exact_snapshots() {
    let bench = Bench::new();
    let origin = bench.filled_disk("origin.img", SIZE, SEED);
    let first = Sums::of_file(&origin);
    let s1 = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &s1]);
    let mut writer = bench.boot("writer", &[bench.view("origin")]);
    writer.start_hammer("/dev/vda", SEED, 0, 8192);
    writer.hammer_on(300);

    // The pause is only for the copy: it makes the origin file what s2 must show.
    writer.qmp.command("stop");
    let (cow, socket) = (bench.text("s2.cow"), bench.text("s2.sock"));
    daemon.run(&[
        "snapshot",
        "s2",
        "--cow",
        &cow,
        "--size",
        "96M",
        "--chunk-size",
        "32K",
        "--socket-path",
        &socket,
    ]);
    fs::copy(&origin, bench.path("second.img")).unwrap();
    writer.qmp.command("cont");
    let second = Sums::of_file(&bench.path("second.img"));
    second.assert_differs(
        &first,
        "the origin when s2 was taken with the one when s1 was",
    );

    writer.hammer_on(1000);
    daemon.kill();
    writer.kill();

    let daemon = bench.serve(&[]);
    for name in ["s1", "s2"] {
        assert_eq!(
            daemon.snapshot(name).state,
            State::Active,
            "{name} after SIGKILL"
        );
    }
    let mut reader = bench.boot(
        "reader",
        &[bench.view("s1"), bench.view("s2"), bench.view("origin")],
    );
    reader.sums("/dev/vda").assert_same(
        &first,
        "snapshot s1 after SIGKILL with the origin at its time",
    );
    reader.sums("/dev/vdb").assert_same(
        &second,
        "snapshot s2 after SIGKILL with the origin at its time",
    );
    // Further writes must still be copied out.
    reader.run("dd if=/dev/zero of=/dev/vdc bs=1M oflag=direct 2>/dev/null; sync");
    reader
        .sums("/dev/vda")
        .assert_same(&first, "snapshot s1 after the origin was zeroed");
    reader
        .sums("/dev/vdb")
        .assert_same(&second, "snapshot s2 after the origin was zeroed");
    reader.assert_no_io_error();
    reader.quit();
    daemon.terminate();
}
