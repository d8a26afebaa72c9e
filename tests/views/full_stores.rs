//! Stores that are full as soon as they are there: the origin's guest goes on.

use std::time::Instant;

use snapback::control::api::State;

use crate::common::load::{Load, Reins};
use crate::common::random;
use crate::common::volume::Volume;
use crate::{turn, until};

const SECTORS: u64 = 8 << 11;
const ENDLESS: u64 = 1 << 40;
/// Snapshots that run full; `SNAPBACK_ROUNDS` asks for more.
const ROUNDS: u64 = 120;

fn fill_stores(engine: &str) {
    let _turn = turn();
    let (seed, start) = (random::seed(), Instant::now());
    let rounds = random::number("SNAPBACK_ROUNDS").unwrap_or(ROUNDS);
    let mut volume = Volume::new(SECTORS);
    volume.start(&["--socket-path", "a.sock", "--io-engine", engine]);
    let mut origin = Load::new("origin", 1, seed, volume.first_content()).with_zeroing();
    origin.attach(&volume.path("a.sock"));
    let reins = Reins::default();
    std::thread::scope(|scope| {
        scope.spawn(|| origin.run(ENDLESS, &reins));
        for round in 0..rounds {
            let cow = format!("{round}.cow");
            // A header, an area, and few chunks more.
            volume.verb(&[
                "snapshot",
                "s",
                "--cow",
                &cow,
                "--size",
                "124K",
                "--chunk-size",
                "4K",
            ]);
            let goal = reins.done() + 50;
            if !until("the guest goes on", &[&reins], || reins.done() > goal) {
                break;
            }
            until("the snapshot is told to be invalid", &[&reins], || {
                volume.status().snapshots[0].state == State::Invalid
            });
            volume.verb(&["remove", "s"]);
            std::fs::remove_file(volume.path(&cow)).unwrap();
        }
        reins.drain();
    });
    origin.detach();
    crate::compare_all(&mut origin, &volume.path("a.sock"));
    volume.terminate();
    println!(
        "{engine}: {rounds} stores ran full under load, {}, seed {seed}: {:.1?}",
        origin.counts,
        start.elapsed()
    );
}

#[test]
fn a_store_that_is_full_at_once_stalls_no_origin_write_with_threads() {
    fill_stores("threads");
}

#[test]
fn a_store_that_is_full_at_once_stalls_no_origin_write_with_io_uring() {
    fill_stores("io_uring");
}
