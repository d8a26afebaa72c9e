//! Power loss while many entries are appended or removed leaves any mixture of the units
//! that were written. Linux must show the same view of each, go on writing it, and merge it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use snapback::offline::{ExportOptions, export};
use snapback::store::{Entry, Layout, MetaWrite, Metadata};
use snapback::units::ChunkSize;

use crate::bench::Bench;
use crate::daemon::offline;
use crate::disk::Sums;
use crate::guest::{Attach, Guest};

const CHUNK: usize = 4096;
const UNIT: usize = 512;
/// Chunks of an origin, and of a store.
const ORIGIN: u64 = 320;
const COW: u64 = 512;
const SECTORS: u64 = ORIGIN * 8;
const COW_SECTORS: u64 = COW * 8;
/// Chunks that Linux writes in each store: one with an exception, and more without one than
/// the units of a step have room for.
const WRITTEN: [Range<u64>; 2] = [19..20, 190..310];

/// An origin, its store, and the log that the store holds.
struct Made {
    origin: Vec<u8>,
    cow: Vec<u8>,
    view: Vec<u8>,
    log: Metadata,
    /// Entries are being moved, or have been.
    moves: bool,
}

fn put(image: &mut [u8], chunk: u64, mark: u64) {
    let at = chunk as usize * CHUNK;
    for (n, word) in image[at..at + CHUNK].chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(mark << 32 | chunk << 16 | n as u64).to_le_bytes());
    }
}

fn write(image: &mut [u8], write: &MetaWrite) {
    let at = write.offset as usize;
    image[at..at + write.data.len()].copy_from_slice(&write.data);
}

