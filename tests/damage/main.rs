//! Stores with random damage: `check` judges them as the loader does, within
//! bounds of time and memory, and what is accepted shows exactly what another
//! reader of the format sees.
//!
//! `SNAPBACK_DAMAGE_SEED=N` runs one store alone, `SNAPBACK_DAMAGE_COUNT=N` more
//! or fewer.
#![allow(
    unsafe_code, // The allocator that counts.
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../offline/decoder.rs"]
mod decoder;
#[path = "../common/memory.rs"]
mod memory;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use snapback::io::{BlockFile, Devices, OpenOptions, ThreadDisk};
use snapback::offline::{self, Check, ExportOptions, Verdict};
use snapback::store::{self, LoadParams, Loaded};

const COUNT: u64 = 10_000;
/// One look at a store of less than 1 MiB, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const GROWTH: usize = 64 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A store as it should be, in memory.
struct Store {
    bytes: Vec<u8>,
    chunk: usize,
    origin_chunks: usize,
}

impl Store {
    fn random(random: &mut Random) -> Self {
        let chunk = 512 * random.pick(&[1, 1, 2, 8, 16]);
        let area = chunk / 16;
        let chunks = 3 + random.below((128 << 10) / chunk);
        let origin_chunks = 1 + random.below(2 * chunks);
        let mut bytes = vec![0u8; chunks * chunk];
        bytes[..4].copy_from_slice(b"SnAp");
        bytes[4] = 1;
        bytes[8] = 1;
        bytes[12] = (chunk / 512) as u8;
        let mut store = Self {
            bytes,
            chunk,
            origin_chunks,
        };
        // Each origin chunk once, in a random order.
        let mut olds: Vec<u64> = (0..origin_chunks as u64).collect();
        for i in (1..olds.len()).rev() {
            olds.swap(i, random.below(i + 1));
        }
        let fits = |n: usize| 1 + n + n / area + 1 < chunks;
        let most = (0..olds.len()).take_while(|n| fits(*n)).count();
        for (slot, old) in olds.into_iter().take(random.below(most + 1)).enumerate() {
            let new = 2 + slot + slot / area;
            store.put(slot, old, new as u64);
            let data = new * chunk..(new + 1) * chunk;
            let fill = random.next() as u8;
            store.bytes[data].fill(fill);
        }
        store
    }

    /// Where a slot of the log is; may lie beyond the end.
    fn place(&self, slot: usize) -> usize {
        let area = self.chunk / 16;
        (1 + slot / area * (area + 1)) * self.chunk + slot % area * 16
    }

