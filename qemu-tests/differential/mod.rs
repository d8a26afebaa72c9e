//! The same operations, drawn from a seed, on Linux's dm-snapshot in a guest and
//! on snapback; then both must show the same: views, origin, status lines, the
//! results of writes, and the stores byte for byte.
//!
//! A case has three phases. At the end of each but the last Linux loses its power,
//! the daemon is killed, and mostly each goes on with the other's disks: stores in every
//! state travel both ways. Run other seeds with
//!
//! ```text
//! SNAPBACK_DIFF_SEEDS=200..300 cargo test --test qemu differential
//! ```
//!
//! Where we differ from Linux on purpose, a case avoids the place or compares less;
//! rows are those of the checklist in `docs/semantics.md`:
//!
//! | row | Linux | snapback | here |
//! |---|---|---|---|
//! | S14 | loses a snapshot whose COW ends where the next area must be | overflows | no such COW (`generate::store`) |
//! | S22 | whether copies under way at an overflow arrive is open | the same | only the header (`Bytes::Header`) |
//! | S19 | commits of concurrent writes come in any order | the same | no bytes after a burst (`Bytes::Nothing`) |
//! | S23 | a transient store vanishes with its device | stays known, its content does not | removed before a reload |
//! | O12 | a snapshot needs a suspended origin | does not | only Linux suspends |
//! | M02 | merges run by run | takes several runs at once | other stores' bytes are not compared |
//! | M15 | merges an invalid store: does nothing | refuses | no such merge |
//! | N14 | forgets Overflow at a reload only | also when space appears | no COW grows |

mod case;
mod driver;
mod generate;
mod here;
mod model;
mod seen;
mod there;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use case::{Case, Op, PHASES, State, View};
use here::Here;
use seen::compare;
use there::{Place, There, places};

use crate::bench::Bench;
use crate::content;
use crate::guest::SILENT;

const SECTOR: usize = 512;
/// Cases that share a guest.
const BATCH: usize = 26;
const SEEDS: Range<u64> = 0..104;
/// Time for Linux's slowed merges to do a part.
const HALF_MERGE: Duration = Duration::from_millis(800);

/// How an observation after this operation is called.
fn label(number: usize, op: &Op) -> String {
    let view = |view: &View| match view {
        None => "origin".to_owned(),
        Some(snap) => format!("view {snap}"),
    };
    let text = match op {
        Op::Write(to, extent, write) => format!(
            "write {write} to {} ({}+{})",
            view(to),
            extent.sector,
            extent.count
        ),
        Op::Burst(to, writes) => format!("{} writes at once to {}", writes.len(), view(to)),
        Op::Merge(snap, _) => format!("merge of {snap}"),
        Op::Check(_) => "comparison".into(),
        op => format!("{op:?}"),
    };
    format!("op {number}, {text}")
}

/// What a new disk holds: the origin its own content, a COW junk behind a blank head.
fn contents(case: &Case) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut origin = vec![0; case.origin as usize * SECTOR];
    for (sector, target) in (0..).zip(origin.chunks_exact_mut(SECTOR)) {
        content::put(target, case.seed, sector, 0);
    }
    let cow = |sectors: u64| {
        let mut bytes = vec![0xee; sectors as usize * SECTOR];
        let head = bytes.len().min(4096);
        bytes[..head].fill(0);
        bytes
    };
    (origin, case.snapshots.iter().map(|s| cow(s.cow)).collect())
}

/// A case that still runs.
struct Running {
    case: Case,
    place: Place,
    here: Here,
}

#[derive(Default)]
struct Tally {
    checks: usize,
    travelled: BTreeMap<State, usize>,
    /// Merges that the crash came into the middle of.
    half_merged_here: usize,
    half_merged_there: usize,
    failures: Vec<String>,
}

impl Tally {
    fn fail(&mut self, seed: u64, phase: usize, difference: &str) {
        println!("seed {seed}, phase {phase}: {difference}");
        self.failures.push(format!(
            "seed {seed}, phase {phase}: {difference}\n  again: SNAPBACK_DIFF_SEEDS={seed}..{} cargo test --test qemu \
             differential -- --nocapture",
            seed + 1
        ));
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    text.unwrap_or_else(|| "a panic without words".into())
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SNAPBACK_DIFF_SEEDS") else {
        return SEEDS;
    };
    let range = text
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or_else(|| panic!("SNAPBACK_DIFF_SEEDS={text}: not a range like 0..100"))
}

#[test]
fn snapback_and_linux_do_the_same_and_read_each_others_stores() {
    let begin = Instant::now();
    let mut tally = Tally::default();
    let all: Vec<u64> = seeds().collect();
    for batch in all.chunks(BATCH) {
        let cases: Vec<Case> = batch.iter().map(|seed| Case::of_seed(*seed)).collect();
        let unjudged = run_batch(&cases, &mut tally);
        if unjudged.is_empty() {
            continue;
        }
        // An emulated machine may stall; it says nothing about either side.
        println!(
            "the guest stalled; {} seeds again in another",
            unjudged.len()
        );
        for case in run_batch(&unjudged, &mut tally) {
            tally.fail(case.seed, 0, "Linux: the guest stalled twice");
        }
    }
    println!(
        "{} seeds in {} s: {} comparisons; stores that travelled: {:?}; merges interrupted half-way: {} here, {} in \
         Linux",
        all.len(),
        begin.elapsed().as_secs(),
        tally.checks,
        tally.travelled,
        tally.half_merged_here,
        tally.half_merged_there
    );
    assert!(
        tally.failures.is_empty(),
        "{} of {} seeds failed:\n{}",
        tally.failures.len(),
        all.len(),
        tally.failures.join("\n")
    );
    // The delays are meant for it, but a slow machine may spoil some.
    if all.len() >= 100 {
        assert!(
            tally.half_merged_here >= 3,
            "too few merges interrupted here"
        );
        assert!(
            tally.half_merged_there >= 3,
            "too few merges interrupted in Linux"
        );
    }
}