impl Made {
    /// A store that is empty. What was never written is not zero.
    fn new() -> Self {
        let layout = Layout::new(ChunkSize::new(8).unwrap());
        let mut cow = vec![0xee; COW as usize * CHUNK];
        cow[..2 * CHUNK].fill(0);
        for (n, word) in [0x7041_6e53, 1, 1, 8_u32].into_iter().enumerate() {
            cow[n * 4..n * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        let mut origin = vec![0; ORIGIN as usize * CHUNK];
        for chunk in 0..ORIGIN {
            put(&mut origin, chunk, 1);
        }
        Self {
            view: origin.clone(),
            origin,
            cow,
            log: Metadata::fresh(layout, COW_SECTORS, UNIT),
            moves: false,
        }
    }

    /// Allocates these chunks of the origin and writes their copies.
    fn copy(&mut self, chunks: Range<u64>) -> Vec<Entry> {
        let mut entries = Vec::new();
        for old in chunks {
            let new = self.log.allocate().unwrap();
            let (from, to) = (old as usize * CHUNK, new as usize * CHUNK);
            self.cow[to..to + CHUNK].copy_from_slice(&self.view[from..from + CHUNK]);
            entries.push(Entry { old, new });
        }
        entries
    }

    /// Appends `chunks`, and gives every state that power loss may leave to `found`. An area
    /// is zeroed when it is needed.
    fn append(&mut self, chunks: Range<u64>, found: &mut dyn FnMut(&Self, Vec<u8>)) {
        let entries = self.copy(chunks);
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let plan = self.log.plan_append(rest);
            if let Some((at, len)) = plan.zero_next_area {
                self.cow[at as usize..(at + len) as usize].fill(0);
            }
            self.step(plan.padding.as_slice(), found);
            self.step(plan.write.as_slice(), found);
            self.log.apply_append(&rest[..plan.taken]);
            rest = &rest[plan.taken..];
        }
        for entry in entries {
            put(&mut self.origin, entry.old, 2);
        }
    }

    /// Removes these entries, whose chunks are merged.
    fn remove(&mut self, slots: Range<usize>, found: &mut dyn FnMut(&Self, Vec<u8>)) {
        for entry in slots
            .clone()
            .filter_map(|slot| self.log.entries().get(slot))
        {
            let at = entry.old as usize * CHUNK;
            self.origin[at..at + CHUNK].copy_from_slice(&self.view[at..at + CHUNK]);
        }
        let plan = self.log.plan_removal(&slots.collect::<Vec<_>>());
        self.moves = !plan.moves.is_empty();
        self.step(&plan.moves, found);
        for step in &plan.tail {
            self.step(step, found);
        }
        self.log.apply_removal(&plan);
        self.moves = false;
    }

    /// Carries out one step. Any subset of its units may be there after power loss.
    fn step(&mut self, writes: &[MetaWrite], found: &mut dyn FnMut(&Self, Vec<u8>)) {
        let units: Vec<MetaWrite> = writes
            .iter()
            .flat_map(|w| {
                w.data.chunks(UNIT).enumerate().map(|(n, data)| MetaWrite {
                    offset: w.offset + (n * UNIT) as u64,
                    data: data.to_vec(),
                })
            })
            .collect();
        assert!(units.len() <= 5, "too many mixtures");
        for subset in 0..1_u32 << units.len() {
            let mut cow = self.cow.clone();
            for (n, unit) in units.iter().enumerate() {
                if subset >> n & 1 == 1 {
                    write(&mut cow, unit);
                }
            }
            found(self, cow);
        }
        for unit in &units {
            write(&mut self.cow, unit);
        }
    }
}

/// One state: origin and store as they are on the medium.
struct State {
    origin: Vec<u8>,
    cow: Vec<u8>,
    view: Vec<u8>,
    /// Linux may refuse to merge it.
    moves: bool,
}

/// Every state, once.
fn states() -> Vec<State> {
    let (mut states, mut seen) = (Vec::new(), BTreeSet::new());
    let mut found = |made: &Made, cow: Vec<u8>| {
        if seen.insert(cow[CHUNK..2 * CHUNK].to_vec()) {
            states.push(State {
                origin: made.origin.clone(),
                cow,
                view: made.view.clone(),
                moves: made.moves,
            });
        }
    };
    let nothing = &mut |_: &Made, _: Vec<u8>| {};
    // Three units, from the middle of the first.
    let mut made = Made::new();
    made.append(0..20, nothing);
    made.append(20..80, &mut found);
    // The tail: all but its first unit are padded, then zeroed at once.
    made.append(80..120, nothing);
    made.remove(20..120, &mut found);
    // From the middle, and then all entries.
    made.append(20..115, nothing);
    made.remove(5..95, &mut found);
    made.remove(0..made.log.entries().len(), &mut found);
    states
}

/// Zeroes what Linux has written in the view.
fn written(view: &[u8]) -> Vec<u8> {
    let mut view = view.to_vec();
    for chunks in WRITTEN {
        view[chunks.start as usize * CHUNK..chunks.end as usize * CHUNK].fill(0);
    }
    view
}

fn sums(bench: &Bench, image: &[u8]) -> Sums {
    let path = bench.path("expected.img");
    fs::write(&path, image).unwrap();
    Sums::of_file(&path)
}

/// Maps state `n` of the disks as /dev/mapper/origin and cow.
fn map(linux: &mut Guest, n: u64) {
    let (origin, cow) = (n * SECTORS, n * COW_SECTORS);
    linux.run(&format!(
        "dmsetup create origin --table '0 {SECTORS} linear /dev/vda {origin}' && \
         dmsetup create cow --table '0 {COW_SECTORS} linear /dev/vdb {cow}'"
    ));
}

const LOAD: &str = "dmsetup create snap --table";

fn table(target: &str) -> String {
    format!("'0 {SECTORS} {target} /dev/mapper/origin /dev/mapper/cow P 8'")
}

/// Linux loads the store, writes on, and loads it again.
fn extend(bench: &Bench, linux: &mut Guest, state: &State, name: &str) {
    let what = |does: &str| format!("{name} that Linux {does}");
    let snapshot = table("snapshot");
    linux.run(&format!("{LOAD} {snapshot}"));
    let view = sums(bench, &state.view);
    let mut shows = linux.sums("/dev/mapper/snap");
    shows.assert_same(&view, &what("loads"));
    for chunks in WRITTEN {
        let (first, count) = (chunks.start, chunks.end - chunks.start);
        linux.run(&format!(
            "dd if=/dev/zero of=/dev/mapper/snap bs=4k seek={first} count={count} oflag=direct"
        ));
    }
    let view = sums(bench, &written(&state.view));
    shows = linux.sums("/dev/mapper/snap");
    shows.assert_same(&view, &what("has written"));
    linux.run(&format!("dmsetup remove snap && {LOAD} {snapshot}"));
    shows = linux.sums("/dev/mapper/snap");
    shows.assert_same(&view, &what("has written and loads again"));
    linux.run("dmsetup remove snap");
}

/// Linux merges the store to its end.
fn merge(bench: &Bench, linux: &mut Guest, state: &State, name: &str) {
    linux.run(&format!("{LOAD} {}", table("snapshot-merge")));
    linux.run(
        "for i in $(seq 200); do set -- $(dmsetup status snap); \
         [ \"${4%%/*}\" = \"$5\" ] && break; sleep 0.05; done; \
         dmsetup status snap; [ \"${4%%/*}\" = \"$5\" ] && dmsetup remove snap",
    );
    let merged = linux.sums("/dev/mapper/origin");
    let view = sums(bench, &state.view);
    merged.assert_same(&view, &format!("{name} that Linux merges"));
}

/// What Linux has written loads here, and what it may refuse to merge is merged here.
fn take_back(bench: &Bench, state: &State, cow_in_linux: &[u8], name: &str) {
    let (origin, cow) = (bench.path("origin.img"), bench.path("s.cow"));
    fs::write(&origin, &state.origin).unwrap();
    fs::write(&cow, cow_in_linux).unwrap();
    let out = bench.path(&format!("{name}.view"));
    let options = ExportOptions {
        origin: origin.clone(),
        known: None,
        cow: cow.clone(),
        range: None,
    };
    export(&options, &out, |_, _| {}).unwrap();
    let view = sums(bench, &written(&state.view));
    Sums::of_file(&out).assert_same(&view, &format!("{name} that Linux has written, here"));
    if state.moves {
        fs::write(&cow, &state.cow).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        offline(&["merge", "--origin", &text(&origin), "--cow", &text(&cow)]);
        let view = sums(bench, &state.view);
        Sums::of_file(&origin).assert_same(&view, &format!("{name} merged here"));
    }
}

#[test]
fn linux_shows_extends_and_merges_a_store_after_power_loss_in_any_step() {
    let bench = Bench::new();
    let states = states();
    assert!(states.len() > 40, "only {} states", states.len());
    // Once for writing and once for the merge.
    let twice = |part: fn(&State) -> &Vec<u8>| {
        let all: Vec<u8> = states.iter().flat_map(|s| part(s).clone()).collect();
        [all.as_slice(), all.as_slice()].concat()
    };
    let (origins, cows) = (bench.path("origins.img"), bench.path("cows.img"));
    fs::write(&origins, twice(|s| &s.origin)).unwrap();
    fs::write(&cows, twice(|s| &s.cow)).unwrap();
    let disks = [Attach::Raw(origins), Attach::Raw(cows.clone())];
    let mut linux = bench.boot("linux", &disks);
    let unmap = "dmsetup remove cow && dmsetup remove origin";
    for (n, state) in (0..).zip(&states) {
        let name = format!("state {n}");
        map(&mut linux, n);
        extend(&bench, &mut linux, state, &name);
        linux.run(unmap);
        if !state.moves {
            map(&mut linux, n + states.len() as u64);
            merge(&bench, &mut linux, state, &name);
            linux.run(unmap);
        }
    }
    linux.assert_no_io_error();
    linux.quit();
    let cows = fs::read(&cows).unwrap();
    for (n, (state, cow)) in states
        .iter()
        .zip(cows.chunks(COW as usize * CHUNK))
        .enumerate()
    {
        take_back(&bench, state, cow, &format!("state {n}"));
    }
    println!("{} states", states.len());
}