    fn put(&mut self, slot: usize, old: u64, new: u64) {
        let at = self.place(slot);
        if at + 16 <= self.bytes.len() {
            self.bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
            self.bytes[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        }
    }

    fn damage(&mut self, random: &mut Random) {
        let area = self.chunk / 16;
        let chunks = (self.bytes.len() / self.chunk).max(1);
        let areas = (chunks / (area + 1)).max(1);
        match random.below(11) {
            0 => {
                let at = random.below(16.min(self.bytes.len()));
                self.bytes[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = random.below(16.min(self.bytes.len()));
                self.bytes[at] = random.next() as u8;
            }
            10 => {
                // A word of the header cleared: another store, or none.
                let at = random.below(4) * 4;
                let end = (at + 4).min(self.bytes.len());
                self.bytes[at.min(end)..end].fill(0);
            }
            2..=4 => {
                // Bits in the areas, mostly where there are entries.
                for _ in 0..=random.below(3) {
                    let slot = random.below(area * areas);
                    let at = self.place(slot) + random.below(16);
                    if let Some(byte) = self.bytes.get_mut(at) {
                        *byte ^= 1 << random.below(8);
                    }
                }
            }
            5 => {
                let slot = random.below(area.min(40));
                let edges = [
                    0,
                    1,
                    2,
                    area as u64 + 2,
                    chunks as u64 - 1,
                    chunks as u64,
                    self.origin_chunks as u64 - 1,
                    self.origin_chunks as u64,
                    u64::MAX,
                    u64::MAX / 16,
                    1 << 55,
                ];
                let (old, new) = (random.pick(&edges), random.pick(&edges));
                self.put(slot, old, new);
            }
            6 => {
                // What is cut off a file; most often on a sector.
                let len = random.below(self.bytes.len() + 1);
                let grain = random.pick(&[1, 512, 512, 512, self.chunk]);
                self.bytes.truncate(len - len % grain);
            }
            7 => {
                let (from, to) = (random.below(area.min(20)), random.below(area.min(60)));
                let from = self.place(from);
                if let Some(entry) = self.bytes.get(from..from + 16) {
                    let entry = entry.to_vec();
                    let at = self.place(to);
                    if at + 16 <= self.bytes.len() {
                        self.bytes[at..at + 16].copy_from_slice(&entry);
                    }
                }
            }
            8 => {
                let start = random.below(self.bytes.len() + 1);
                let end = (start + random.below(2 * self.chunk)).min(self.bytes.len());
                self.bytes[start..end].fill(0);
            }
            _ => {
                let start = random.below((2 * self.chunk).min(self.bytes.len() + 1));
                let end = (start + random.below(64)).min(self.bytes.len());
                for byte in &mut self.bytes[start..end] {
                    *byte = random.next() as u8;
                }
            }
        }
        if self.bytes.is_empty() {
            self.bytes.push(0);
        }
    }
}

/// Aborts the test when one look takes too long: a hang must end with the seed.
fn watch(seed: &'static AtomicU64) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = seed.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                eprintln!("hangs: SNAPBACK_DAMAGE_SEED={now}");
                std::process::abort();
            }
        }
    });
}

/// `None` if the store is refused or cannot be opened.
fn load(cow: &Path, origin_bytes: u64) -> Option<Loaded> {
    let file = BlockFile::open(cow, OpenOptions::read_only()).ok()?;
    let params = LoadParams {
        cow_sectors: file.sectors(),
        origin_sectors: Some(origin_bytes / 512),
        unit: 512,
        block_bytes: 512,
    };
    let devices = Devices::new();
    let device = devices.add(file);
    let mut disk = ThreadDisk::new(Arc::clone(&devices), 1).unwrap();
    store::load(&mut disk, device, &params).ok()
}

fn assert_consistent(found: &Check) {
    let damaged = found.verdict == Verdict::Damaged;
    assert_eq!(damaged, !found.damage.is_empty(), "{found:?}");
    let repair = &found.repair;
    assert!(
        !repair.possible || repair.drops_entries + repair.keeps_entries == found.entries,
        "{found:?}"
    );
    assert!(damaged || repair.drops_entries == 0, "{found:?}");
    assert!(
        found
            .damage
            .iter()
            .all(|d| d.count >= d.examples.len() as u64 && d.count > 0),
        "{found:?}"
    );
}

#[derive(Debug, Default)]
struct Seen {
    good: u64,
    stale: u64,
    new: u64,
    invalid: u64,
    damaged: u64,
    /// Accepted stores that were compared, and how many entries they had.
    views: u64,
    entries: u64,
    growth: usize,
    slowest: Duration,
}