#[test]
fn the_default_seeds_let_stores_travel_in_every_state_and_chunk_size() {
    let mut states = BTreeMap::<State, usize>::new();
    let mut chunks = BTreeMap::<u64, usize>::new();
    let mut odd = 0;
    for case in SEEDS.map(Case::of_seed) {
        for phase in &case.phases {
            for (snap, state) in &phase.exchange {
                let chunk = case.snapshots[*snap].chunk;
                *states.entry(*state).or_default() += 1;
                *chunks.entry(chunk).or_default() += 1;
                odd += usize::from(!case.origin.is_multiple_of(chunk));
            }
        }
    }
    println!("{states:?}, chunk sizes {chunks:?}, {odd} with an odd origin");
    use State::*;
    for state in [
        Fresh,
        PartFilled,
        ExactlyFullArea,
        SeveralAreas,
        Overflowed,
        Invalid,
        HalfMerged,
    ] {
        assert!(states.get(&state) >= Some(&3), "{state:?}: {states:?}");
    }
    for chunk in [1, 8, 32, 128, 1024] {
        assert!(chunks.get(&chunk) >= Some(&3), "{chunk}: {chunks:?}");
    }
    assert!(odd >= 3);
}

/// Returns the cases that a stalled guest left without a verdict.
fn run_batch(cases: &[Case], tally: &mut Tally) -> Vec<Case> {
    let bench = Bench::new();
    let (places, sectors) = places(cases);
    let mut there = There::boot(&bench, sectors);
    let mut running: Vec<Running> = cases
        .iter()
        .zip(places)
        .map(|(case, place)| {
            let (origin, cows) = contents(case);
            there.put(place.origin, &origin);
            for (at, bytes) in place.cows.iter().zip(&cows) {
                there.put(*at, bytes);
            }
            let here = Here::new(case.clone(), &origin, &cows);
            let case = case.clone();
            Running { case, place, here }
        })
        .collect();
    for phase in 0..PHASES {
        let mut stalled = false;
        running.retain_mut(|one| {
            if stalled {
                return true;
            }
            match run_phase(&mut there, one, phase) {
                Ok(checks) => {
                    tally.checks += checks;
                    true
                }
                Err(difference) if difference.contains(SILENT) => {
                    stalled = true;
                    true
                }
                Err(difference) => {
                    tally.fail(one.case.seed, phase, &difference);
                    false
                }
            }
        });
        if stalled {
            return running.into_iter().map(|one| one.case).collect();
        }
        if phase + 1 < PHASES {
            crash(&mut there, &mut running, phase, tally);
        }
    }
    there.quit();
    Vec::new()
}

/// One phase of one case on both sides at once; the number of things compared.
fn run_phase(there: &mut There, one: &mut Running, number: usize) -> Result<usize, String> {
    let phase = &one.case.phases[number];
    let here = &mut one.here;
    let (linux, ours) = std::thread::scope(|scope| {
        let ours = scope.spawn(|| here.phase(phase));
        let linux = catch_unwind(AssertUnwindSafe(|| {
            there.phase(&one.case, &one.place, phase)
        }));
        (linux, ours.join())
    });
    let ours = ours.map_err(|panic| format!("snapback: {}", message(&*panic)))?;
    let linux = linux.map_err(|panic| format!("Linux: {}", message(&*panic)))?;
    compare(&one.case, &linux, &ours)?;
    if number + 1 == PHASES {
        let stop = catch_unwind(AssertUnwindSafe(|| one.here.stop()));
        stop.map_err(|panic| message(&*panic))?;
    }
    Ok(linux.len())
}

/// Ends both sides without warning, some in the middle of a merge, and exchanges
/// the disks of the cases that want it.
fn crash(there: &mut There, running: &mut Vec<Running>, number: usize, tally: &mut Tally) {
    let mut merging = Vec::new();
    running.retain_mut(|one| {
        let half = one.case.phases[number].half_merge;
        if let Some(snap) = half {
            let status = there.half_merge(&one.case, snap);
            merging.push((one.case.clone(), status));
        }
        match catch_unwind(AssertUnwindSafe(|| one.here.crash(half))) {
            Ok(interrupted) => {
                tally.half_merged_here += usize::from(interrupted);
                true
            }
            Err(panic) => {
                tally.fail(one.case.seed, number, &message(&*panic));
                false
            }
        }
    });
    if !merging.is_empty() {
        std::thread::sleep(HALF_MERGE);
    }
    for (case, first) in merging {
        let last = there.merge_status(&case);
        let interrupted = last != first && !there::has_ended(&last);
        tally.half_merged_there += usize::from(interrupted);
        println!(
            "seed {}: Linux's merge from '{first}' to '{last}'",
            case.seed
        );
    }
    there.crash();
    for one in running {
        let exchange = &one.case.phases[number].exchange;
        for (_, state) in exchange {
            *tally.travelled.entry(*state).or_default() += 1;
        }
        if !exchange.is_empty() {
            exchange_disks(there, one);
        }
    }
}

fn exchange_disks(there: &There, one: &mut Running) {
    let mut disks = vec![(one.place.origin, one.here.origin())];
    for (snap, at) in one.place.cows.iter().enumerate() {
        disks.push((*at, one.here.cow(snap)));
    }
    for (at, path) in disks {
        let ours = std::fs::read(&path).unwrap();
        let theirs = there.get(at, (ours.len() / SECTOR) as u64);
        there.put(at, &ours);
        std::fs::write(&path, theirs).unwrap();
    }
    one.here.exchanged();
}
