//! The daemon on block devices in a guest, with every write logged; then, at every
//! flush and every durable write, what a power cut could have left is judged.
//!
//! ```text
//!  pilot    in the guest: the daemon, guests of its views, verbs
//!    │      origin, s1, s2, s3: linear devices on one dm-log-writes device
//!    ▼
//!  record ─► timeline ─► medium ─► judge ─► view: what was promised
//!            log + trace  images      │ ──► store: a reader of the stores of its own
//!                                     └───► production: the program's own reading
//! ```
//!
//! What it sees and what it does not is in `docs/crash-model.md`. Other seeds, and a
//! recording that was kept, are run with
//!
//! ```text
//! SNAPBACK_LOGWRITES_SEEDS=8..40 cargo test --test qemu logwrites -- --nocapture
//! SNAPBACK_LOGWRITES_AGAIN=target/tmp/logwrites-8 cargo test --test qemu logwrites
//! ```

mod judge;
mod medium;
mod pilot;
mod plan;
mod production;
#[path = "../../tests/common/guest.rs"]
#[allow(
    unsafe_code,
    dead_code,
    clippy::cast_possible_wrap,
    reason = "the driver's requests point into shared memory"
)]
mod queue;
#[path = "../../tests/common/random.rs"]
#[allow(dead_code)]
mod random;
mod record;
#[path = "../../tests/common/stamps.rs"]
#[allow(dead_code)]
mod stamps;
mod store;
mod timeline;
mod view;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Instant;

use medium::{Contents, Wrong};
use production::Production;
use record::Recording;
use timeline::Timeline;

use crate::bench::Bench;

const NAME: &str = "logwrites";
/// Set in the guest: this program is the pilot, with this seed.
const PILOT: &str = "SNAPBACK_LOGWRITES_PILOT";
const TEST: &str = "logwrites::at_every_flush_the_devices_hold_what_each_view_must_show";
/// A recording that was kept, to be judged again.
const AGAIN: &str = "SNAPBACK_LOGWRITES_AGAIN";
const SEEDS: Range<u64> = 0..2;
/// One store of this many becomes files.
const SAMPLE: usize = 397;
/// In the middle of the merge.
const SAMPLE_MERGING: usize = 97;

#[test]
fn at_every_flush_the_devices_hold_what_each_view_must_show() {
    if let Ok(seed) = std::env::var(PILOT) {
        return pilot::run(seed.parse().unwrap());
    }
    let bench = Bench::new();
    if let Ok(folder) = std::env::var(AGAIN) {
        return check(&bench, &Recording::kept(Path::new(&folder)));
    }
    for seed in seeds() {
        let start = Instant::now();
        let recording = record::record(&bench, seed);
        let took = start.elapsed();
        println!("seed {seed}: recorded in {took:.1?}: {:?}", recording.plan);
        let judged = catch_unwind(AssertUnwindSafe(|| check(&bench, &recording)));
        if let Err(panic) = judged {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("logwrites-{seed}"));
            recording.keep(&folder);
            println!("to judge it again: {AGAIN}={}", folder.display());
            resume_unwind(panic);
        }
    }
}

fn check(bench: &Bench, recording: &Recording) {
    let seed = recording.seed;
    let timeline = Timeline::new(recording);
    let contents = Contents::new(recording);
    println!(
        "seed {seed}: {} log entries, of which {} flushes ({} beside another one) and {} durable writes",
        timeline.entries,
        timeline.flushes(),
        timeline.twins,
        timeline.durable_writes()
    );
    let start = Instant::now();
    let mut production = Production::new(bench, Some([SAMPLE, SAMPLE_MERGING]));
    let right = judge::judge(
        recording,
        &timeline,
        &contents,
        Wrong::Nothing,
        &mut production,
    );
    let counts = right.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    println!(
        "seed {seed}: {counts}; {} stores loaded, {} checked and exported, {} merged to their end: {:.1?}",
        production.loads,
        production.checks,
        production.merges,
        start.elapsed()
    );
    assert!(counts.merging > 0 && counts.invalid < counts.images);
    assert!(production.checks > 0 && production.merges > 0);
    let mut wrongs = vec![
        Wrong::Flushes("origin"),
        Wrong::Flushes("s1"),
        Wrong::Flushes("s2"),
        Wrong::Flushes("s3"),
        Wrong::Hasty,
    ];
    // For a thread's write with RWF_DSYNC Linux adds a flush to the FUA.
    if recording.plan.engine == "io_uring" {
        wrongs.push(Wrong::Durability);
    }
    for wrong in wrongs {
        let mut production = Production::new(bench, None);
        let judged = judge::judge(recording, &timeline, &contents, wrong, &mut production);
        let error = judged.expect_err("a disk that does wrong is not seen");
        println!("seed {seed}: {wrong:?} is seen: {error}");
    }
}

/// Those of the ordinary run, or `FIRST..END` of `SNAPBACK_LOGWRITES_SEEDS`.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SNAPBACK_LOGWRITES_SEEDS") else {
        return SEEDS;
    };
    let parse = || {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    };
    parse().unwrap_or_else(|| panic!("SNAPBACK_LOGWRITES_SEEDS={text} is not FIRST..END"))
}