fn one(seed: u64, dir: &Path, seen: &mut Seen) {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut store = Store::random(&mut random);
    for _ in 0..random.below(4) {
        store.damage(&mut random);
    }
    let (cow, origin, out) = (dir.join("cow"), dir.join("origin"), dir.join("out"));
    std::fs::write(&cow, &store.bytes).unwrap();
    // Now and then an origin that ends within a chunk, and a huge hole behind the store.
    let cut = 512 * random.below(store.chunk / 512);
    let disk: Vec<u8> = (0..store.origin_chunks * store.chunk - cut)
        .map(|i| (i / 512 * 7 + i) as u8)
        .collect();
    std::fs::write(&origin, &disk).unwrap();
    let hole = random.below(200);
    if hole < 2 {
        let file = std::fs::File::options().write(true).open(&cow).unwrap();
        file.set_len(8 << 20).unwrap();
        if hole == 0 {
            // Areas of up to 1 GiB, of zeroes.
            file.set_len(3 << 30).unwrap();
            let sectors = 1u32 << random.below(22);
            file.write_all_at(&sectors.to_le_bytes(), 12).unwrap();
        }
    }

    let start = Instant::now();
    let (found, growth) = memory::peak(|| offline::check(&cow, Some(&origin), None).unwrap());
    seen.slowest = seen.slowest.max(start.elapsed());
    seen.growth = seen.growth.max(growth);
    // The memory that a Vec of the entries takes, with its reserve.
    let table = 2 * 16 * found.entries as usize;
    assert!(growth < GROWTH + table, "grew by {growth} bytes: {found:?}");
    assert_consistent(&found);
    let alone = offline::check(&cow, None, None).unwrap();
    assert!(
        alone.verdict == found.verdict || found.verdict == Verdict::Damaged,
        "worse without the origin: {alone:?} {found:?}"
    );

    let loaded = load(&cow, disk.len() as u64);
    let expected = match &loaded {
        None => Verdict::Damaged,
        Some(Loaded::New) => Verdict::New,
        Some(Loaded::Invalid { .. }) => Verdict::Invalid,
        Some(Loaded::Valid(store)) if store.junk().is_some() && store.copies_behind_end() == 0 => {
            Verdict::Stale
        }
        Some(Loaded::Valid(_)) => Verdict::Good,
    };
    assert_eq!(found.verdict, expected, "{found:?}");
    match found.verdict {
        Verdict::Good => seen.good += 1,
        Verdict::Stale => seen.stale += 1,
        Verdict::New => seen.new += 1,
        Verdict::Invalid => seen.invalid += 1,
        Verdict::Damaged => seen.damaged += 1,
    }
    let Some(Loaded::Valid(_)) = loaded else {
        return;
    };
    if hole == 0 {
        return; // The other reader takes it all into memory.
    }
    let bytes = std::fs::read(&cow).unwrap();
    let view = decoder::view(&disk, &bytes);
    seen.views += 1;
    seen.entries += found.entries;
    let options = ExportOptions {
        known: None,
        origin: origin.clone(),
        cow: cow.clone(),
        range: None,
    };
    offline::export(&options, &out, |_, _| {}).unwrap();
    let exported = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(exported == view, "the view differs: {found:?}");

    // Laid over the origin, what `diff` names makes the same view.
    let mut patched = disk;
    let files = offline::Diff::open(&origin, &cow, None).unwrap();
    files
        .changes(|_, _| {}, &mut |change| {
            let (to, from, len) = (
                change.start as usize,
                change.offset as usize,
                change.length as usize,
            );
            let new = &bytes[from..from + len];
            assert_eq!(change.zero, new.iter().all(|b| *b == 0));
            assert_ne!(&patched[to..to + len], new, "unchanged: {change:?}");
            patched[to..to + len].copy_from_slice(new);
            Ok::<(), offline::OfflineError>(())
        })
        .unwrap();
    assert!(patched == view, "the diff differs: {found:?}");
}

#[test]
fn damaged_stores_are_judged_within_bounds_and_accepted_ones_show_what_they_hold() {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seeds = match number("SNAPBACK_DAMAGE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SNAPBACK_DAMAGE_COUNT").unwrap_or(COUNT),
    };
    let all = seeds.end - seeds.start >= COUNT;
    // In memory if possible: every export waits until it is durable.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let mut seen = Seen::default();
    watch(&SEED);
    for seed in seeds {
        SEED.store(seed, Ordering::Relaxed);
        let run = std::panic::AssertUnwindSafe(|| one(seed, dir.path(), &mut seen));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("run it again: SNAPBACK_DAMAGE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{seen:?}");
    // Of every kind enough, or the test shows nothing.
    if all {
        let least = [seen.good, seen.stale, seen.new, seen.invalid, seen.damaged]
            .into_iter()
            .min();
        assert!(least.is_some_and(|n| n >= 20), "{seen:?}");
        assert!(seen.views >= 1000 && seen.entries >= 10_000, "{seen:?}");
    }
}
